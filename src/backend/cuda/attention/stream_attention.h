#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <string>

#include "backend/attention_engine.h"
#include "backend/cuda/attention/schedule_stream.h"

namespace calibatt::cuda {

/// Attention on the current GPU for a caller who has streams and memory of his own: each call is enqueued on the stream
/// of set_call and computes in its workspace. Allocates nothing in a call but slots for schedules, as they grow.
class StreamAttention : public AttentionEngine {
 public:
  StreamAttention();

  /// Of the calls to come.
  void set_call(cudaStream_t stream, void* workspace, size_t workspace_bytes);
  /// What a call needs at most: as the dense one that is given, or planned. Errors: attention_workspace_bytes.
  static size_t workspace_bytes(const AttentionCall& dense, bool may_have_summaries);

  std::string_view attention(const AttentionCall& call) override;
  std::string attention_kernel(DType dtype, int head_dim, bool eight_bits) const override;
  void prefetch_schedule(const std::shared_ptr<const ScheduleSource>& schedule, const ScheduleSizes& sizes) override {
    schedules_.prefetch(schedule, sizes);
  }
  MaskStreaming mask_streaming() const override { return schedules_.stats(); }

 private:
  ScheduleStream schedules_;
  cudaStream_t stream_ = nullptr;
  void* workspace_ = nullptr;
  size_t workspace_bytes_ = 0;
};

}  // namespace calibatt::cuda
