#include "models/mochi/vae.h"

#include <utility>

#include "base/error.h"
#include "model_settings/component.h"
#include "models/autoencoder/latent_decoder.h"
#include "models/mochi/vae_layers.h"
#include "models/weights.h"

namespace calibatt {

struct MochiVae::Impl {
  MochiVaeConfig config;
  LatentDecoder decoder;
};

MochiVae::MochiVae(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
MochiVae::MochiVae(MochiVae&&) noexcept = default;
MochiVae& MochiVae::operator=(MochiVae&&) noexcept = default;
MochiVae::~MochiVae() = default;

const MochiVaeConfig& MochiVae::config() const {
  return impl_->config;
}

MochiVae MochiVae::load(const std::string& folder, Backend& backend, DType compute, const MochiVaeOptions& options) {
  CALIBATT_ASSERT(compute == DType::kF32 || compute == DType::kBF16);
  auto impl = std::make_unique<Impl>();
  const ModelLoadOptions load_options{.warn = options.warn};
  Component files = open_component_folder(folder, load_options);
  const MochiVaeConfig config = impl->config = MochiVaeConfig::from(files.config);
  warn_of_unread_settings(files.config, {"in_channels", "encoder_block_out_channels", "add_attention_block"},
                          load_options);
  if (!backend.clip_ops().supports(compute)) compute = DType::kF32;
  const Weights weights(std::move(files.tensors));
  autoencoder::Builder build(weights, backend, compute, options.defers_bias.value_or(backend.clip_ops().defers_bias()),
                             mochi_vae::style());
  autoencoder::Layers layers = mochi_vae::make_decoder(build, config);
  static_cast<void>(weights.check_unused("decoder."));  // the rest is the encoder
  LatentDecoder::Settings settings{.backend = &backend,
                                   .compute = compute,
                                   .latent_frames_at_once = options.latent_frames_at_once,
                                   .frames_per_latent = config.frames_per_latent(),
                                   .scale = config.latents_std,
                                   .shift = config.latents_mean};
  for (float& factor : settings.scale) factor /= config.scaling_factor;
  impl->decoder = LatentDecoder(std::move(settings), std::move(layers), build.num_histories());
  if (const std::string warning = weights.constant_matrices(); !warning.empty() && options.warn) options.warn(warning);
  return MochiVae(std::move(impl));
}

void MochiVae::decode_groups(const Tensor& latents, const FrameSink& sink) const {
  impl_->decoder.decode_groups(latents, sink);
}

VideoFrames MochiVae::decode(const Tensor& latents, const WorkProgress& progress, Communicator* ranks) const {
  return impl_->decoder.decode(latents, progress, ranks);
}

Tensor MochiVae::decode_to_float(const Tensor& latents, Communicator* ranks) const {
  return impl_->decoder.decode_to_float(latents, ranks);
}

}  // namespace calibatt
