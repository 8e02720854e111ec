#pragma once

#include <string>
#include <vector>

#include "attention_cases.h"

/// What kernels are held against: float64 results, and the error of plain runs in the precision they compute in.
namespace calibatt {

/// Of float32 or bfloat16.
float element(const ConstHeadsView& view, int64_t token, int head, int dim);

/// A run in the precision of the inputs as any framework makes it: exact logits, softmax weights relative to the row's
/// maximum and rounded to the inputs' type, sums in float, output rounded to that type. Summaries are rounded like any
/// key or value.
/// Or in 8 bits, quantised as the CUDA kernel's inputs are (src/backend/cuda/attention/sm90_fp8/quantized.h) by code of
/// its own: exact sums of bytes, softmax weights in e4m3 with the row's maximum at 448, sums in float.
struct PlainRun {
  std::vector<float> outputs;  ///< [heads, tokens, head_dim]
  /// Independent roundings behind the head that has fewest: (Σp²)²/Σp⁴ over its weights, since p² is what the rounding
  /// of p contributes to the squared error.
  double num_roundings = 0;
  double largest_logit = 0;  ///< |scaled logit| · log2(e)
};

struct Expected {
  std::vector<float> outputs, energy;  ///< of the reference, which accumulates in double
  double plain_error = 0;              ///< of a run that rounds the softmax weights alone, on some rows, masks ignored
};

/// Reference results of a case whose values are `values`, computed once for all kernels.
const Expected& expected(const AttentionCase& attention_case, DType values);
/// The plain run of the same (BF16 or F16), also computed once; in that type, or in 8 bits.
const PlainRun& plain_run(const AttentionCase& attention_case, DType values, bool eight_bits = false);

/// Relative L2 error of the worst head and, against the head's mean row norm at least, of the worst row.
struct Errors {
  double head = 0, row = 0;
};
Errors relative_errors(const std::vector<float>& actual, const std::vector<float>& wanted, int num_heads, int row_size);

}  // namespace calibatt
