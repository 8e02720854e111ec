#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "backend/activation.h"
#include "backend/communicator.h"
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
  /// out = conv(in) + bias, or out += conv(in) + bias when `accumulate`; without the bias when not `add_bias`. `in` is
  /// dense, of the weights' dtype, and holds the padding of rows and frames: (height_out − 1)·stride + kernel rows,
  /// likewise frames. `out` is dense, kF32 or of the weights' dtype.
  virtual void run(const ClipView& in, const ClipView& out, bool accumulate, bool add_bias = true) const = 0;
};

/// Frames on their way to the host, see ClipOps::start_rgb.
class PendingRgb {
 public:
  virtual ~PendingRgb() = default;
  /// Waits for them; to be called once. `rgb`: host, [frames, height, width, 3]. False when there is a NaN among them.
  virtual bool finish(uint8_t* rgb) = 0;
};

/// A norm over the pixels of a frame and groups of channels, all of one size (torch's GroupNorm).
struct GroupNorm {
  const Tensor& gamma;  ///< [channels] F32
  const Tensor& beta;
  int groups = 1;
  float epsilon = 0;  ///< added to the variance
  /// Where each of several backends has some of the frame's rows: their group, and the rows of all. Null: none.
  Communicator* ranks = nullptr;
  int64_t height_of_all = 0;

  int64_t height(const ClipView& in) const { return ranks != nullptr ? height_of_all : in.height; }
};

/// The operators of a video autoencoder. `in` and `out` of the element-wise ones may differ in dtype and row stride.
/// Clips and tensors live where the backend put them, unless a comment says "host".
class ClipOps {
 public:
  virtual ~ClipOps() = default;

  /// True when Device::empty takes memory from a pool and is as cheap as a pool of our own (ClipPool) would be.
  virtual bool pools_memory() const { return false; }

  /// True when it saves time to leave the bias of a convolution to the norm that reads its result (`offset`).
  virtual bool defers_bias() const { return false; }

  /// Latent frames that a decoder had best take at a time (the first one comes alone always).
  virtual int64_t latent_frames_at_once() const { return 1; }

  /// False when this processor would be slow at it, or cannot do it at all: ask for kF32 then.
  virtual bool supports(DType compute) const = 0;

  /// weight: [out, in, frames, rows, columns], F32 or BF16 (torch's Conv3d order), bias: [out] F32; both on the host
  /// and kept.
  virtual std::unique_ptr<Convolution> make_convolution(const ConvolutionSpec& spec, const Tensor& weight,
                                                        const Tensor& bias, DType compute) = 0;
  /// `activation`: kNone or kSiLU. out[pixel] = activation(in[pixel] / max(‖in[pixel]‖, 1e-12) · √channels · gamma)
  /// (WanRMS_norm)
  /// gamma: [channels] F32. offset: [channels] F32, added to `in` before; null: none.
  virtual void rms_norm(const ClipView& in, const Tensor* offset, const Tensor& gamma, Activation activation,
                        const ClipView& out) = 0;
  /// out[frame] = activation((x − mean) / √(variance + ε) · gamma + beta), x = in[frame] + offset, mean and variance of
  /// each group of channels over all pixels of the frame. `out` may have a border, as many more rows above, below, and
  /// columns left and right: they become copies of the nearest pixels. channels: a multiple of groups, and of 8. No
  /// overlap.
  virtual void group_norm(const ClipView& in, const Tensor* offset, const GroupNorm& norm, Activation activation,
                          const ClipView& out) = 0;
  /// x = silu(x + offset); offset: as in rms_norm. channels: a multiple of 8.
  virtual void silu(const Tensor* offset, const ClipView& x) = 0;
  /// Channels become pixels: out[row · s + y, frame · t + i, column · s + x, c] = in[row, frame, column, k · channels +
  /// c], k = (i · s + y) · s + x, s the space_factor, t the time_factor, channels those of `out`, a multiple of 8. The
  /// same for offset ([channels of in] F32, null: none), which is added. Both of one dtype; `in` may be overwritten.
  virtual void depth_to_space(const ClipView& in, const Tensor* offset, int time_factor, int space_factor,
                              const ClipView& out) = 0;
  /// Nearest neighbour, twice the rows and columns. With time_factor 2 the input has twice the channels of the output
  /// and frame t becomes frames 2t (its first half of the channels) and 2t + 1 (its second half).
  virtual void upsample(const ClipView& in, int time_factor, const ClipView& out) = 0;
  /// out += the channels of `in` repeated until they suffice, made to pixels as torch's pixel shuffle does (DupUp3D of
  /// Wan 2.2): out[row · s + y, frame, column · s + x, c] += in[row, f / t, column, n / repeats], n = ((c · t + f mod
  /// t) · s + y) · s + x, f = frame + first_frame, repeats = channels of out · t · s² / channels of in.
  virtual void add_repeated(const ClipView& in, int time_factor, int space_factor, int64_t first_frame,
                            const ClipView& out) = 0;
  /// out += means over the pixels of boxes and over neighbouring channels (AvgDown3D of Wan 2.2): of the size numbers n
  /// = out channel · size …, each n = ((c · t + i) · s + y) · s + x for in[row · s + y, frame · t + i, column · s + x,
  /// c], size = channels of in · t · s² / channels of out. Frames that `in` lacks for its first box are zeros before
  /// it.
  virtual void add_averaged(const ClipView& in, int time_factor, int space_factor, const ClipView& out) = 0;
  virtual void copy(const ClipView& in, const ClipView& out) = 0;  ///< with conversion between dtypes
  virtual void zero(const ClipView& out) = 0;
  virtual void add_bias(const Tensor& bias, const ClipView& x) = 0;  ///< x += bias, [channels] F32; x is dense
  /// Self-attention of one head among the pixels of one frame, scaled by 1/√channels. qkv: dense, one frame, 3 ·
  /// channels (queries, keys, values, one behind the other); out: dense, of the same dtype: the frame's rows from
  /// first_row on, as many as it has.
  virtual void attention(const ClipView& qkv, int64_t first_row, const ClipView& out) = 0;
  /// Patches [rows, frames, columns, 3 · patch²] F32 in [-1, 1] (others are clamped), channels ordered (colour, column,
  /// row), → RGB bytes, rounded to nearest even. `patches` must stay as it is until finish() has returned, which the
  /// caller may put off while it has the next frames computed.
  virtual std::unique_ptr<PendingRgb> start_rgb(const ClipView& patches, int patch) = 0;
};

}  // namespace calibatt
