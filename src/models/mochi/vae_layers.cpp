#include "models/mochi/vae_layers.h"

#include <utility>

namespace calibatt::mochi_vae {

using namespace autoencoder;

namespace {

/// The order in which depth_to_space wants channels: those of one new pixel together. The file has one new channel's
/// pixels together.
std::vector<int64_t> pixels_first(int channels, int num_pixels) {
  std::vector<int64_t> order;
  order.reserve(static_cast<size_t>(channels) * static_cast<size_t>(num_pixels));
  for (int64_t pixel = 0; pixel < num_pixels; ++pixel) {
    for (int64_t channel = 0; channel < channels; ++channel) order.push_back(channel * num_pixels + pixel);
  }
  return order;
}

/// A linear layer whose outputs are several pixels, of several frames.
class Expansion : public Layer {
 public:
  Expansion(Builder& build, const std::string& name, int in_channels, int out_channels, int time_factor,
            int space_factor)
      : Expansion(build, name, in_channels, out_channels, time_factor, space_factor,
                  time_factor * space_factor * space_factor) {}

  Clip forward(CodingState& state, Clip x) const override {
    settle(state, missing_, x.view());
    const Clip wide = projection_(state, x.view(), adds_bias_);
    x = Clip();
    const ClipView& size = wide.view();
    Clip out =
        state.make(size.height * space_factor_, size.frames * time_factor_, size.width * space_factor_, out_channels_);
    state.ops.depth_to_space(size, pointer(offset_), time_factor_, space_factor_, out.view());
    return out;
  }

 private:
  Expansion(Builder& build, const std::string& name, int in_channels, int out_channels, int time_factor,
            int space_factor, int num_pixels)
      : out_channels_(out_channels),
        time_factor_(time_factor),
        space_factor_(space_factor),
        missing_(build.settle()),
        projection_(build.linear(name, in_channels, out_channels * num_pixels, pixels_first(out_channels, num_pixels))),
        adds_bias_(!build.defers_bias()),
        offset_(adds_bias_ ? Tensor() : build.to_backend(projection_.bias())) {}

  int out_channels_, time_factor_, space_factor_;
  Tensor missing_;
  CausalConv3d projection_;
  bool adds_bias_;
  Tensor offset_;
};

/// SiLU and a linear layer to the colours.
class Output : public Layer {
 public:
  Output(Builder& build, const std::string& name, int in_channels)
      : missing_(build.settle()), projection_(build.linear(name, in_channels, 3)) {}

  Clip forward(CodingState& state, Clip x) const override {
    state.ops.silu(pointer(missing_), x.view());
    const ClipView size = x.view();
    Clip out = state.pool.make(DType::kF32, size.height, size.frames, size.width, 3);
    projection_.run(state, {std::move(x), {}}, out.view());
    return out;
  }

 private:
  Tensor missing_;
  CausalConv3d projection_;
};

}  // namespace

Style style() {
  return {MochiVaeConfig::kNormGroups, MochiVaeConfig::kNormEpsilon, CausalConv3d::Border::kReplicated, ".norm_layer",
          ".conv"};
}

Layers make_decoder(Builder& build, const MochiVaeConfig& config) {
  Layers layers;
  const auto add_blocks = [&](const std::string& name, int channels, int count) {
    for (int block = 0; block < count; ++block) {
      add<ResidualBlock>(layers, build, name + ".resnets." + std::to_string(block), channels, channels);
    }
  };
  const auto channels = [&](int level) { return config.block_out_channels[static_cast<size_t>(level)]; };
  const int top = config.levels() - 1;
  add<ConvolutionLayer>(layers, build.causal("decoder.conv_in", config.z_dim, channels(top), 1));
  add_blocks("decoder.block_in", channels(top), config.layers_per_block.back());
  for (int level = top; level > 0; --level) {
    const auto step = static_cast<size_t>(level - 1);
    const std::string name = "decoder.up_blocks." + std::to_string(top - level);
    add_blocks(name, channels(level), config.layers_per_block[static_cast<size_t>(level)]);
    add<Expansion>(layers, build, name + ".proj", channels(level), channels(level - 1),
                   config.temporal_expansions[step], config.spatial_expansions[step]);
  }
  add_blocks("decoder.block_out", channels(0), config.layers_per_block.front());
  add<Output>(layers, build, "decoder.proj_out", channels(0));
  return layers;
}

}  // namespace calibatt::mochi_vae
