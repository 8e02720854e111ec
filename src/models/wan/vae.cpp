#include "models/wan/vae.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"
#include "models/wan/vae_layers.h"
#include "models/weights.h"

namespace calibatt {
namespace {

constexpr int kColors = 3;

[[noreturn]] void refuse(const std::string& what, const std::string& expected, const Tensor& found) {
  throw Error(ErrorKind::kMismatch, what + ": expected " + expected + ", found " + found.describe());
}

void require_finite(const Tensor& tensor, const std::string& what) {
  if (!all_finite(tensor)) throw Error(ErrorKind::kNumeric, what + " hold NaN or infinite values");
}

/// How the channels of a patch are ordered: colour, column, row (diffusers' patchify).
int patch_channel(int color, int row, int column, int patch) {
  return (color * patch + column) * patch + row;
}

/// Latents [z, F, h, w] → one frame as the decoder wants it: [h, 1, w, z], not normalised.
Tensor gather_latents(const Tensor& latents, const WanVaeConfig& config, int64_t frame) {
  const int64_t channels = config.z_dim, frames = latents.dim(1), height = latents.dim(2), width = latents.dim(3);
  Tensor group(DType::kF32, {height, 1, width, channels});
  const float* from = latents.f32();
  float* to = group.f32();
  for (int64_t row = 0; row < height; ++row) {
    for (int64_t column = 0; column < width; ++column) {
      for (int64_t channel = 0; channel < channels; ++channel) {
        const float z = from[((channel * frames + frame) * height + row) * width + column];
        *to++ = z * config.latents_std[channel] + config.latents_mean[channel];
      }
    }
  }
  return group;
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

/// Video [frames, 3, H, W] → frames [begin, begin + count) in patches: [H/p, count, W/p, 3p²].
Tensor gather_pixels(const Tensor& video, int patch, int64_t begin, int64_t count) {
  const int64_t height = video.dim(2) / patch, width = video.dim(3) / patch, channels = kColors * patch * patch;
  Tensor group(DType::kF32, {height, count, width, channels});
  parallel_for(height, 4, [&](int64_t row_begin, int64_t row_end, int) {
    for (int64_t row = row_begin; row < row_end; ++row) {
      for (int64_t frame = 0; frame < count; ++frame) {
        float* const to = group.f32() + (row * count + frame) * width * channels;
        for (int color = 0; color < kColors; ++color) {
          for (int y = 0; y < patch; ++y) {
            const float* from =
                video.f32() + (((begin + frame) * kColors + color) * height * patch + row * patch + y) * width * patch;
            for (int64_t column = 0; column < width; ++column) {
              for (int x = 0; x < patch; ++x) to[column * channels + patch_channel(color, y, x, patch)] = *from++;
            }
          }
        }
      }
    }
  });
  return group;
}

/// Patches [H/p, count, W/p, 3p²] → pixels [count, 3, H, W], clamped to [-1, 1]. Returns false when there is a NaN.
bool scatter_pixels(const Tensor& group, int patch, Tensor& pixels) {
  const int64_t height = group.dim(0), count = group.dim(1), width = group.dim(2), channels = group.dim(3);
  std::vector<char> row_is_sound(static_cast<size_t>(height));
  parallel_for(height, 4, [&](int64_t row_begin, int64_t row_end, int) {
    for (int64_t row = row_begin; row < row_end; ++row) {
      bool sound = true;
      for (int64_t frame = 0; frame < count; ++frame) {
        const float* const from = group.f32() + (row * count + frame) * width * channels;
        for (int color = 0; color < kColors; ++color) {
          for (int y = 0; y < patch; ++y) {
            float* to = pixels.f32() + ((frame * kColors + color) * height * patch + row * patch + y) * width * patch;
            for (int64_t column = 0; column < width; ++column) {
              for (int x = 0; x < patch; ++x) {
                const float value = from[column * channels + patch_channel(color, y, x, patch)];
                sound &= value == value;
                *to++ = std::clamp(value, -1.0f, 1.0f);
              }
            }
          }
        }
      }
      row_is_sound[static_cast<size_t>(row)] = sound;
    }
  });
  return std::all_of(row_is_sound.begin(), row_is_sound.end(), [](char sound) { return sound != 0; });
}

/// [-1, 1] → 0 … 255, rounded to nearest even as numpy does; planes → interleaved RGB.
void to_rgb(const Tensor& pixels, uint8_t* rgb) {
  const int64_t plane = pixels.dim(2) * pixels.dim(3);
  parallel_for(pixels.dim(0), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t frame = begin; frame < end; ++frame) {
      const float* const from = pixels.f32() + frame * kColors * plane;
      uint8_t* const to = rgb + frame * kColors * plane;
      for (int64_t i = 0; i < plane; ++i) {
        for (int color = 0; color < kColors; ++color) {
          to[i * kColors + color] =
              static_cast<uint8_t>(std::nearbyint((from[color * plane + i] * 0.5f + 0.5f) * 255.0f));
        }
      }
    }
  });
}

}  // namespace

struct WanVae::Impl {
  WanVaeConfig config;
  Backend* backend = nullptr;
  DType compute = DType::kF32;
  wan_vae::Layers encoder, decoder;
  int encoder_histories = 0, decoder_histories = 0;

  /// A host tensor [height, frames, width, channels] F32 as the first layer takes it.
  Clip upload(CodingState& state, const Tensor& host) const {
    const Tensor device = backend->from_host(host);
    const int64_t height = host.dim(0), frames = host.dim(1), width = host.dim(2), channels = host.dim(3);
    Clip clip = state.make(height, frames, width, channels);
    state.ops.copy(
        {const_cast<void*>(device.raw()), DType::kF32, height, frames, width, channels, frames * width * channels},
        clip.view());
    return clip;
  }

