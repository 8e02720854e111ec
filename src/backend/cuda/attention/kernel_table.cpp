#include "backend/cuda/attention/kernel_table.h"

#include <limits>
#include <string>

#include "backend/cuda/attention/generic/attention_generic.h"
#include "backend/cuda/attention/sm80/attention_sm80.h"
#include "backend/cuda/attention/sm90/attention_sm90.h"
#include "backend/cuda/attention/sm90_fp8/attention_sm90_fp8.h"
#include "backend/cuda/attention/sm90_fp8/wide/attention_wide.h"
#include "base/error.h"

namespace calibatt::cuda {

namespace {

constexpr int kNewest = std::numeric_limits<int>::max();

std::string version_text(int capability) {
  return std::to_string(capability / 10) + "." + std::to_string(capability % 10);
}

}  // namespace

std::span<const AttentionKernel> attention_kernels() {
  static constexpr AttentionKernel kTable[] = {
      {"sm90", false, false, 90, 90, sm90::refusal, nullptr, sm90::workspace_bytes, sm90::launch},
      {"sm80", false, false, 80, kNewest, sm80::refusal, nullptr, sm80::workspace_bytes, sm80::launch},
      {"sm90_fp8_wide", false, true, 90, 90, sm90_fp8::wide::refusal, sm90_fp8::wide::is_faster,
       sm90_fp8::workspace_bytes, sm90_fp8::wide::launch},
      {"sm90_fp8", false, true, 90, 90, sm90_fp8::refusal, nullptr, sm90_fp8::workspace_bytes, sm90_fp8::launch},
      {"generic", true, false, 0, kNewest, generic::refusal, nullptr, generic::workspace_bytes, generic::launch},
  };
  return kTable;
}

std::string refusal_of(const AttentionKernel& kernel, const AttentionArgs& args, int capability) {
  if (!runs_on(kernel, capability)) {
    const bool one = kernel.oldest_capability == kernel.newest_capability;
    return "it is for GPUs of compute capability " + version_text(kernel.oldest_capability) + (one ? "" : " or newer") +
           ", this one has " + version_text(capability);
  }
  if (args.dtype == DType::kF32 && !kernel.takes_f32) return "q, k and v are F32, it takes 16-bit floats";
  if (args.norm.pending && !kernel.eight_bits) return "it takes queries and keys that are normalised already";
  return kernel.refusal(args);
}

const AttentionKernel& choose_attention_kernel(const AttentionArgs& args, const DeviceInfo& device,
                                               std::string_view name) {
  std::string known, reasons;
  for (const AttentionKernel& kernel : attention_kernels()) {
    known += (known.empty() ? "" : ", ") + std::string(kernel.name);
    if (name.empty() ? kernel.eight_bits != args.eight_bits : kernel.name != name) continue;
    const std::string reason = refusal_of(kernel, args, device.compute_capability);
    if (reason.empty()) {
      if (name.empty() && kernel.is_faster != nullptr && !kernel.is_faster(args)) continue;
      return kernel;
    }
    reasons += (reasons.empty() ? "" : "; ") + std::string(kernel.name) + " refuses: " + reason;
  }
  throw Error(ErrorKind::kUsage,
              reasons.empty() ? "attention: no CUDA kernel is named " + std::string(name) + "; there are " + known
                              : "attention on " + device.name + ": " + reasons);
}

}  // namespace calibatt::cuda
