#include "models/wan/vae.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"
#include "models/autoencoder/latent_decoder.h"
#include "models/autoencoder/patches.h"
#include "models/original_layout.h"
#include "models/wan/vae_layers.h"
#include "models/weights.h"

namespace calibatt {

using namespace autoencoder;

namespace {

[[noreturn]] void refuse(const std::string& what, const std::string& expected, const Tensor& found) {
  throw Error(ErrorKind::kMismatch, what + ": expected " + expected + ", found " + found.describe());
}

/// The encoder's [h, count, w, 2z] → its mean, normalised, into latents [z, F, h, w] from frame `begin` on.
void scatter_latents(const Tensor& group, const WanVaeConfig& config, int64_t begin, Tensor& latents) {
  const int64_t frames = latents.dim(1), height = latents.dim(2), width = latents.dim(3);
  const float* from = group.f32();
  float* to = latents.f32();
  for (int64_t row = 0; row < height; ++row) {
    for (int64_t frame = 0; frame < group.dim(1); ++frame) {
      for (int64_t column = 0; column < width; ++column, from += 2 * config.z_dim) {
        for (int64_t channel = 0; channel < config.z_dim; ++channel) {
          to[((channel * frames + begin + frame) * height + row) * width + column] =
              (from[channel] - config.latents_mean[channel]) / config.latents_std[channel];
        }
      }
    }
  }
}

}  // namespace

struct WanVae::Impl {
  WanVaeConfig config;
  Backend* backend = nullptr;
  DType compute = DType::kF32;
  Layers encoder;
  int encoder_histories = 0;
  LatentDecoder decoder;

  /// To the host, F32.
  Tensor download(const Clip& clip) const {
    if (clip.view().dtype == DType::kF32) return backend->to_host(clip.storage());
    Tensor wide = backend->empty(DType::kF32, clip.storage().shape());
    backend->clip_ops().copy(clip.view(), view_of(wide));
    return backend->to_host(wide);
  }
};

WanVae::WanVae(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
WanVae::WanVae(WanVae&&) noexcept = default;
WanVae& WanVae::operator=(WanVae&&) noexcept = default;
WanVae::~WanVae() = default;

const WanVaeConfig& WanVae::config() const {
  return impl_->config;
}

WanVae WanVae::load(const std::string& path, Backend& backend, DType compute, const WanVaeOptions& options) {
  CALIBATT_ASSERT(compute == DType::kF32 || compute == DType::kBF16);
  auto impl = std::make_unique<Impl>();
  const ModelLoadOptions load_options{.warn = options.warn, .settings = options.settings};
  Component files = open_vae(path, load_options);
  impl->config = WanVaeConfig::from(files.config);
  warn_of_unread_settings(files.config, {"dropout"}, load_options);
  impl->backend = &backend;
  impl->compute = backend.clip_ops().supports(compute) ? compute : DType::kF32;
  const bool defers = options.defers_bias.value_or(backend.clip_ops().defers_bias());
  const Weights weights(std::move(files.tensors));
  if (options.encodes) {
    autoencoder::Builder build_encoder(weights, backend, impl->compute, defers, {});
    impl->encoder = wan_vae::make_encoder(build_encoder, impl->config);
    impl->encoder_histories = build_encoder.num_histories();
  }
  autoencoder::Builder build_decoder(weights, backend, impl->compute, defers, {});
  autoencoder::Layers layers = wan_vae::make_decoder(build_decoder, impl->config);
  impl->decoder = LatentDecoder({.backend = &backend,
                                 .compute = impl->compute,
                                 .latent_frames_at_once = options.latent_frames_at_once,
                                 .frames_per_latent = impl->config.frames_per_latent(),
                                 .patch_size = impl->config.patch_size,
                                 .scale = impl->config.latents_std,
                                 .shift = impl->config.latents_mean},
                                std::move(layers), build_decoder.num_histories());
  if (const std::string warning = weights.constant_matrices(); !warning.empty() && options.warn) options.warn(warning);
  return WanVae(std::move(impl));
}

void WanVae::decode_groups(const Tensor& latents, const FrameSink& sink) const {
  impl_->decoder.decode_groups(latents, sink);
}

VideoFrames WanVae::decode(const Tensor& latents, const WorkProgress& progress, Communicator* ranks) const {
  return impl_->decoder.decode(latents, progress, ranks);
}

Tensor WanVae::decode_to_float(const Tensor& latents, Communicator* ranks) const {
  return impl_->decoder.decode_to_float(latents, ranks);
}

Tensor WanVae::encode(const Tensor& video, const WorkProgress& progress, int64_t blank_frames) const {
  CALIBATT_ASSERT(!impl_->encoder.empty());
  const WanVaeConfig& config = impl_->config;
  const int unit = config.pixels_per_latent(), group = config.frames_per_latent();
  if (video.rank() != 4 || video.dtype() != DType::kF32 || std::ranges::min(video.shape()) < 1 ||
      video.dim(1) != kColors || (video.dim(0) - 1) % group != 0 || video.dim(2) % unit != 0 ||
      video.dim(3) % unit != 0) {
    refuse("video to encode",
           "F32 [1 + a multiple of " + std::to_string(group) +
               ", 3, height, width] with height and width multiples of " + std::to_string(unit),
           video);
  }
  if (!all_finite(video)) throw Error(ErrorKind::kNumeric, "pixels to encode hold NaN or infinite values");
  CALIBATT_ASSERT(blank_frames >= 0 && blank_frames % group == 0);
  const int64_t given = 1 + (video.dim(0) - 1) / group, frames = given + blank_frames / group;
  Tensor blank;
  if (blank_frames > 0) blank = Tensor::zeros(DType::kF32, {group, kColors, video.dim(2), video.dim(3)});
  Tensor latents(DType::kF32, {config.z_dim, frames, video.dim(2) / unit, video.dim(3) / unit});
  CodingState state(*impl_->backend, impl_->compute, impl_->encoder_histories);
  for (int64_t frame = 0; frame < frames; ++frame) {
    if (progress) progress(static_cast<int>(frame), static_cast<int>(frames), 0);
    state.first_group = frame == 0;
    const int64_t begin = frame == 0 || frame >= given ? 0 : 1 + (frame - 1) * group;
    const Tensor pixels =
        gather_pixels(frame < given ? video : blank, config.patch_size, begin, frame == 0 ? 1 : group);
    const Tensor group_pixels = impl_->backend->from_host(pixels);
    const Clip coded = autoencoder::run(impl_->encoder, state, as_input(state, view_of(group_pixels)));
    scatter_latents(impl_->download(coded), config, frame, latents);
  }
  return latents;
}

}  // namespace calibatt
