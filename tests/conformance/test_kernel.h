#pragma once

#include <functional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "attention_cases.h"

namespace calibatt {

/// How exactly a kernel computes, which says what error it may have (attention_test.cpp).
enum class Arithmetic {
  kFloat,           ///< float throughout
  kRoundedWeights,  ///< products of the inputs and of softmax weights rounded to their type; sums in float
  kLikeInputs,      ///< the same with the output rounded too: held against a plain run in the inputs' type
  kEightBits,       ///< products of bytes and of e4m3: held against a plain run in 8 bits
};

/// A kernel of some backend, as the conformance test sees it.
struct TestKernel {
  std::string name;  ///< "avx2", "cuda_sm90", …
  Arithmetic arithmetic = Arithmetic::kFloat;
  /// Types of inputs and outputs that it is asked for; it takes the first of them in every usual case.
  std::vector<std::pair<DType, DType>> types;
  bool measures_energy = true;   ///< takes calls with block energy
  int only_head_dim = 0;         ///< that it is for; 0: all
  bool on_host_threads = false;  ///< results must not depend on set_num_threads
  int out_gap = 0;               ///< of outputs whose rows it can write; 0: any
  /// Why it cannot take the problem's call; empty when it can.
  std::function<std::string(AttentionProblem& problem)> refusal;
  /// Computes the call: results are in the problem's own (host) tensors afterwards. The outputs may hold poison before.
  std::function<void(AttentionProblem& problem)> run;
};

/// googletest prints a parameter's name instead of its bytes.
inline void PrintTo(const TestKernel& kernel, std::ostream* out) {
  *out << kernel.name;
}

/// The kernels under test. A backend adds its own from a file of its own, linked into the test:
///     const AddTestKernels added(my_kernels);
/// where my_kernels returns those that run on this machine, told from the hardware and not from what they refuse.
class AddTestKernels {
 public:
  using Kernels = std::vector<TestKernel> (*)();
  explicit AddTestKernels(Kernels kernels) { all().push_back(kernels); }
  static std::vector<Kernels>& all() {
    static std::vector<Kernels> added;
    return added;
  }
};

}  // namespace calibatt
