#include "backend/cpu/attention.h"
#include "test_kernel.h"

namespace calibatt {

std::vector<TestKernel> cpu_kernels() {
  std::vector<TestKernel> kernels;
  AttentionProblem probe({.name = "probe", .num_queries = 1}, DType::kBF16, DType::kF32);
  for (const cpu::AttentionKernel& kernel : cpu::attention_kernels()) {
    if (!kernel.refusal(probe.call()).empty()) continue;  // this processor lacks its instructions
    kernels.push_back({.name = std::string(kernel.name),
                       .refusal = [&kernel](AttentionProblem& problem) { return kernel.refusal(problem.call()); },
                       .run = [&kernel](AttentionProblem& problem) { cpu::attention(problem.call(), kernel.name); }});
  }
  return kernels;
}

}  // namespace calibatt
