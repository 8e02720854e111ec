#include "models/autoencoder/layers.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace calibatt::autoencoder {

Clip run(const Layers& layers, CodingState& state, Clip x, const std::function<void(size_t)>& before_layer) {
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    if (before_layer) before_layer(layer);
    x = layers[layer]->forward(state, std::move(x));
  }
  return x;
}

ClipView view_of(const Tensor& tensor) {
  const int64_t frames = tensor.dim(1), width = tensor.dim(2), channels = tensor.dim(3);
  return {const_cast<void*>(tensor.raw()), DType::kF32, tensor.dim(0), frames, width, channels,
          frames * width * channels};
}

Clip as_input(CodingState& state, const ClipView& frames) {
  Clip clip = state.make(frames.height, frames.frames, frames.width, frames.channels);
  state.ops.copy(frames, clip.view());
  return clip;
}

void Norm::operator()(CodingState& state, const ClipView& in, const Tensor& offset, Activation activation,
                      const ClipView& out) const {
  if (groups_ == 0) {
    state.ops.rms_norm(in, pointer(offset), gamma_, activation, out);
    return;
  }
  GroupNorm norm{gamma_, beta_, groups_, epsilon_};
  if (state.rows.is_shared()) {
    norm.ranks = state.rows.ranks();
    norm.height_of_all = state.rows.height_of_all(in.height);
  }
  state.ops.group_norm(in, pointer(offset), norm, activation, out);
}

CausalConv3d Builder::convolution(const std::string& name, CausalConv3d::Geometry geometry, bool over_time) {
  std::vector<int64_t> shape = {geometry.out_channels, geometry.in_channels};
  if (over_time) shape.push_back(geometry.kernel_frames);
  shape.push_back(geometry.kernel_size);
  shape.push_back(geometry.kernel_size);
  if (geometry.history_frames() > 0) geometry.history = num_histories_++;
  return make(geometry, weights_.get(name + ".weight", shape),
              weights_.get_f32(name + ".bias", {geometry.out_channels}));
}

CausalConv3d Builder::make(const CausalConv3d::Geometry& geometry, const Tensor& weight, const Tensor& bias) {
  return CausalConv3d(backend_, geometry, weight.dtype() == DType::kF16 ? converted(weight, DType::kF32) : weight, bias,
                      compute_);
}

CausalConv3d Builder::causal(const std::string& name, int in_channels, int out_channels, int kernel) {
  CausalConv3d::Geometry geometry;
  geometry.in_channels = in_channels;
  geometry.out_channels = out_channels;
  geometry.kernel_frames = geometry.kernel_size = kernel;
  geometry.pad_before = geometry.pad_after = kernel / 2;
  if (kernel > 1) geometry.border = style_.border;
  return convolution(name, geometry, true);
}

CausalConv3d Builder::spatial(const std::string& name, int in_channels, int out_channels, int kernel, int pad_before,
                              int pad_after, int stride) {
  CausalConv3d::Geometry geometry;
  geometry.in_channels = in_channels;
  geometry.out_channels = out_channels;
  geometry.kernel_size = kernel;
  geometry.stride_size = stride;
  geometry.pad_before = pad_before;
  geometry.pad_after = pad_after;
  return convolution(name, geometry, false);
}

CausalConv3d Builder::temporal(const std::string& name, int in_channels, int out_channels, int stride) {
  CausalConv3d::Geometry geometry;
  geometry.in_channels = in_channels;
  geometry.out_channels = out_channels;
  geometry.kernel_frames = 3;
  geometry.stride_frames = stride;
  return convolution(name, geometry, true);
}

