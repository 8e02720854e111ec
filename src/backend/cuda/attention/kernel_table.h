#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "backend/cuda/attention/attention_args.h"
#include "backend/cuda/device/device.h"

namespace calibatt::cuda {

/// A way to compute an attention call on a GPU.
struct AttentionKernel {
  std::string_view name;  ///< "sm90", "sm90_fp8_wide", "sm90_fp8", "sm80", "generic"
  bool takes_f32;         ///< whether args.dtype may be kF32; the others are not asked about such calls
  bool eight_bits;        ///< computes in 8 bits: taken for calls with args.eight_bits and no others, unless named
  int oldest_capability, newest_capability;  ///< GPUs that it runs on: 10 · major + minor, both included
  /// Why this kernel cannot take a (valid) call on such a GPU; empty when it can.
  std::string (*refusal)(const AttentionArgs& args);
  /// Of a call that it can take: whether it is to be chosen before kernels behind it; a named kernel is not asked.
  /// Null: always.
  bool (*is_faster)(const AttentionArgs& args);
  /// Of args.workspace, for `launch`.
  size_t (*workspace_bytes)(const AttentionArgs& args, int num_sms);
  /// Enqueues the call; allocates nothing, so that it can be captured in a CUDA graph.
  void (*launch)(const AttentionArgs& args, int num_sms, cudaStream_t stream);
};

/// Whether a kernel runs on GPUs of this compute capability (90 is 9.0) at all.
inline bool runs_on(const AttentionKernel& kernel, int capability) {
  return capability >= kernel.oldest_capability && capability <= kernel.newest_capability;
}
/// Why a kernel cannot take a (valid) call on such a GPU; empty when it can.
std::string refusal_of(const AttentionKernel& kernel, const AttentionArgs& args, int capability);

/// Every kernel, the fastest first but for those in 8 bits, which calls ask for. The last one is slow and obvious, and
/// refuses only what a grid or its shared memory cannot hold.
std::span<const AttentionKernel> attention_kernels();

/// The first kernel of the table, of those that compute in as many bits as args.eight_bits says, that takes the call on
/// this device; or the one of that name. Throws Error(kUsage) when there is no kernel of that name, or when it refuses
/// the call (with its reason); when none takes a call in 8 bits, with the reasons of those that compute so.
const AttentionKernel& choose_attention_kernel(const AttentionArgs& args, const DeviceInfo& device,
                                               std::string_view name = {});

}  // namespace calibatt::cuda
