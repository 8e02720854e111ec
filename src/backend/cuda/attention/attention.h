#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string_view>

#include "backend/attention_call.h"
#include "backend/cuda/attention/attention_args.h"
#include "backend/cuda/attention/kernel_table.h"
#include "backend/cuda/attention/packed_schedule.h"
#include "backend/cuda/device/device.h"

/// Attention on the current GPU. The steps of a caller:
///   1. a schedule in device memory: from a ScheduleStream (schedule_stream.h) in a run, or a ResidentSchedule where
///      one schedule serves many calls;
///   2. make_args: kernel arguments of an AttentionCall whose views hold device pointers;
///   3. attention_workspace_bytes: ask, and provide so much device memory (256-byte aligned, as cudaMalloc's is);
///   4. attention: validates, chooses a kernel, enqueues. Allocates nothing and waits for nothing, so that it can be
///      captured in a CUDA graph.
namespace calibatt::cuda {

/// A packed schedule in device memory. The constructor returns once it is there.
class ResidentSchedule {
 public:
  ResidentSchedule() = default;  ///< of a dense call
  explicit ResidentSchedule(const PackedSchedule& packed);
  /// Of these heads; empty when all of them are dense. Arguments and errors: pack_schedule.
  ResidentSchedule(std::span<const HeadSchedule> heads, int num_queries, int num_keys, int block_q, int block_k);

  const DeviceSchedule& device() const { return device_; }
  bool has_summaries() const { return has_summaries_; }
  size_t size_bytes() const { return buffer_.size_bytes(); }

 private:
  DeviceBuffer buffer_;
  DeviceSchedule device_;
  bool has_summaries_ = false;
};

/// What AttentionCall::key_bias adds to the last key's logit, in log2 units; 0 without. Throws Error(kUsage) when
/// another key has a bias, or this one is not finite.
float last_key_bias_log2(std::span<const float> key_bias);

/// Kernel arguments of one sample's call: views (BF16, F16 or F32, out alike or F32) and block_energy are device
/// pointers, `schedule` was made of call.heads. Throws Error(kUsage) when the call is not valid, or has a key_bias
/// other than 0 that is not the last key's or not finite.
AttentionArgs make_args(const AttentionCall& call, const ResidentSchedule& schedule);
/// The same for a schedule that lies somewhere else (schedule_stream.h).
AttentionArgs make_args(const AttentionCall& call, const DeviceSchedule& schedule, bool has_summaries);

/// Whether a kernel does the norm that is pending in the call (AttentionCall::norm) in the pass that makes its bytes.
/// Where none does, it is to be done beforehand, and the call made without.
bool norms_in_kernel(const AttentionCall& call);

/// Makes a dense call's arguments those of a planned one; for callers that have the schedule in device memory and no
/// HeadSchedules.
void set_schedule(AttentionArgs& args, const DeviceSchedule& schedule, bool has_summaries);

/// Throws Error(kUsage), naming the field, when dtypes, sizes, strides or pointers do not fit together. A schedule's
/// arrays are taken on trust: they are in device memory, and pack_schedule checks what it packs.
void validate(const AttentionArgs& args);

/// Bytes of device memory that `attention` needs beside the arguments: the kernel's own, and the summaries when
/// args.num_summaries > 0 and args.summary_k.data is null (kernels in 8 bits make their own). Errors: as of
/// `attention`.
size_t attention_workspace_bytes(const AttentionArgs& args, std::string_view kernel = {});

/// Validates, chooses (the first kernel that takes the call, or the one of that name), makes summaries where they are
/// asked for and not given, and enqueues the kernel, whose name is returned; args.workspace is ignored in favour of
/// `workspace`. Nothing is enqueued when it throws Error(kUsage). Throws Error(kDevice) when the GPU refuses a launch.
std::string_view attention(AttentionArgs args, void* workspace, size_t workspace_bytes, cudaStream_t stream,
                           std::string_view kernel = {});

}  // namespace calibatt::cuda
