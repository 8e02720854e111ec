#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "models/weights.h"
#include "nn/causal_conv3d.h"

/// What video autoencoders are made of. Each layer takes a group of frames and leaves in CodingState what the next
/// group needs.
namespace calibatt::autoencoder {

class Layer {
 public:
  virtual ~Layer() = default;
  /// `x` may be overwritten: the result may be the same memory.
  virtual Clip forward(CodingState& state, Clip x) const = 0;
};
using Layers = std::vector<std::unique_ptr<Layer>>;

template <class T, class... Arguments>
void add(Layers& layers, Arguments&&... arguments) {
  layers.push_back(std::make_unique<T>(std::forward<Arguments>(arguments)...));
}

/// `before_layer` is called with each layer's index; there whoever listens may end the work.
Clip run(const Layers& layers, CodingState& state, Clip x, const std::function<void(size_t)>& before_layer = {});

/// A dense tensor [height, frames, width, channels] F32, where the backend put it.
ClipView view_of(const Tensor& tensor);
/// A copy of the type that the first layer takes.
Clip as_input(CodingState& state, const ClipView& frames);

/// One of the two norms that autoencoders have: over the channels of each pixel, or over groups of channels in each
/// frame.
class Norm {
 public:
  Norm() = default;
  explicit Norm(Tensor gamma) : gamma_(std::move(gamma)) {}
  Norm(Tensor gamma, Tensor beta, int groups, float epsilon)
      : gamma_(std::move(gamma)), beta_(std::move(beta)), groups_(groups), epsilon_(epsilon) {}

  /// out = activation(norm(in + offset)); offset: [channels] F32, empty: none.
  void operator()(CodingState& state, const ClipView& in, const Tensor& offset, Activation activation,
                  const ClipView& out) const;

 private:
  Tensor gamma_, beta_;
  int groups_ = 0;
  float epsilon_ = 0;
};

/// In what the autoencoders' common parts differ.
struct Style {
  int norm_groups = 0;  ///< 0: RMS norms
  float norm_epsilon = 0;
  CausalConv3d::Border border = CausalConv3d::Border::kZeros;
  std::string norm_suffix = {}, causal_suffix = {};  ///< what follows the names of a residual block's parts
};

/// Makes parts from the weights under a name, and numbers the histories of their convolutions.
class Builder {
 public:
  Builder(const Weights& weights, Backend& backend, DType compute, bool defers_bias, Style style)
      : weights_(weights), backend_(backend), compute_(compute), defers_bias_(defers_bias), style_(std::move(style)) {}

  const Style& style() const { return style_; }

  /// kernel: 3 (with its border) or 1, over time and space alike.
  CausalConv3d causal(const std::string& name, int in_channels, int out_channels, int kernel);
  /// Over space alone. border 1 and 1: "same"; 0 and 1 with stride 2: halves.
  CausalConv3d spatial(const std::string& name, int in_channels, int out_channels, int kernel, int pad_before,
                       int pad_after, int stride);
  /// 3 frames, over time alone; stride 2 leaves the border to the caller: it reads one earlier frame, not two.
  CausalConv3d temporal(const std::string& name, int in_channels, int out_channels, int stride);
  /// Over the channels of each pixel, from a matrix [out, in]. order: output i is the matrix's output order[i]; empty:
  /// as they are.
  CausalConv3d linear(const std::string& name, int in_channels, int out_channels,
                      const std::vector<int64_t>& order = {});
  Norm norm(const std::string& name, int channels);
  Norm image_norm(const std::string& name, int channels);  ///< RMS; its weights are those of an image, not of a video

  int num_histories() const { return num_histories_; }

  /// Where biases are deferred, most convolutions leave theirs out; what a layer hands on is then short of a constant
  /// vector, which the norms that read it add. These functions keep account of it while layers are made one after
  /// another.
  bool defers_bias() const { return defers_bias_; }
  void leave_out(const CausalConv3d& convolution);  ///< from here on its bias is missing, too
  Tensor missing() const;                           ///< what is missing here, on the backend; empty: nothing
  Tensor settle();                                  ///< the same; nothing is missing any more
  Tensor to_backend(const Tensor& host) const { return backend_.from_host(host); }

 private:
  CausalConv3d convolution(const std::string& name, CausalConv3d::Geometry geometry, bool over_time);
  CausalConv3d make(const CausalConv3d::Geometry& geometry, const Tensor& weight, const Tensor& bias);
  Tensor vector(const std::string& name, const std::vector<int64_t>& shape);  ///< [channels] F32, on the backend

  const Weights& weights_;
  Backend& backend_;
  DType compute_;
  bool defers_bias_;
  Style style_;
  std::vector<float> missing_;
  int num_histories_ = 0;
};

/// Null for an empty tensor.
inline const Tensor* pointer(const Tensor& tensor) {
  return tensor.empty() ? nullptr : &tensor;
}

/// Adds biases that were left out to a clip that something other than a norm reads.
inline void settle(CodingState& state, const Tensor& missing, const ClipView& x) {
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
  ResidualBlock(Builder& build, const std::string& name, int in_channels, int out_channels);
  Clip forward(CodingState& state, Clip x) const override;

 private:
  Norm norm1_;
  CausalConv3d conv1_;
  Norm norm2_;
  CausalConv3d conv2_;
  std::unique_ptr<CausalConv3d> shortcut_;
  bool adds_bias_ = true;
  Tensor missing_, offset1_, offset2_;
};

}  // namespace calibatt::autoencoder
