#pragma once

#include <cstdint>
#include <span>

#include "base/dtype.h"

/// Element-wise kernels of the video autoencoder, compiled per instruction set and chosen at run time.
namespace calibatt::cpu {

struct ConstElements {
  const void* data = nullptr;
  DType dtype = DType::kF32;  ///< kF32 or kBF16
};
struct Elements {
  void* data = nullptr;
  DType dtype = DType::kF32;
};

/// Per pixel of gamma.size() channels: in / max(‖in‖, 1e-12) · √channels · gamma, then x·sigmoid(x) when `silu`.
void rms_norm_pixels(ConstElements in, Elements out, int64_t num_pixels, std::span<const float> gamma, bool silu);

/// sums[c] and squares[c]: over the pixels, of in and in², in float32; sums.size() channels. For a few thousand pixels
/// at a time, whose sums others add up in more digits.
void sum_channels(ConstElements in, int64_t num_pixels, std::span<float> sums, std::span<float> squares);

/// Per pixel of factor.size() channels: in · factor + shift, then x·sigmoid(x) when `silu`. May work in place.
void scale_shift_pixels(ConstElements in, Elements out, int64_t num_pixels, std::span<const float> factor,
                        std::span<const float> shift, bool silu);

/// Copies, rounding to nearest even where the dtype narrows.
void convert_elements(ConstElements in, Elements out, int64_t count);

}  // namespace calibatt::cpu
