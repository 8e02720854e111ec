#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "backend/streamed_weights.h"
#include "base/checked_copy.h"
#include "base/eight_bits.h"
#include "base/tensor.h"

namespace calibatt {

/// Which elements of a matrix share a factor: value = element · scale. Rows of a weight are output channels, rows of an
/// input are tokens.
enum class Scales { kNone, kPerTensor, kPerRow };

/// What a linear layer's weights and inputs are in memory while it computes. Without scales, elements are values.
struct LinearFormat {
  LinearFormat() = default;
  LinearFormat(DType dtype, Scales weight_scales = Scales::kNone, Scales input_scales = Scales::kNone)
      : dtype(dtype), weight_scales(weight_scales), input_scales(input_scales) {}

  /// 8 bits, kE4M3 or kI8: a scale for each output channel of the weight and for each row of the input (EightBitOps).
  static LinearFormat eight_bits(DType elements) { return {elements, Scales::kPerRow, Scales::kPerRow}; }
  static LinearFormat e4m3() { return eight_bits(DType::kE4M3); }
  static LinearFormat int8() { return eight_bits(DType::kI8); }
  bool is_eight_bits() const { return calibatt::is_eight_bits(dtype); }

  DType dtype = DType::kF32;  ///< of weights and inputs: kF32, kBF16 or kF16; kE4M3 and kI8: with scales
  Scales weight_scales = Scales::kNone, input_scales = Scales::kNone;
};

/// Throws Error(kUsage), naming the backend, for what is neither without scales nor LinearFormat::eight_bits: to drop
/// scales would compute something else.
void require_known_format(const LinearFormat& format, std::string_view backend);

/// A tensor as a weight file has it, mapped and not yet looked at: it is checked to be finite while it is copied.
struct StoredTensor {
  Tensor tensor;                              ///< host; any float dtype
  std::string name;                           ///< FILE: tensor "…", for messages
  Tensor scales = {};                         ///< host F32: [1], or one per row; empty: elements are values
  std::function<void()> found_constant = {};  ///< to be told when all values are the same; null: that is nothing odd
};

/// What a linear layer is loaded from: matrices of one input width stacked along their rows (such as q, k and v), and
/// their biases likewise.
struct StoredLinear {
  std::vector<StoredTensor> weights;          ///< [out of each, in]
  std::vector<StoredTensor> biases;           ///< [out of each]; empty: none
  LinearFormat format;                        ///< of the layer; the file may have another
  std::shared_ptr<StreamedWeights> streamed;  ///< whose part the matrix becomes; null: it stays on the device
};

/// The tensors one below the other, converted to dtype (kF32, kBF16 or kF16). Throws Error(kNumeric) when one is not
/// finite, Error(kFormat) when one has scales, which nobody applies yet.
Tensor stack_rows(const std::vector<StoredTensor>& parts, DType dtype);

/// To be called with what was found when all of a tensor was read (or as much as to be sure that it is not finite).
/// Throws Error(kNumeric) that names it when it is not finite.
void accept_values(const StoredTensor& stored, const ValueCheck& found);
void require_unscaled(const StoredTensor& stored);  ///< throws Error(kFormat) that names it, if it has scales

}  // namespace calibatt