CausalConv3d Builder::linear(const std::string& name, int in_channels, int out_channels,
                             const std::vector<int64_t>& order) {
  CausalConv3d::Geometry geometry;
  geometry.in_channels = in_channels;
  geometry.out_channels = out_channels;
  const Tensor weight = weights_.get(name + ".weight", {out_channels, in_channels});
  const Tensor bias = weights_.get_f32(name + ".bias", {out_channels});
  if (order.empty()) return make(geometry, weight, bias);
  CALIBATT_ASSERT(static_cast<int>(order.size()) == out_channels);
  Tensor ordered(weight.dtype(), weight.shape()), ordered_bias(DType::kF32, bias.shape());
  const size_t row_bytes = weight.size_bytes() / order.size();
  for (size_t row = 0; row < order.size(); ++row) {
    std::memcpy(static_cast<char*>(ordered.raw()) + row * row_bytes,
                static_cast<const char*>(weight.raw()) + static_cast<size_t>(order[row]) * row_bytes, row_bytes);
    ordered_bias.f32()[row] = bias.f32()[order[row]];
  }
  return make(geometry, ordered, ordered_bias);
}

Tensor Builder::vector(const std::string& name, const std::vector<int64_t>& shape) {
  const int64_t channels = shape[0];
  return backend_.from_host(weights_.get_f32(name, shape).reshaped({channels}));
}

Norm Builder::norm(const std::string& name, int channels) {
  if (style_.norm_groups == 0) return Norm(vector(name + ".gamma", {channels, 1, 1, 1}));
  return {vector(name + ".weight", {channels}), vector(name + ".bias", {channels}), style_.norm_groups,
          style_.norm_epsilon};
}

Norm Builder::image_norm(const std::string& name, int channels) {
  return Norm(vector(name + ".gamma", {channels, 1, 1}));
}

void Builder::leave_out(const CausalConv3d& convolution) {
  const Tensor& bias = convolution.bias();
  missing_.resize(static_cast<size_t>(bias.size()), 0.0f);
  for (size_t c = 0; c < missing_.size(); ++c) missing_[c] += bias.f32()[c];
}

Tensor Builder::missing() const {
  if (missing_.empty()) return {};
  Tensor host(DType::kF32, {static_cast<int64_t>(missing_.size())});
  std::copy(missing_.begin(), missing_.end(), host.f32());
  return backend_.from_host(host);
}

Tensor Builder::settle() {
  Tensor result = missing();
  missing_.clear();
  return result;
}

ResidualBlock::ResidualBlock(Builder& build, const std::string& name, int in_channels, int out_channels)
    : norm1_(build.norm(name + ".norm1" + build.style().norm_suffix, in_channels)),
      conv1_(build.causal(name + ".conv1" + build.style().causal_suffix, in_channels, out_channels, 3)),
      norm2_(build.norm(name + ".norm2" + build.style().norm_suffix, out_channels)),
      conv2_(build.causal(name + ".conv2" + build.style().causal_suffix, out_channels, out_channels, 3)) {
  if (in_channels != out_channels) {
    shortcut_ = std::make_unique<CausalConv3d>(build.causal(name + ".conv_shortcut", in_channels, out_channels, 1));
  }
  adds_bias_ = !build.defers_bias();
  if (adds_bias_) return;
  if (shortcut_) {  // reads x as it is
    missing_ = build.settle();
    build.leave_out(*shortcut_);
  } else {
    offset1_ = build.missing();
  }
  offset2_ = build.to_backend(conv1_.bias());
  build.leave_out(conv2_);
}

Clip ResidualBlock::forward(CodingState& state, Clip x) const {
  const ClipView size = x.view();
  settle(state, missing_, size);
  CausalConv3d::Input input = conv1_.prepare(state, size.height, size.frames, size.width);
  norm1_(state, x.view(), offset1_, Activation::kSiLU, input.frames);
  Clip out = shortcut_ ? (*shortcut_)(state, x.view(), adds_bias_) : std::move(x);
  Clip hidden = state.make(size.height, size.frames, size.width, conv1_.geometry().out_channels);
  conv1_.run(state, std::move(input), hidden.view(), false, adds_bias_);

  input = conv2_.prepare(state, size.height, size.frames, size.width);
  norm2_(state, hidden.view(), offset2_, Activation::kSiLU, input.frames);
  hidden = Clip();
  conv2_.run(state, std::move(input), out.view(), /*accumulate=*/true, adds_bias_);
  return out;
}

}  // namespace calibatt::autoencoder
