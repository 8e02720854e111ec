#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/streamed_weights.h"
#include "base/tensor.h"

namespace calibatt {

/// A tensor as a weight file has it, mapped and not yet looked at: it is checked to be finite while it is copied.
struct StoredTensor {
  Tensor tensor;     ///< host; any float dtype
  std::string name;  ///< FILE: tensor "…", for messages
};

/// What a linear layer is loaded from: matrices of one input width stacked along their rows (such as q, k and v), and
/// their biases likewise.
struct StoredLinear {
  std::vector<StoredTensor> weights;          ///< [out of each, in]
  std::vector<StoredTensor> biases;           ///< [out of each]; empty: none
  DType dtype = DType::kF32;                  ///< of weights and inputs: kF32, kBF16 or kF16
  std::shared_ptr<StreamedWeights> streamed;  ///< whose part the matrix becomes; null: it stays on the device
};

/// The tensors one below the other, converted to dtype (kF32, kBF16 or kF16). Throws Error(kNumeric) when one is not
/// finite.
Tensor stack_rows(const std::vector<StoredTensor>& parts, DType dtype);

[[noreturn]] void refuse_not_finite(const StoredTensor& stored);  ///< Error(kNumeric) that names it

}  // namespace calibatt