  Tensor download(CodingState& state, const Clip& clip) const {
    if (clip.view().dtype == DType::kF32) return backend->to_host(clip.storage());
    const ClipView& view = clip.view();
    const Clip wide = state.pool.make(DType::kF32, view.height, view.frames, view.width, view.channels);
    state.ops.copy(view, wide.view());
    return backend->to_host(wide.storage());
  }
};

WanVae::WanVae(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
WanVae::WanVae(WanVae&&) noexcept = default;
WanVae& WanVae::operator=(WanVae&&) noexcept = default;
WanVae::~WanVae() = default;

const WanVaeConfig& WanVae::config() const {
  return impl_->config;
}

WanVae WanVae::load(const std::string& folder, Backend& backend, DType compute) {
  CALIBATT_ASSERT(compute == DType::kF32 || compute == DType::kBF16);
  auto impl = std::make_unique<Impl>();
  impl->config = WanVaeConfig::load(folder + "/config.json");
  impl->backend = &backend;
  impl->compute = backend.clip_ops().supports(compute) ? compute : DType::kF32;
  const Weights weights = Weights::open(folder);
  wan_vae::Builder build_encoder(weights, backend, impl->compute);
  impl->encoder = wan_vae::make_encoder(build_encoder, impl->config);
  impl->encoder_histories = build_encoder.num_histories();
  wan_vae::Builder build_decoder(weights, backend, impl->compute);
  impl->decoder = wan_vae::make_decoder(build_decoder, impl->config);
  impl->decoder_histories = build_decoder.num_histories();
  return WanVae(std::move(impl));
}

void WanVae::decode_groups(const Tensor& latents, const FrameSink& sink) const {
  const WanVaeConfig& config = impl_->config;
  if (latents.rank() != 4 || latents.dtype() != DType::kF32 || latents.dim(0) != config.z_dim ||
      std::ranges::min(latents.shape()) < 1) {
    refuse("latents to decode", "F32 [" + std::to_string(config.z_dim) + ", frames, height, width]", latents);
  }
  require_finite(latents, "latents to decode");
  const int64_t frames = latents.dim(1);

  CodingState state(*impl_->backend, impl_->compute, impl_->decoder_histories);
  int frames_done = 0;
  for (int64_t frame = 0; frame < frames; ++frame) {  // longer groups were measured: no faster, and more memory
    state.first_group = frame == 0;
    const Clip patches =
        wan_vae::run(impl_->decoder, state, impl_->upload(state, gather_latents(latents, config, frame)));
    Tensor pixels(DType::kF32, {patches.view().frames, kColors, patches.view().height * config.patch_size,
                                patches.view().width * config.patch_size});
    if (!scatter_pixels(impl_->download(state, patches), config.patch_size, pixels)) {
      throw Error(ErrorKind::kNumeric, "the decoded video holds NaN from frame " + std::to_string(frames_done) +
                                           " on; check the autoencoder's weights, or decode in f32");
    }
    sink(frames_done, pixels);
    frames_done += static_cast<int>(pixels.dim(0));
  }
}

VideoFrames WanVae::decode(const Tensor& latents, const Progress& progress) const {
  VideoFrames video;
  decode_groups(latents, [&](int first_frame, const Tensor& pixels) {
    if (first_frame == 0) {
      video.frames = 1 + static_cast<int>(latents.dim(1) - 1) * impl_->config.frames_per_latent();
      video.height = static_cast<int>(pixels.dim(2));
      video.width = static_cast<int>(pixels.dim(3));
      video.rgb.resize(static_cast<size_t>(video.frames) * video.frame_bytes());
    }
    to_rgb(pixels, video.rgb.data() + static_cast<size_t>(first_frame) * video.frame_bytes());
    if (progress) progress(first_frame + static_cast<int>(pixels.dim(0)), video.frames);
  });
  return video;
}

Tensor WanVae::decode_to_float(const Tensor& latents, const Progress& progress) const {
  Tensor video;
  decode_groups(latents, [&](int first_frame, const Tensor& pixels) {
    if (first_frame == 0) {
      const int64_t frames = 1 + (latents.dim(1) - 1) * impl_->config.frames_per_latent();
      video = Tensor(DType::kF32, {frames, kColors, pixels.dim(2), pixels.dim(3)});
    }
    std::copy_n(pixels.f32(), pixels.size(), video.f32() + first_frame * kColors * pixels.dim(2) * pixels.dim(3));
    if (progress) progress(first_frame + static_cast<int>(pixels.dim(0)), static_cast<int>(video.dim(0)));
  });
  return video;
}

Tensor WanVae::encode(const Tensor& video) const {
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
  require_finite(video, "pixels to encode");
  const int64_t frames = 1 + (video.dim(0) - 1) / group;
  Tensor latents(DType::kF32, {config.z_dim, frames, video.dim(2) / unit, video.dim(3) / unit});
  CodingState state(*impl_->backend, impl_->compute, impl_->encoder_histories);
  for (int64_t frame = 0; frame < frames; ++frame) {
    state.first_group = frame == 0;
    const Tensor pixels =
        gather_pixels(video, config.patch_size, frame == 0 ? 0 : 1 + (frame - 1) * group, frame == 0 ? 1 : group);
    const Clip coded = wan_vae::run(impl_->encoder, state, impl_->upload(state, pixels));
    scatter_latents(impl_->download(state, coded), config, frame, latents);
  }
  return latents;
}

}  // namespace calibatt
