#pragma once

#include <cstdint>

#include "base/tensor.h"

/// Pixels in and out of patches: squares of `patch` pixels whose colours are the channels of one pixel of a network,
/// in the order colour, column, row (ClipOps::start_rgb).
namespace calibatt::autoencoder {

constexpr int kColors = 3;

/// Video [frames, 3, H, W] F32 → frames [begin, begin + count) in patches: [H/p, count, W/p, 3p²].
Tensor gather_pixels(const Tensor& video, int patch, int64_t begin, int64_t count);

/// The last pixels.dim(0) frames of patches [H/p, frames, W/p, 3p²] F32 → pixels [count, 3, H, W], clamped to [-1, 1].
/// Returns false when there is a NaN.
bool scatter_pixels(const Tensor& group, int patch, Tensor& pixels);

}  // namespace calibatt::autoencoder
