#include "models/wan/vae_layers.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace calibatt::wan_vae {
namespace {

/// Null for an empty tensor.
const Tensor* pointer(const Tensor& tensor) {
  return tensor.empty() ? nullptr : &tensor;
}

/// Adds biases that were left out to a clip that something other than a norm reads.
void settle(CodingState& state, const Tensor& missing, const ClipView& x) {
  if (!missing.empty()) state.ops.add_bias(missing, x);
}

class ConvolutionLayer : public Layer {
 public:
  explicit ConvolutionLayer(CausalConv3d convolution) : convolution_(std::move(convolution)) {}
  Clip forward(CodingState& state, Clip x) const override { return convolution_(state, x.view()); }

 private:
  CausalConv3d convolution_;
};

/// x + conv2(silu(norm2(conv1(silu(norm1(x)))))), x through a 1×1×1 convolution where the channels change.
class ResidualBlock : public Layer {
 public:
  ResidualBlock(Builder& build, const std::string& name, int in_channels, int out_channels)
      : norm1_(build.gamma(name + ".norm1", in_channels, false)),
        conv1_(build.causal(name + ".conv1", in_channels, out_channels, 3)),
        norm2_(build.gamma(name + ".norm2", out_channels, false)),
        conv2_(build.causal(name + ".conv2", out_channels, out_channels, 3)) {
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

  Clip forward(CodingState& state, Clip x) const override {
    const ClipView size = x.view();
    settle(state, missing_, size);
    CausalConv3d::Input input = conv1_.prepare(state, size.height, size.frames, size.width);
    state.ops.rms_norm(x.view(), pointer(offset1_), norm1_, Activation::kSiLU, input.frames);
    Clip out = shortcut_ ? (*shortcut_)(state, x.view(), adds_bias_) : std::move(x);
    Clip hidden = state.make(size.height, size.frames, size.width, conv1_.geometry().out_channels);
    conv1_.run(state, std::move(input), hidden.view(), false, adds_bias_);

    input = conv2_.prepare(state, size.height, size.frames, size.width);
    state.ops.rms_norm(hidden.view(), pointer(offset2_), norm2_, Activation::kSiLU, input.frames);
    hidden = Clip();
    conv2_.run(state, std::move(input), out.view(), /*accumulate=*/true, adds_bias_);
    return out;
  }

 private:
  Tensor norm1_;
  CausalConv3d conv1_;
  Tensor norm2_;
  CausalConv3d conv2_;
  std::unique_ptr<CausalConv3d> shortcut_;
  bool adds_bias_ = true;
  Tensor missing_, offset1_, offset2_;
};

/// Self-attention of one head among the pixels of each frame.
class AttentionBlock : public Layer {
 public:
  AttentionBlock(Builder& build, const std::string& name, int channels)
      : channels_(channels),
        norm_(build.gamma(name + ".norm", channels, true)),
        to_qkv_(build.spatial(name + ".to_qkv", channels, 3 * channels, 1, 0, 0, 1)),
        projection_(build.spatial(name + ".proj", channels, channels, 1, 0, 0, 1)),
        adds_bias_(!build.defers_bias()),
        offset_(build.missing()) {
    if (!adds_bias_) build.leave_out(projection_);
  }

  Clip forward(CodingState& state, Clip x) const override {
    const ClipView size = x.view();
    Clip attended = state.make(size.height, size.frames, size.width, channels_);
    state.ops.rms_norm(x.view(), pointer(offset_), norm_, Activation::kNone, attended.view());
    const Clip qkv = to_qkv_(state, attended.view());
    if (size.frames == 1) {
      state.ops.attention(qkv.view(), attended.view());
    } else {  // the pixels of one frame have to follow one another
      const Clip frame_qkv = state.make(size.height, 1, size.width, 3 * channels_);
      const Clip frame_attended = state.make(size.height, 1, size.width, channels_);
      for (int64_t frame = 0; frame < size.frames; ++frame) {
        state.ops.copy(qkv.view().frame_range(frame, 1), frame_qkv.view());
        state.ops.attention(frame_qkv.view(), frame_attended.view());
        state.ops.copy(frame_attended.view(), attended.view().frame_range(frame, 1));
      }
    }
    projection_.run(state, {std::move(attended), {}}, x.view(), /*accumulate=*/true, adds_bias_);
    return x;
  }

