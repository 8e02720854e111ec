#pragma once

#include <cstdint>
#include <span>
#include <vector>

/// Attention's inputs in 8 bits, on the host: what quantize.cu of the CUDA kernel does, written plainly.
namespace calibatt {

inline constexpr float kLargestE4m3 = 448.0f;

/// Keys and values of one head as rows [num_keys + num_key_blocks, head_dim]: the keys, then the summary of each key
/// block.
struct GatheredRows {
  std::vector<float> keys, values;
  std::vector<float> mean_value;  ///< [head_dim]: what the output lacks
};

/// The nearest number of e4m3 (four bits of exponent, three of mantissa; ties to even), 448 at most.
float rounded_to_e4m3(float value);

/// Multiples of a 127th of the largest magnitude: signed bytes with one scale.
void round_to_bytes(std::span<float> values);

/// Keys, less the mean of the first num_keys rows: bytes, a scale for each 64 rows (summaries begin anew). Values, less
/// their mean: e4m3, a scale for each column that makes the largest of the first num_keys rows 448. The mean of the
/// first num_keys rows stays what it was: what rounding moves it by is in mean_value.
void round_to_eight_bits(GatheredRows& rows, int64_t num_keys);

}  // namespace calibatt
