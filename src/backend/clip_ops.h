#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>

#include "backend/activation.h"
#include "base/tensor.h"

namespace calibatt {

/// A piece of video inside a network: [height, frames, width, channels], each pixel row with all its frames contiguous.
/// Rows come first, before time, so that any range of rows (with its halo) of all the frames is one dense array: that
/// is how a convolution over time and space is cut into independent pieces without copying.
struct ClipView {
  void* data = nullptr;
  DType dtype = DType::kF32;  ///< kF32 or kBF16
  int64_t height = 0, frames = 0, width = 0, channels = 0;
  int64_t row_stride = 0;  ///< elements from one row to the next; frames · width · channels when dense

  int64_t frame_stride() const { return width * channels; }
  bool dense() const { return row_stride == frames * width * channels; }
  void* at(int64_t row, int64_t frame) const {
    return static_cast<char*>(data) +
           (row * row_stride + frame * frame_stride()) * static_cast<int64_t>(dtype_size(dtype));
  }
  ClipView frame_range(int64_t begin, int64_t count) const {
    return {at(0, begin), dtype, height, count, width, channels, row_stride};
  }
  ClipView row_range(int64_t begin, int64_t count) const {
    return {at(begin, 0), dtype, count, frames, width, channels, row_stride};
  }
};

/// Axis order of the three numbers: rows, frames, columns, as in ClipView.
struct ConvolutionSpec {
  int64_t in_channels = 0, out_channels = 0;
  std::array<int64_t, 3> kernel = {1, 1, 1};
  std::array<int64_t, 3> stride = {1, 1, 1};
  int64_t pad_left = 0, pad_right = 0;  ///< zero columns; zero rows and earlier frames are part of the input
};

/// A convolution whose weights are where and how the backend wants them.
class Convolution {
 public:
  virtual ~Convolution() = default;
  virtual const ConvolutionSpec& spec() const = 0;
  /// out = conv(in) + bias, or out += conv(in) + bias when `accumulate`. `in` is dense, of the weights' dtype, and
  /// holds the padding of rows and frames: (height_out − 1)·stride + kernel rows, likewise frames. `out` is dense, kF32
  /// or of the weights' dtype.
  virtual void run(const ClipView& in, const ClipView& out, bool accumulate) const = 0;
};

/// The operators of a video autoencoder. `in` and `out` of the element-wise ones may differ in dtype and row stride.
class ClipOps {
 public:
  virtual ~ClipOps() = default;

  /// False when this processor would be slow at it, or cannot do it at all: ask for kF32 then.
  virtual bool supports(DType compute) const = 0;

  /// weight: [out, in, frames, rows, columns], F32 or BF16 (torch's Conv3d order), bias: [out] F32; both on the host
  /// and kept.
  virtual std::unique_ptr<Convolution> make_convolution(const ConvolutionSpec& spec, const Tensor& weight,
                                                        const Tensor& bias, DType compute) = 0;
  /// `activation`: kNone or kSiLU. out[pixel] = activation(in[pixel] / max(‖in[pixel]‖, 1e-12) · √channels · gamma)
  /// (WanRMS_norm)
  virtual void rms_norm(const ClipView& in, std::span<const float> gamma, Activation activation,
                        const ClipView& out) = 0;
  /// Nearest neighbour, twice the rows and columns. With time_factor 2 the input has twice the channels of the output
  /// and frame t becomes frames 2t (its first half of the channels) and 2t + 1 (its second half).
  virtual void upsample(const ClipView& in, int time_factor, const ClipView& out) = 0;
  virtual void copy(const ClipView& in, const ClipView& out) = 0;  ///< with conversion between dtypes
  virtual void zero(const ClipView& out) = 0;
};

}  // namespace calibatt
