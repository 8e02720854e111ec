#include "nn/causal_conv3d.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "base/error.h"

namespace calibatt {

struct ClipPool::Buffers {
  explicit Buffers(Backend& backend) : backend(backend), needed(!backend.clip_ops().pools_memory()) {}

  Backend& backend;
  const bool needed;
  std::mutex mutex;
  std::vector<Tensor> free;  // U8, by ascending size

  Tensor take(int64_t size_bytes) {
    const std::lock_guard lock(mutex);
    const auto fits = std::find_if(free.begin(), free.end(), [&](const Tensor& t) { return t.size() >= size_bytes; });
    if (fits == free.end()) return backend.empty(DType::kU8, {size_bytes});
    Tensor buffer = std::move(*fits);
    free.erase(fits);
    return buffer;
  }

  void give_back(Tensor buffer) {
    const std::lock_guard lock(mutex);
    const auto larger =
        std::find_if(free.begin(), free.end(), [&](const Tensor& t) { return t.size() > buffer.size(); });
    free.insert(larger, std::move(buffer));
  }
};

ClipPool::ClipPool(Backend& backend) : buffers_(std::make_shared<Buffers>(backend)) {}

Clip ClipPool::make(DType dtype, int64_t height, int64_t frames, int64_t width, int64_t channels) {
  CALIBATT_ASSERT(height > 0 && frames > 0 && width > 0 && channels > 0);
  const std::vector<int64_t> shape = {height, frames, width, channels};
  if (!buffers_->needed) {
    const Tensor storage = buffers_->backend.empty(dtype, shape);
    return {storage,
            {const_cast<void*>(storage.raw()), dtype, height, frames, width, channels, frames * width * channels}};
  }
  Tensor buffer = buffers_->take(height * frames * width * channels * static_cast<int64_t>(dtype_size(dtype)));
  void* const data = buffer.raw();
  const std::shared_ptr<void> owner(
      data, [buffers = buffers_, buffer = std::move(buffer)](void*) mutable { buffers->give_back(std::move(buffer)); });
  return {Tensor(dtype, shape, owner), {data, dtype, height, frames, width, channels, frames * width * channels}};
}

CodingState::CodingState(Backend& backend, DType compute, int num_histories)
    : backend(backend),
      ops(backend.clip_ops()),
      compute(compute),
      pool(backend),
      histories(static_cast<size_t>(num_histories)) {}

CausalConv3d::CausalConv3d(Backend& backend, const Geometry& geometry, const Tensor& weight, const Tensor& bias,
                           DType compute)
    : geometry_(geometry), bias_(bias) {
  const Geometry& g = geometry_;
  CALIBATT_ASSERT((g.history >= 0) == (g.history_frames() > 0));
  ConvolutionSpec spec;
  spec.in_channels = g.in_channels;
  spec.out_channels = g.out_channels;
  spec.kernel = {g.kernel_size, g.kernel_frames, g.kernel_size};
  spec.stride = {g.stride_size, g.stride_frames, g.stride_size};
  spec.pad_left = replicates() ? 0 : g.pad_before;  // else columns of the input
  spec.pad_right = replicates() ? 0 : g.pad_after;
  convolution_ = backend.clip_ops().make_convolution(
      spec, weight.reshaped({g.out_channels, g.in_channels, g.kernel_frames, g.kernel_size, g.kernel_size}), bias,
      compute);
}

ClipView CausalConv3d::kept(const ClipView& buffer) const {
  if (replicates()) return buffer;
  return buffer.row_range(geometry_.pad_before, buffer.height - geometry_.pad_before - geometry_.pad_after);
}

CausalConv3d::Input CausalConv3d::prepare(CodingState& state, int64_t height, int64_t frames, int64_t width) const {
  const Geometry& g = geometry_;
  const int64_t earlier = g.history_frames(), border = g.pad_before + g.pad_after;
  Clip buffer = state.make(height + border, earlier + frames, width + (replicates() ? border : 0), g.in_channels);
  const ClipView& all = buffer.view();
  if (!replicates()) {
    if (g.pad_before > 0) state.ops.zero(all.row_range(0, g.pad_before));
    if (g.pad_after > 0) state.ops.zero(all.row_range(g.pad_before + height, g.pad_after));
  }
  const ClipView inside = kept(all);
  if (earlier > 0) {
    const Clip& history = state.histories[static_cast<size_t>(g.history)];
    if (!history.empty()) {
      state.ops.copy(history.view(), inside.frame_range(0, earlier));
    } else if (!replicates()) {  // else they are copies of what the caller puts behind them
      state.ops.zero(inside.frame_range(0, earlier));
    }
  }
  const ClipView fresh = inside.frame_range(earlier, frames);
  return {std::move(buffer), fresh};
}

void CausalConv3d::run(CodingState& state, Input input, const ClipView& out, bool accumulate, bool add_bias) const {
  const int64_t earlier = geometry_.history_frames();
  if (geometry_.history >= 0 && replicates() && state.histories[static_cast<size_t>(geometry_.history)].empty()) {
    for (int64_t frame = 0; frame < earlier; ++frame) {
      state.ops.copy(input.frames.frame_range(0, 1), input.buffer.view().frame_range(frame, 1));
    }
  }
  if (state.rows.is_shared() && geometry_.pad_before > 0) {
    CALIBATT_ASSERT(geometry_.pad_before == geometry_.pad_after && geometry_.stride_size == 1);
    state.rows.take_border(input.buffer.view(), geometry_.pad_before);
  }
  convolution_->run(input.buffer.view(), out, accumulate, add_bias);
  if (geometry_.history < 0) return;
  const ClipView all = kept(input.buffer.view());
  const ClipView last = all.frame_range(all.frames - earlier, earlier);
  Clip& history = state.histories[static_cast<size_t>(geometry_.history)];
  if (history.empty()) history = state.make(last.height, last.frames, last.width, last.channels);
  state.ops.copy(last, history.view());
}

Clip CausalConv3d::operator()(CodingState& state, const ClipView& in, bool add_bias) const {
  Clip out = state.make(height_out(in.height), frames_out(in.frames), width_out(in.width), geometry_.out_channels);
  if (reads_in_place() && in.dense() && in.dtype == state.compute) {
    convolution_->run(in, out.view(), false, add_bias);
    return out;
  }
  CALIBATT_ASSERT(!replicates());
  Input input = prepare(state, in.height, in.frames, in.width);
  state.ops.copy(in, input.frames);
  run(state, std::move(input), out.view(), false, add_bias);
  return out;
}

void CausalConv3d::remember(CodingState& state, const ClipView& in) const {
  const int64_t kept = geometry_.history_frames();
  CALIBATT_ASSERT(geometry_.history >= 0 && in.frames >= kept);
  Clip& history = state.histories[static_cast<size_t>(geometry_.history)];
  if (history.empty()) history = state.make(in.height, kept, in.width, in.channels);
  state.ops.copy(in.frame_range(in.frames - kept, kept), history.view());
}

}  // namespace calibatt
