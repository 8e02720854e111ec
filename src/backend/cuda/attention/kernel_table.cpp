#include "backend/cuda/attention/kernel_table.h"

#include "backend/cuda/attention/generic/attention_generic.h"
#include "backend/cuda/attention/sm80/attention_sm80.h"
#include "backend/cuda/attention/sm90/attention_sm90.h"
#include "base/error.h"

namespace calibatt::cuda {

std::span<const AttentionKernel> attention_kernels() {
  static constexpr AttentionKernel kTable[] = {
      {"sm90", false, sm90::refusal, sm90::workspace_bytes, sm90::launch},
      {"sm80", false, sm80::refusal, sm80::workspace_bytes, sm80::launch},
      {"generic", true, generic::refusal, generic::workspace_bytes, generic::launch},
  };
  return kTable;
}

const AttentionKernel& choose_attention_kernel(const AttentionArgs& args, const DeviceInfo& device,
                                               std::string_view name) {
  std::string known, reasons;
  for (const AttentionKernel& kernel : attention_kernels()) {
    known += (known.empty() ? "" : ", ") + std::string(kernel.name);
    if (!name.empty() && kernel.name != name) continue;
    const std::string reason = args.is_f32 && !kernel.takes_f32 ? "q, k and v are F32, it takes 16-bit floats"
                                                                : kernel.refusal(args, device.compute_capability);
    if (reason.empty()) return kernel;
    reasons += (reasons.empty() ? "" : "; ") + std::string(kernel.name) + " refuses: " + reason;
  }
  throw Error(ErrorKind::kUsage,
              reasons.empty() ? "attention: no CUDA kernel is named " + std::string(name) + "; there are " + known
                              : "attention on " + device.name + ": " + reasons);
}

}  // namespace calibatt::cuda
