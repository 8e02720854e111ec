#pragma once

#include <memory>

#include "backend/cpu/gathered_weights.h"
#include "backend/eight_bit_ops.h"

namespace calibatt::cpu {

/// Linear layers in 8 bits as any backend has to compute them, in float32: weights and inputs are quantised by the
/// common rule and multiplied out again, so that a product is of exactly the values that 8 bits stand for. Not
/// fast: the reference of what a GPU does.
std::shared_ptr<const LinearLayer> make_eight_bit_linear(const Tensor& weight, const Tensor& bias, DType dtype,
                                                         const std::shared_ptr<GatheredWeights>& gathered = {});
std::unique_ptr<EightBitOps> make_eight_bit_ops();

}  // namespace calibatt::cpu
