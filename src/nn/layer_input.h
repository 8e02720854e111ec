#pragma once

#include "backend/backend.h"

namespace calibatt {

inline bool in_eight_bits(const LinearLayer& layer) {
  return is_eight_bits(layer.dtype());
}

/// Rows [begin, begin + count).
EightBitRows row_range(const EightBitRows& rows, int64_t begin, int64_t count);

/// Memory for rows on their way into linear layers, in the form that each layer takes: of the run's type, or in 8 bits.
/// Who writes them for a layer writes the form of that layer alone.
struct LayerInput {
  Tensor wide;              ///< [rows, channels]
  EightBitRows eight_bits;  ///< the same; empty where no layer is in 8 bits
};

/// out = layer(rows [begin, begin + count) of input)
void apply_layer(Backend& backend, const LinearLayer& layer, const LayerInput& input, int64_t begin, int64_t count,
                 Tensor& out, const LinearEpilogue& epilogue = {});
/// out = layer(x), x of the run's type: quantised into `room`, of as many rows, where the layer is in 8 bits.
void apply_layer(Backend& backend, const LinearLayer& layer, const Tensor& x, EightBitRows& room, Tensor& out,
                 const LinearEpilogue& epilogue = {});

}  // namespace calibatt
