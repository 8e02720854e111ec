#pragma once

#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "attention_cases.h"

namespace calibatt {

/// A kernel of some backend, as the conformance test sees it.
struct TestKernel {
  std::string name;  ///< "avx2", "reference", "cuda_sm90", …
  bool on_gpu = false;
  /// Why it cannot take the problem's call; empty when it can.
  std::function<std::string(AttentionProblem& problem)> refusal;
  /// Computes the call: results are in the problem's own (host) tensors afterwards. The outputs may hold poison before.
  std::function<void(AttentionProblem& problem)> run;
};

/// googletest prints a parameter's name instead of its bytes.
inline void PrintTo(const TestKernel& kernel, std::ostream* out) {
  *out << kernel.name;
}

/// Those that run on this machine. CUDA: none without a GPU, or in a build without CUDA.
std::vector<TestKernel> cpu_kernels();
std::vector<TestKernel> cuda_kernels();

}  // namespace calibatt
