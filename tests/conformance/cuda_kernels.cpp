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
    return cuda::refusal_of(kernel, DeviceProblem(problem).args(), cuda::current_device().compute_capability);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kUsage) throw;
    return error.what();
  }
}

/// None without a GPU.
std::vector<TestKernel> cuda_kernels() {
  std::vector<TestKernel> kernels;
  if (cuda::num_devices() == 0) return kernels;
  for (const cuda::AttentionKernel& kernel : cuda::attention_kernels()) {
    if (!cuda::runs_on(kernel, cuda::current_device().compute_capability)) continue;
    TestKernel test;
    test.name = "cuda_" + std::string(kernel.name);
    test.arithmetic = kernel.eight_bits ? Arithmetic::kEightBits : Arithmetic::kLikeInputs;
    test.measures_energy = !kernel.eight_bits;
    if (kernel.name == "sm90_fp8_wide") test.only_head_dim = 128;
    test.types = {{DType::kBF16, DType::kBF16}, {DType::kBF16, DType::kF32}, {DType::kF16, DType::kF16}};
    test.out_gap = 8;  // rows at multiples of 16 bytes, which fast kernels ask for
    test.refusal = [&kernel](AttentionProblem& problem) { return refusal_on_gpu(kernel, problem); };
    test.run = [&kernel](AttentionProblem& problem) { DeviceProblem(problem).run(kernel.name); };
    kernels.push_back(std::move(test));
  }
  return kernels;
}

const AddTestKernels added(cuda_kernels);

}  // namespace
}  // namespace calibatt
