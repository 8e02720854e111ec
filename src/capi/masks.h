#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "backend/attention_call.h"
#include "calibatt/c_api.h"
#include "capi/call_place.h"

namespace calibatt::capi {

/// A schedule in a GPU's memory.
class ResidentMasks {
 public:
  virtual ~ResidentMasks() = default;
  virtual size_t size_bytes() const = 0;
};

struct ScheduleShape {
  int num_heads = 0, num_queries = 0, num_keys = 0, block_q = 0, block_k = 0;
  bool operator==(const ScheduleShape&) const = default;
};

/// One calibatt_attention_call: its first sample, and what a call of one sample does not have.
struct BatchedCall {
  AttentionCall sample;
  int batch = 1;
  int64_t q_stride = 0, k_stride = 0, v_stride = 0, out_stride = 0;  ///< from one sample to the next, elements
  const ResidentMasks* masks = nullptr;                              ///< on a GPU, in the place of sample.heads
  const char* kernel = "";
  CallResources resources;
};
struct ChosenKernel {
  const char* name;
  size_t workspace_bytes;
};

/// Of a library with CUDA; the others throw Error(kDevice).
std::unique_ptr<ResidentMasks> make_cuda_masks(int device, std::span<const HeadSchedule> heads,
                                               const ScheduleShape& shape);
ChosenKernel choose_cuda_kernel(int device, const BatchedCall& call);
void run_on_cuda(int device, const BatchedCall& call);

}  // namespace calibatt::capi

/// Does not change.
struct calibatt_schedule {
  int device = 0;
  calibatt::capi::ScheduleShape shape;
  std::vector<calibatt::BlockIntervals> intervals;
  calibatt::AnchorRows anchors;
  std::vector<calibatt::HeadSchedule> heads;  // pointing to these
  std::unique_ptr<calibatt::capi::ResidentMasks> resident;

  calibatt_schedule() = default;
  calibatt_schedule(const calibatt_schedule&) = delete;
  calibatt_schedule& operator=(const calibatt_schedule&) = delete;
};