 private:
  int channels_;
  Tensor norm_;
  CausalConv3d to_qkv_, projection_;
  bool adds_bias_;
  Tensor offset_;
};

/// Twice the rows and columns, half the channels; with `over_time` also twice the frames, all but the first of the
/// clip.
class Upsample : public Layer {
 public:
  Upsample(Builder& build, const std::string& name, int channels, bool over_time)
      : spatial_(build.spatial(name + ".resample.1", channels, channels / 2, 3, 1, 1, 1)),
        adds_bias_(!build.defers_bias()),
        missing_(build.settle()) {
    if (!adds_bias_) build.leave_out(spatial_);
    if (over_time) {
      temporal_ = std::make_unique<CausalConv3d>(build.temporal(name + ".time_conv", channels, 2 * channels, 1));
    }
  }

  Clip forward(CodingState& state, Clip x) const override {
    settle(state, missing_, x.view());
    // The first frame stays one, and the convolution over time never sees it: its history begins after it.
    const bool double_frames = temporal_ && !state.first_group;
    if (double_frames) x = (*temporal_)(state, x.view());
    const ClipView size = x.view();
    const int time_factor = double_frames ? 2 : 1;
    const int64_t frames = size.frames * time_factor;
    CausalConv3d::Input input = spatial_.prepare(state, 2 * size.height, frames, 2 * size.width);
    state.ops.upsample(x.view(), time_factor, input.frames);
    x = Clip();
    Clip out = state.make(2 * size.height, frames, 2 * size.width, spatial_.geometry().out_channels);
    spatial_.run(state, std::move(input), out.view(), false, adds_bias_);
    return out;
  }

 private:
  CausalConv3d spatial_;
  bool adds_bias_;
  Tensor missing_;
  std::unique_ptr<CausalConv3d> temporal_;
};

/// Half the rows and columns; with `over_time` also half the frames, all but the first of the clip.
class Downsample : public Layer {
 public:
  Downsample(Builder& build, const std::string& name, int channels, bool over_time)
      : spatial_(build.spatial(name + ".resample.1", channels, channels, 3, 0, 1, 2)), missing_(build.settle()) {
    if (over_time) {
      temporal_ = std::make_unique<CausalConv3d>(build.temporal(name + ".time_conv", channels, channels, 2));
    }
  }

  Clip forward(CodingState& state, Clip x) const override {
    settle(state, missing_, x.view());
    x = spatial_(state, x.view());
    if (!temporal_) return x;
    if (!state.first_group) return (*temporal_)(state, x.view());
    temporal_->remember(state, x.view());
    return x;
  }

 private:
  CausalConv3d spatial_;
  Tensor missing_;
  std::unique_ptr<CausalConv3d> temporal_;
};

/// norm, SiLU, convolution: the end of both halves.
class Head : public Layer {
 public:
  Head(Builder& build, const std::string& name, int in_channels, int out_channels)
      : norm_(build.gamma(name + ".norm_out", in_channels, false)),
        offset_(build.settle()),
        convolution_(build.causal(name + ".conv_out", in_channels, out_channels, 3)) {}

  Clip forward(CodingState& state, Clip x) const override {
    const ClipView size = x.view();
    CausalConv3d::Input input = convolution_.prepare(state, size.height, size.frames, size.width);
    state.ops.rms_norm(x.view(), pointer(offset_), norm_, Activation::kSiLU, input.frames);
    Clip out = state.pool.make(DType::kF32, size.height, size.frames, size.width, convolution_.geometry().out_channels);
    convolution_.run(state, std::move(input), out.view());
    return out;
  }

