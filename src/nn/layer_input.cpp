#include "nn/layer_input.h"

#include "nn/tensor_rows.h"

namespace calibatt {

EightBitRows row_range(const EightBitRows& rows, int64_t begin, int64_t count) {
  return {tensor_rows(rows.elements, begin, count), tensor_rows(rows.scales, begin, count)};
}

void apply_layer(Backend& backend, const LinearLayer& layer, const LayerInput& input, int64_t begin, int64_t count,
                 Tensor& out, const LinearEpilogue& epilogue) {
  if (in_eight_bits(layer)) {
    backend.eight_bit_ops().linear(layer, row_range(input.eight_bits, begin, count), out, epilogue);
  } else {
    backend.linear(layer, tensor_rows(input.wide, begin, count), out, epilogue);
  }
}

void apply_layer(Backend& backend, const LinearLayer& layer, const Tensor& x, EightBitRows& room, Tensor& out,
                 const LinearEpilogue& epilogue) {
  if (in_eight_bits(layer)) {
    backend.eight_bit_ops().quantise(x, Activation::kNone, room);
    backend.eight_bit_ops().linear(layer, room, out, epilogue);
  } else {
    backend.linear(layer, x, out, epilogue);
  }
}

}  // namespace calibatt
