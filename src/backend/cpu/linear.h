#pragma once

#include <memory>

#include "backend/cpu/gathered_weights.h"
#include "backend/linear.h"

namespace calibatt::cpu {

/// Linear layers on oneDNN. The weights are reordered once to the layout oneDNN asks for. Rows are cut into chunks of
/// about a hundred; each chunk is one single-threaded oneDNN matmul on a thread of our own pool: a chunk's output stays
/// in its core's cache, and there is no second pool whose idle threads spin on the same cores. Where the processor has
/// no bfloat16 dot product, kBF16 layers compute in float32 from the rounded weights and inputs.
/// gathered: whose part the weights become; null: they stay.
std::shared_ptr<const LinearLayer> make_linear(const Tensor& weight, const Tensor& bias, DType dtype,
                                               const std::shared_ptr<GatheredWeights>& gathered = {});
void linear(const LinearLayer& layer, const Tensor& input, Tensor& out, const LinearEpilogue& epilogue);

}  // namespace calibatt::cpu
