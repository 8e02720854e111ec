#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "backend/backend.h"
#include "base/tensor.h"
#include "base/work_progress.h"
#include "calibatt/video.h"
#include "io/json_config.h"
#include "model_settings/load_options.h"
#include "models/weights.h"

namespace calibatt {

/// config.json of a CLIPVisionModel: the keys that shape the encoder.
struct ClipVisionConfig {
  int hidden_size = 0, intermediate_size = 0;
  int num_layers = 0, num_heads = 0;
  int image_size = 224, patch_size = 14;
  float layer_norm_eps = 1e-5f;

  int patches() const { return image_size / patch_size * (image_size / patch_size); }
  /// Host memory of an encoding, beside the picture: a layer's largest matrix as it is stored, read and laid out for
  /// products, and activations.
  uint64_t encoding_bytes() const;

  /// Throws Error(kFormat) naming file, key, found and expected.
  static ClipVisionConfig from(const JsonConfig& json);
};

/// How a picture becomes the encoder's input: preprocessor_config.json of a CLIPImageProcessor. It is scaled until its
/// shorter side is the encoder's, by a cubic filter, and its middle is cut out.
struct ClipPreprocessing {
  std::array<float, 3> mean{}, deviation{};  ///< of colours from 0 to 1

  /// Throws Error(kFormat) for what it does not do, or another size than the encoder's.
  static ClipPreprocessing from(const JsonConfig& json, const ClipVisionConfig& encoder);
};

/// The picture encoder of CLIP (Radford et al. 2021, arXiv 2103.00020), as transformers' CLIPVisionModel computes it,
/// but for its last layer: what Wan 2.1 I2V sees of a picture. On the host in float32, wherever the model itself
/// computes: it runs once a picture. Its 0.6 billion weights are read layer by layer and dropped.
class ClipVisionEncoder {
 public:
  /// encoder, processor: folders in diffusers' layout. Looks at names and shapes alone. Throws Error naming file and
  /// tensor.
  static ClipVisionEncoder open(const std::string& encoder, const std::string& processor,
                                const ModelLoadOptions& options = {});

  const ClipVisionConfig& config() const { return config_; }

  /// Hidden states before the last layer, [1 + patches, hidden_size] F32. `progress` hears of layers. Throws
  /// Error(kNumeric) for weights that are not finite.
  Tensor encode(const Picture& picture, const WorkProgress& progress = {}) const;
  /// The same of a picture that is prepared: [3, image_size, image_size] F32.
  Tensor encode_prepared(const Tensor& pixels, const WorkProgress& progress = {}) const;
  Tensor prepared(const Picture& picture) const;

 private:
  explicit ClipVisionEncoder(Weights weights) : weights_(std::move(weights)) {}
  Tensor embed(const Tensor& pixels) const;
  void normalise(const std::string& name, const Tensor& x, Tensor& out) const;
  void run_layer(int layer, Tensor& residual) const;

  std::shared_ptr<Backend> host_;
  ClipVisionConfig config_;
  ClipPreprocessing preprocessing_;
  Weights weights_;
};

/// x · Φ(x) of every element of an F32 tensor on the host, in place: GELU itself, not its tanh form.
void gelu(Tensor& values);

}  // namespace calibatt
