#pragma once

#include <cublasLt.h>

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/cuda/device/context.h"

namespace calibatt::cuda {

/// out [rows, out_features] = input [rows, in_features] · weightᵀ, all row-major in device memory.
struct GemmCall {
  const void* input = nullptr;
  const void* weight = nullptr;  ///< [out_features, in_features]
  void* out = nullptr;
  DType dtype = DType::kBF16;     ///< of input and weight: kF32, kBF16, kF16 or kE4M3
  DType out_dtype = DType::kF32;  ///< kF32, or dtype; of kE4M3 kF32, kBF16 or kF16
  int64_t rows = 0, out_features = 0, in_features = 0;
  const void* bias = nullptr;  ///< [out_features] of bias_dtype(), or null
  /// Of kE4M3 alone: [rows] and [out_features]. Sums are taken in the tensor cores' own, shorter accumulators.
  const float *input_scales = nullptr, *weight_scales = nullptr;
  float alpha = 1;          ///< the product times this, before the bias
  bool gelu = false;        ///< GELU in its tanh form, after the bias
  bool accumulate = false;  ///< add to what `out` holds

  /// As cuBLASLt has it: float32 beside 8 bits is not there.
  DType bias_dtype() const { return dtype == DType::kE4M3 && out_dtype == DType::kF32 ? DType::kBF16 : out_dtype; }
};

/// One of the algorithms that cuBLASLt proposes for a call, and what its trials took.
struct GemmCandidate {
  cublasLtMatmulAlgo_t algorithm{};
  float milliseconds = 0;        ///< median of its trials; infinite: refused after all
  bool finalist = false;         ///< tried as often as any; the others were clearly slower at once
  std::string describe() const;  ///< "algorithm 66, tile 27, stages 36, …": cuBLASLt's own numbers
};

/// Matrix products by cuBLASLt on the context's stream. The algorithm is chosen once per shape: the library's own
/// favourite or, for large products, the fastest of its first few if that is clearly faster. The trials write where the
/// product goes; those of an accumulating call write into memory of their own, as large as `out`, for as long as they
/// take (where that cannot be had, the favourite is taken).
class Gemm {
 public:
  explicit Gemm(Context& context);
  ~Gemm();
  Gemm(const Gemm&) = delete;
  Gemm& operator=(const Gemm&) = delete;

  /// Whether cuBLASLt has an algorithm for the call: it lacks some combinations of types, addresses and what comes
  /// after the product.
  bool supports(const GemmCall& call) { return algorithm_for(call).has_value(); }
  /// Throws Error(kDevice), naming the shape, when cuBLASLt has no algorithm for it or fails.
  void run(const GemmCall& call);
  /// The candidates for a call in the library's order, tried anew; `out` is overwritten unless the call accumulates.
  /// Empty when there is none, or no memory for trials. For benchmarks: what `run` chooses from. A trial is `repeats`
  /// products in a row: many show what an algorithm does at the card's power limit.
  std::vector<GemmCandidate> tried_candidates(const GemmCall& call, int repeats);

 private:
  /// What the choice of an algorithm depends on.
  struct Shape {
    int64_t rows, out_features, in_features;
    DType dtype, out_dtype;
    bool bias, gelu, accumulate;
    uint32_t input_alignment, weight_alignment, out_alignment, bias_alignment, scales_alignment;  // bytes
    auto operator<=>(const Shape&) const = default;
  };
  struct Descriptors;

  static Shape shape_of(const GemmCall& call);
  const std::optional<cublasLtMatmulAlgo_t>& algorithm_for(const GemmCall& call);
  std::optional<cublasLtMatmulAlgo_t> choose(const GemmCall& call);
  std::vector<GemmCandidate> candidates(const GemmCall& call, const Descriptors& descriptors);
  bool try_all(GemmCall call, const Descriptors& descriptors, std::vector<GemmCandidate>& candidates, int repeats);
  cublasStatus_t enqueue(const GemmCall& call, const Descriptors& descriptors, const cublasLtMatmulAlgo_t& algorithm);
  float milliseconds(const GemmCall& call, const Descriptors& descriptors, const cublasLtMatmulAlgo_t& algorithm,
                     int repeats);

  Context& context_;
  cublasLtHandle_t handle_ = nullptr;
  std::shared_ptr<void> workspace_;
  std::map<Shape, std::optional<cublasLtMatmulAlgo_t>> algorithms_;  // nothing: there is none
};

}  // namespace calibatt::cuda
