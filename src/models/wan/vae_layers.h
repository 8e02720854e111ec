#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "models/wan/vae_config.h"
#include "models/weights.h"
#include "nn/causal_conv3d.h"

/// The parts of AutoencoderKLWan. Each one takes a group of frames and leaves in CodingState what the next group needs.
namespace calibatt::wan_vae {

class Layer {
 public:
  virtual ~Layer() = default;
  /// `x` may be overwritten: the result may be the same memory.
  virtual Clip forward(CodingState& state, Clip x) const = 0;
};
using Layers = std::vector<std::unique_ptr<Layer>>;

/// Makes layers from the weights under a name, and numbers the histories of their convolutions.
class Builder {
 public:
  Builder(const Weights& weights, Backend& backend, DType compute, bool defers_bias)
      : weights_(weights), backend_(backend), compute_(compute), defers_bias_(defers_bias) {}

  /// kernel: 3 (with its border of zeros) or 1, over time and space alike.
  CausalConv3d causal(const std::string& name, int in_channels, int out_channels, int kernel);
  /// Over space alone. border 1 and 1: "same"; 0 and 1 with stride 2: halves.
  CausalConv3d spatial(const std::string& name, int in_channels, int out_channels, int kernel, int pad_before,
                       int pad_after, int stride);
  /// 3 frames, over time alone; stride 2 leaves the border to the caller: it reads one earlier frame, not two.
  CausalConv3d temporal(const std::string& name, int in_channels, int out_channels, int stride);
  Tensor gamma(const std::string& name, int channels, bool per_image);  ///< [channels] F32, on the backend

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

  const Weights& weights_;
  Backend& backend_;
  DType compute_;
  bool defers_bias_;
  std::vector<float> missing_;
  int num_histories_ = 0;
};

/// Everything between the pixels (patches) and the latents' mean and log-variance.
Layers make_encoder(Builder& build, const WanVaeConfig& config);
/// Everything between the latents and the pixels (patches).
Layers make_decoder(Builder& build, const WanVaeConfig& config);

/// `before_layer` is called with each layer's index; there whoever listens may end the work.
Clip run(const Layers& layers, CodingState& state, Clip x, const std::function<void(size_t)>& before_layer = {});

}  // namespace calibatt::wan_vae
