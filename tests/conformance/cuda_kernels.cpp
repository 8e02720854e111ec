#include <string>

#include "backend/cuda/attention/attention.h"
#include "base/error.h"
#include "device_problem.h"
#include "test_kernel.h"

namespace calibatt {
namespace {

/// The kernel's own reason, or that of the entry when the call has no device form (a bias per key, say).
std::string refusal_on_gpu(const cuda::AttentionKernel& kernel, AttentionProblem& problem) {
  try {
    return kernel.refusal(DeviceProblem(problem).args(), cuda::current_device().compute_capability);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kUsage) throw;
    return error.what();
  }
}

}  // namespace

std::vector<TestKernel> cuda_kernels() {
  std::vector<TestKernel> kernels;
  if (cuda::num_devices() == 0) return kernels;
  for (const cuda::AttentionKernel& kernel : cuda::attention_kernels()) {
    kernels.push_back({.name = "cuda_" + std::string(kernel.name),
                       .on_gpu = true,
                       .refusal = [&kernel](AttentionProblem& problem) { return refusal_on_gpu(kernel, problem); },
                       .run = [&kernel](AttentionProblem& problem) { DeviceProblem(problem).run(kernel.name); }});
  }
  return kernels;
}

}  // namespace calibatt