 private:
  Tensor norm_, offset_;
  CausalConv3d convolution_;
};

template <class T, class... Arguments>
void add(Layers& layers, Arguments&&... arguments) {
  layers.push_back(std::make_unique<T>(std::forward<Arguments>(arguments)...));
}

void add_middle(Layers& layers, Builder& build, const std::string& name, int channels) {
  add<ResidualBlock>(layers, build, name + ".resnets.0", channels, channels);
  add<AttentionBlock>(layers, build, name + ".attentions.0", channels);
  add<ResidualBlock>(layers, build, name + ".resnets.1", channels, channels);
}

}  // namespace

CausalConv3d Builder::convolution(const std::string& name, CausalConv3d::Geometry geometry, bool over_time) {
  std::vector<int64_t> shape = {geometry.out_channels, geometry.in_channels};
  if (over_time) shape.push_back(geometry.kernel_frames);
  shape.push_back(geometry.kernel_size);
  shape.push_back(geometry.kernel_size);
  if (geometry.history_frames() > 0) geometry.history = num_histories_++;
  const Tensor weight = weights_.get(name + ".weight", shape);
  return CausalConv3d(backend_, geometry, weight.dtype() == DType::kF16 ? converted(weight, DType::kF32) : weight,
                      weights_.get_f32(name + ".bias", {geometry.out_channels}), compute_);
}

CausalConv3d Builder::causal(const std::string& name, int in_channels, int out_channels, int kernel) {
  CausalConv3d::Geometry geometry;
  geometry.in_channels = in_channels;
  geometry.out_channels = out_channels;
  geometry.kernel_frames = geometry.kernel_size = kernel;
  geometry.pad_before = geometry.pad_after = kernel / 2;
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

Tensor Builder::gamma(const std::string& name, int channels, bool per_image) {
  std::vector<int64_t> shape = {channels, 1, 1};
  if (!per_image) shape.push_back(1);
  return backend_.from_host(weights_.get_f32(name + ".gamma", shape).reshaped({channels}));
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

Layers make_encoder(Builder& build, const WanVaeConfig& config) {
  Layers layers;
  int channels = config.base_dim;
  add<ConvolutionLayer>(layers, build.causal("encoder.conv_in", config.in_channels, channels, 3));
  int index = 0;
  const auto name = [&] { return "encoder.down_blocks." + std::to_string(index++); };
  for (int level = 0; level < config.levels(); ++level) {
    const int out_channels = config.base_dim * config.dim_mult[level];
    for (int block = 0; block < config.num_res_blocks; ++block) {
      add<ResidualBlock>(layers, build, name(), channels, out_channels);
      channels = out_channels;
    }
    if (level + 1 < config.levels()) {
      add<Downsample>(layers, build, name(), channels, config.temporal_downsample[level]);
    }
  }
  add_middle(layers, build, "encoder.mid_block", channels);
  add<Head>(layers, build, "encoder", channels, 2 * config.z_dim);
  add<ConvolutionLayer>(layers, build.causal("quant_conv", 2 * config.z_dim, 2 * config.z_dim, 1));
  return layers;
}

Layers make_decoder(Builder& build, const WanVaeConfig& config) {
  Layers layers;
  int channels = config.decoder_base_dim * config.dim_mult.back();
  add<ConvolutionLayer>(layers, build.causal("post_quant_conv", config.z_dim, config.z_dim, 1));
  add<ConvolutionLayer>(layers, build.causal("decoder.conv_in", config.z_dim, channels, 3));
  add_middle(layers, build, "decoder.mid_block", channels);
  for (int block = 0; block < config.levels(); ++block) {
    const int level = config.levels() - 1 - block;
    const int out_channels = config.decoder_base_dim * config.dim_mult[level];
    const std::string name = "decoder.up_blocks." + std::to_string(block);
    for (int i = 0; i <= config.num_res_blocks; ++i) {
      add<ResidualBlock>(layers, build, name + ".resnets." + std::to_string(i), channels, out_channels);
      channels = out_channels;
    }
    if (level > 0) {
      add<Upsample>(layers, build, name + ".upsamplers.0", channels, config.temporal_downsample[level - 1]);
      channels /= 2;
    }
  }
  add<Head>(layers, build, "decoder", channels, config.out_channels);
  return layers;
}

Clip run(const Layers& layers, CodingState& state, Clip x, const std::function<void(size_t)>& before_layer) {
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    if (before_layer) before_layer(layer);
    x = layers[layer]->forward(state, std::move(x));
  }
  return x;
}

}  // namespace calibatt::wan_vae
