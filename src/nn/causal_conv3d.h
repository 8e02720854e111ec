#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "backend/clip_ops.h"
#include "base/tensor.h"
#include "nn/row_shard.h"

namespace calibatt {

/// A dense ClipView with its memory. Moves, never copies: a layer that takes a Clip may overwrite it.
class Clip {
 public:
  Clip() = default;
  Clip(Tensor storage, const ClipView& view) : storage_(std::move(storage)), view_(view) {}
  Clip(Clip&& other) noexcept : storage_(std::exchange(other.storage_, Tensor())), view_(other.view_) {}
  Clip& operator=(Clip&& other) noexcept {
    storage_ = std::exchange(other.storage_, Tensor());
    view_ = other.view_;
    return *this;
  }

  bool empty() const { return storage_.empty(); }
  const ClipView& view() const { return view_; }
  const Tensor& storage() const { return storage_; }

 private:
  Tensor storage_;
  ClipView view_;
};

/// Memory for activations, used again as soon as a Clip is gone: coding a long video allocates in its first two groups
/// only. A backend with a pool of its own is asked each time instead.
class ClipPool {
 public:
  explicit ClipPool(Backend& backend);
  Clip make(DType dtype, int64_t height, int64_t frames, int64_t width, int64_t channels);

 private:
  struct Buffers;
  std::shared_ptr<Buffers> buffers_;
};

/// What is carried while one clip is coded group by group: the last input frames of every convolution over time.
struct CodingState {
  CodingState(Backend& backend, DType compute, int num_histories);

  Backend& backend;
  ClipOps& ops;
  DType compute;
  ClipPool pool;
  bool first_group = true;      ///< the first group is the first frame alone
  std::vector<Clip> shortcuts;  ///< what layers keep of a group for a later layer, the last one behind
  std::vector<Clip> histories;  ///< by CausalConv3d::Geometry::history; empty: nothing came before
  RowShard rows;                ///< of each clip, which other ranks have the rest of

  Clip make(int64_t height, int64_t frames, int64_t width, int64_t channels) {
    return pool.make(compute, height, frames, width, channels);
  }
};

/// A convolution over time and space that sees no later frame: in front of each group of frames it reads the last
/// frames of the group before. Square in space. Where ranks share the rows of a clip, it takes what it reads beyond its
/// own from its neighbours.
class CausalConv3d {
 public:
  /// What lies outside the picture, and before the clip's first frame.
  enum class Border {
    kZeros,
    kReplicated,  ///< the nearest pixel; the first frame
  };

  struct Geometry {
    int in_channels = 0, out_channels = 0;
    int kernel_frames = 1, kernel_size = 1;
    int stride_frames = 1, stride_size = 1;
    int pad_before = 0, pad_after = 0;  ///< rows above and below, columns left and right
    Border border = Border::kZeros;
    int history = -1;  ///< its place in CodingState::histories; -1 when kernel_frames is 1

    int history_frames() const { return kernel_frames - stride_frames; }
  };

  /// Where the caller puts the new frames of a group: inside a buffer with a border of zeros and the history around
  /// them. A border that is replicated is part of `frames`: the operators that write with a border fill it.
  struct Input {
    Clip buffer;
    ClipView frames;
  };

  /// weight: host, [out, in, kernel_frames, kernel_size, kernel_size] (any rank of that many elements); bias: host F32
  /// [out].
  CausalConv3d(Backend& backend, const Geometry& geometry, const Tensor& weight, const Tensor& bias, DType compute);

  const Geometry& geometry() const { return geometry_; }
  const Tensor& bias() const { return bias_; }  ///< host F32 [out]

  Input prepare(CodingState& state, int64_t height, int64_t frames, int64_t width) const;
  /// Consumes the input; keeps its last frames as history. `accumulate`: adds to what `out` holds.
  /// Without `add_bias` the bias is left to the caller.
  void run(CodingState& state, Input input, const ClipView& out, bool accumulate = false, bool add_bias = true) const;

  /// The whole of it for frames that are somewhere else already; `out` is made. Not for a replicated border.
  Clip operator()(CodingState& state, const ClipView& in, bool add_bias = true) const;
  /// Takes the last frames of `in` as history without computing anything.
  void remember(CodingState& state, const ClipView& in) const;

  int64_t height_out(int64_t height) const { return size_out(height); }
  int64_t width_out(int64_t width) const { return size_out(width); }
  int64_t frames_out(int64_t frames) const {
    return (frames + geometry_.history_frames() - geometry_.kernel_frames) / geometry_.stride_frames + 1;
  }

 private:
  int64_t size_out(int64_t size) const {
    return (size + geometry_.pad_before + geometry_.pad_after - geometry_.kernel_size) / geometry_.stride_size + 1;
  }
  bool replicates() const { return geometry_.border == Border::kReplicated; }
  /// The buffer's frames as far as the history keeps them.
  ClipView kept(const ClipView& buffer) const;
  bool reads_in_place() const { return geometry_.history < 0 && geometry_.kernel_size == 1; }

  Geometry geometry_;
  Tensor bias_;
  std::unique_ptr<Convolution> convolution_;
};

}  // namespace calibatt
