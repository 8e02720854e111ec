#include "backend/cpu/attention/attention.h"
#include "test_kernel.h"

namespace calibatt {
namespace {

/// All but the reference, which the others are held against.
std::vector<TestKernel> cpu_kernels() {
  std::vector<TestKernel> kernels;
  for (const cpu::AttentionKernel& kernel : cpu::attention_kernels()) {
    if (!kernel.runs_here || kernel.name == "reference") continue;
    TestKernel test;
    test.name = std::string(kernel.name);
    test.types = {{DType::kBF16, DType::kBF16}, {DType::kBF16, DType::kF32}};
    if (kernel.takes_f32) {
      test.types.insert(test.types.begin(), {DType::kF32, DType::kF32});
    } else {
      test.arithmetic = Arithmetic::kRoundedWeights;
    }
    test.on_host_threads = true;
    test.refusal = [&kernel](AttentionProblem& problem) { return kernel.refusal(problem.call()); };
    test.run = [&kernel](AttentionProblem& problem) { cpu::attention(problem.call(), kernel.name); };
    kernels.push_back(std::move(test));
  }
  return kernels;
}

const AddTestKernels added(cpu_kernels);

}  // namespace
}  // namespace calibatt
