#include "models/wan/vae_layers.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace calibatt::wan_vae {

using namespace autoencoder;

namespace {

/// Self-attention of one head among the pixels of each frame.
class AttentionBlock : public Layer {
 public:
  AttentionBlock(Builder& build, const std::string& name, int channels)
      : channels_(channels),
        norm_(build.image_norm(name + ".norm", channels)),
        to_qkv_(build.spatial(name + ".to_qkv", channels, 3 * channels, 1, 0, 0, 1)),
        projection_(build.spatial(name + ".proj", channels, channels, 1, 0, 0, 1)),
        adds_bias_(!build.defers_bias()),
        offset_(build.missing()) {
    if (!adds_bias_) build.leave_out(projection_);
  }

  Clip forward(CodingState& state, Clip x) const override {
    const ClipView size = x.view();
    Clip attended = state.make(size.height, size.frames, size.width, channels_);
    norm_(state, x.view(), offset_, Activation::kNone, attended.view());
    const Clip qkv = to_qkv_(state, attended.view());
    if (size.frames == 1) {
      attend(state, qkv.view(), attended.view());
    } else {  // the pixels of one frame have to follow one another
      const Clip frame_qkv = state.make(size.height, 1, size.width, 3 * channels_);
      const Clip frame_attended = state.make(size.height, 1, size.width, channels_);
      for (int64_t frame = 0; frame < size.frames; ++frame) {
        state.ops.copy(qkv.view().frame_range(frame, 1), frame_qkv.view());
        attend(state, frame_qkv.view(), frame_attended.view());
        state.ops.copy(frame_attended.view(), attended.view().frame_range(frame, 1));
      }
    }
    projection_.run(state, {std::move(attended), {}}, x.view(), /*accumulate=*/true, adds_bias_);
    return x;
  }

 private:
  /// Of one frame's rows, which attend to the whole frame.
  static void attend(CodingState& state, const ClipView& qkv, const ClipView& out) {
    if (!state.rows.is_shared()) {
      state.ops.attention(qkv, 0, out);
      return;
    }
    const Clip all = state.make(state.rows.height_of_all(qkv.height), 1, qkv.width, qkv.channels);
    state.rows.gather(qkv, all.view());
    state.ops.attention(all.view(), state.rows.first_row(out.height), out);
  }

  int channels_;
  Norm norm_;
  CausalConv3d to_qkv_, projection_;
  bool adds_bias_;
  Tensor offset_;
};

/// The beginning of a residual level of Wan 2.2: what comes in is kept for the level's end.
class KeepShortcut : public Layer {
 public:
  explicit KeepShortcut(Builder& build) : missing_(build.settle()) {}

  Clip forward(CodingState& state, Clip x) const override {
    const ClipView& size = x.view();
    settle(state, missing_, size);
    state.shortcuts.push_back(state.make(size.height, size.frames, size.width, size.channels));
    state.ops.copy(size, state.shortcuts.back().view());
    return x;
  }

 private:
  Tensor missing_;
};

/// The end of it: adds what was kept, of other size and with other channels (DupUp3D, AvgDown3D: without weights).
class AddShortcut : public Layer {
 public:
  enum class Direction { kUp, kDown };
  AddShortcut(Direction direction, int time_factor, int space_factor)
      : direction_(direction), time_factor_(time_factor), space_factor_(space_factor) {}

  Clip forward(CodingState& state, Clip x) const override {
    const Clip kept = std::move(state.shortcuts.back());
    state.shortcuts.pop_back();
    if (direction_ == Direction::kDown) {
      state.ops.add_averaged(kept.view(), time_factor_, space_factor_, x.view());
    } else {  // the first frame stays one
      state.ops.add_repeated(kept.view(), time_factor_, space_factor_, state.first_group ? time_factor_ - 1 : 0,
                             x.view());
    }
    return x;
  }

 private:
  Direction direction_;
  int time_factor_, space_factor_;
};

/// Twice the rows and columns, half the channels (in Wan 2.2 all of them); with `over_time` also twice the frames, all
/// but the first of the clip.
class Upsample : public Layer {
 public:
  Upsample(Builder& build, const std::string& name, int channels, int out_channels, bool over_time)
      : spatial_(build.spatial(name + ".resample.1", channels, out_channels, 3, 1, 1, 1)),
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
      : norm_(build.norm(name + ".norm_out", in_channels)),
        offset_(build.settle()),
        convolution_(build.causal(name + ".conv_out", in_channels, out_channels, 3)) {}

  Clip forward(CodingState& state, Clip x) const override {
    const ClipView size = x.view();
    CausalConv3d::Input input = convolution_.prepare(state, size.height, size.frames, size.width);
    norm_(state, x.view(), offset_, Activation::kSiLU, input.frames);
    Clip out = state.pool.make(DType::kF32, size.height, size.frames, size.width, convolution_.geometry().out_channels);
    convolution_.run(state, std::move(input), out.view());
    return out;
  }

 private:
  Norm norm_;
  Tensor offset_;
  CausalConv3d convolution_;
};

void add_middle(Layers& layers, Builder& build, const std::string& name, int channels) {
  add<ResidualBlock>(layers, build, name + ".resnets.0", channels, channels);
  add<AttentionBlock>(layers, build, name + ".attentions.0", channels);
  add<ResidualBlock>(layers, build, name + ".resnets.1", channels, channels);
}

}  // namespace

Layers make_encoder(Builder& build, const WanVaeConfig& config) {
  Layers layers;
  int channels = config.base_dim;
  add<ConvolutionLayer>(layers, build.causal("encoder.conv_in", config.in_channels, channels, 3));
  int index = 0;
  const auto name = [&] { return "encoder.down_blocks." + std::to_string(index++); };
  for (int level = 0; level < config.levels(); ++level) {
    const int out_channels = config.base_dim * config.dim_mult[level];
    const bool halves = level + 1 < config.levels(), over_time = halves && config.temporal_downsample[level];
    const std::string block_name = config.is_residual ? name() : "";
    if (config.is_residual) add<KeepShortcut>(layers, build);
    for (int block = 0; block < config.num_res_blocks; ++block) {
      add<ResidualBlock>(layers, build, config.is_residual ? block_name + ".resnets." + std::to_string(block) : name(),
                         channels, out_channels);
      channels = out_channels;
    }
    if (halves) {
      add<Downsample>(layers, build, config.is_residual ? block_name + ".downsampler" : name(), channels, over_time);
    }
    if (config.is_residual) {
      add<AddShortcut>(layers, AddShortcut::Direction::kDown, over_time ? 2 : 1, halves ? 2 : 1);
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
    const bool doubles = level > 0, has_shortcut = config.is_residual && doubles;
    if (has_shortcut) add<KeepShortcut>(layers, build);
    for (int i = 0; i <= config.num_res_blocks; ++i) {
      add<ResidualBlock>(layers, build, name + ".resnets." + std::to_string(i), channels, out_channels);
      channels = out_channels;
    }
    if (!doubles) continue;
    const bool over_time = config.temporal_downsample[level - 1];
    const int wide = channels;
    if (!config.is_residual) channels /= 2;
    add<Upsample>(layers, build, name + (config.is_residual ? ".upsampler" : ".upsamplers.0"), wide, channels,
                  over_time);
    if (has_shortcut) add<AddShortcut>(layers, AddShortcut::Direction::kUp, over_time ? 2 : 1, 2);
  }
  add<Head>(layers, build, "decoder", channels, config.out_channels);
  return layers;
}

}  // namespace calibatt::wan_vae
