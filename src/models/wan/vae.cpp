#include "models/wan/vae.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/mapped_ranges.h"
#include "base/thread_pool.h"
#include "models/original_layout.h"
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

/// Latents [z, F, h, w] → as the decoder wants them: [h, F, w, z], not normalised.
Tensor gather_latents(const Tensor& latents, const WanVaeConfig& config) {
  const int64_t channels = config.z_dim, frames = latents.dim(1), height = latents.dim(2), width = latents.dim(3);
  Tensor result(DType::kF32, {height, frames, width, channels});
  const float* from = latents.f32();
  parallel_for(height, 4, [&](int64_t begin, int64_t end, int) {
    float* to = result.f32() + begin * frames * width * channels;
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t frame = 0; frame < frames; ++frame) {
        for (int64_t column = 0; column < width; ++column) {
          for (int64_t channel = 0; channel < channels; ++channel) {
            const float z = from[((channel * frames + frame) * height + row) * width + column];
            *to++ = z * config.latents_std[channel] + config.latents_mean[channel];
          }
        }
      }
    }
  });
  return result;
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

}  // namespace

struct WanVae::Impl {
  WanVaeConfig config;
  Backend* backend = nullptr;
  DType compute = DType::kF32;
  wan_vae::Layers encoder, decoder;
  int64_t latent_frames_at_once = 0;  ///< 0: as the backend has it best
  int encoder_histories = 0, decoder_histories = 0;

  /// A tensor [height, frames, width, channels] F32, where the backend put it.
  static ClipView view_of(const Tensor& tensor) {
    const int64_t frames = tensor.dim(1), width = tensor.dim(2), channels = tensor.dim(3);
    return {const_cast<void*>(tensor.raw()), DType::kF32, tensor.dim(0), frames, width, channels,
            frames * width * channels};
  }

  /// Of the dtype that the first layer takes.
  static Clip as_input(CodingState& state, const ClipView& frames) {
    Clip clip = state.make(frames.height, frames.frames, frames.width, frames.channels);
    state.ops.copy(frames, clip.view());
    return clip;
  }

  using PatchSink = std::function<void(int64_t latent_frame, Clip patches)>;

  /// Calls the sink with the patches of each group, which the backend may still be computing.
  void decode(const Tensor& latents, const PatchSink& sink, const WorkProgress& progress) const {
    if (latents.rank() != 4 || latents.dtype() != DType::kF32 || latents.dim(0) != config.z_dim ||
        std::ranges::min(latents.shape()) < 1) {
      refuse("latents to decode", "F32 [" + std::to_string(config.z_dim) + ", frames, height, width]", latents);
    }
    require_finite(latents, "latents to decode");
    CodingState state(*backend, compute, decoder_histories);
    const Tensor all = backend->from_host(gather_latents(latents, config));
    const int64_t at_once = latent_frames_at_once > 0 ? latent_frames_at_once : state.ops.latent_frames_at_once();
    const auto num_frames = static_cast<int>(first_frame_of(latents.dim(1)));
    for (int64_t frame = 0; frame < latents.dim(1);) {
      state.first_group = frame == 0;
      const int64_t count = frame == 0 ? 1 : std::min(at_once, latents.dim(1) - frame);
      const int64_t first = first_frame_of(frame), group = first_frame_of(frame + count) - first;
      const auto before_layer = [&](size_t layer) {
        if (!progress) return;
        backend->limit_run_ahead();
        const double done = static_cast<double>(first) + static_cast<double>(group) * static_cast<double>(layer) /
                                                             static_cast<double>(decoder.size());
        progress(static_cast<int>(done), num_frames, done - std::floor(done));
      };
      sink(frame, wan_vae::run(decoder, state, as_input(state, view_of(all).frame_range(frame, count)), before_layer));
      frame += count;
    }
    require_mapped_files();  // weights may be used where they lie
  }

  int64_t first_frame_of(int64_t latent_frame) const {
    return latent_frame == 0 ? 0 : 1 + (latent_frame - 1) * config.frames_per_latent();
  }

  /// To the host, F32.
  Tensor download(const Clip& clip) const {
    if (clip.view().dtype == DType::kF32) return backend->to_host(clip.storage());
    Tensor wide = backend->empty(DType::kF32, clip.storage().shape());
    backend->clip_ops().copy(clip.view(), view_of(wide));
    return backend->to_host(wide);
  }

  [[noreturn]] static void refuse_nan(int64_t first_frame) {
    throw Error(ErrorKind::kNumeric, "the decoded video holds NaN from frame " + std::to_string(first_frame) +
                                         " on; check the autoencoder's weights, or decode in f32");
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
  const ModelLoadOptions load_options{.warn = options.warn};
  Component files = open_vae(path, load_options);
  impl->config = WanVaeConfig::from(files.config);
  warn_of_unread_settings(files.config, {"dropout"}, load_options);
  impl->backend = &backend;
  impl->latent_frames_at_once = options.latent_frames_at_once;
  impl->compute = backend.clip_ops().supports(compute) ? compute : DType::kF32;
  const bool defers = options.defers_bias.value_or(backend.clip_ops().defers_bias());
  const Weights weights(std::move(files.tensors));
  if (options.encodes) {
    wan_vae::Builder build_encoder(weights, backend, impl->compute, defers);
    impl->encoder = wan_vae::make_encoder(build_encoder, impl->config);
    impl->encoder_histories = build_encoder.num_histories();
  }
  wan_vae::Builder build_decoder(weights, backend, impl->compute, defers);
  impl->decoder = wan_vae::make_decoder(build_decoder, impl->config);
  impl->decoder_histories = build_decoder.num_histories();
  if (const std::string warning = weights.constant_matrices(); !warning.empty() && options.warn) options.warn(warning);
  return WanVae(std::move(impl));
}

void WanVae::decode_groups(const Tensor& latents, const FrameSink& sink) const {
  const int patch = impl_->config.patch_size;
  impl_->decode(latents,
                [&](int64_t latent_frame, Clip patches) {
                  const ClipView& view = patches.view();
                  const int64_t first_frame = impl_->first_frame_of(latent_frame);
                  Tensor pixels(DType::kF32, {view.frames, kColors, view.height * patch, view.width * patch});
                  if (!scatter_pixels(impl_->download(patches), patch, pixels)) Impl::refuse_nan(first_frame);
                  sink(static_cast<int>(first_frame), pixels);
                },
                {});
}

VideoFrames WanVae::decode(const Tensor& latents, const WorkProgress& progress) const {
  VideoFrames video;
  const int patch = impl_->config.patch_size;
  struct Group {
    int64_t first_frame = 0;
    Clip patches;
    std::unique_ptr<PendingRgb> rgb;
  };
  Group last;  // fetched while the backend computes the next one
  const auto finish = [&](Group group) {
    if (!group.rgb) return;
    if (!group.rgb->finish(video.rgb.data() + static_cast<size_t>(group.first_frame) * video.frame_bytes())) {
      Impl::refuse_nan(group.first_frame);
    }
  };
  impl_->decode(
      latents,
      [&](int64_t latent_frame, Clip patches) {
        if (latent_frame == 0) {
          video.frames = 1 + static_cast<int>(latents.dim(1) - 1) * impl_->config.frames_per_latent();
          video.height = static_cast<int>(patches.view().height * patch);
          video.width = static_cast<int>(patches.view().width * patch);
          video.rgb.resize(static_cast<size_t>(video.frames) * video.frame_bytes());
        }
        Group group;
        group.first_frame = impl_->first_frame_of(latent_frame);
        group.rgb = impl_->backend->clip_ops().start_rgb(patches.view(), patch);
        group.patches = std::move(patches);
        finish(std::exchange(last, std::move(group)));
      },
      progress);
  finish(std::move(last));
  if (progress) progress(video.frames, video.frames, 0);
  return video;
}

Tensor WanVae::decode_to_float(const Tensor& latents) const {
  Tensor video;
  decode_groups(latents, [&](int first_frame, const Tensor& pixels) {
    if (first_frame == 0) {
      const int64_t frames = 1 + (latents.dim(1) - 1) * impl_->config.frames_per_latent();
      video = Tensor(DType::kF32, {frames, kColors, pixels.dim(2), pixels.dim(3)});
    }
    std::copy_n(pixels.f32(), pixels.size(), video.f32() + first_frame * kColors * pixels.dim(2) * pixels.dim(3));
  });
  return video;
}

Tensor WanVae::encode(const Tensor& video) const {
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
  require_finite(video, "pixels to encode");
  const int64_t frames = 1 + (video.dim(0) - 1) / group;
  Tensor latents(DType::kF32, {config.z_dim, frames, video.dim(2) / unit, video.dim(3) / unit});
  CodingState state(*impl_->backend, impl_->compute, impl_->encoder_histories);
  for (int64_t frame = 0; frame < frames; ++frame) {
    state.first_group = frame == 0;
    const Tensor pixels =
        gather_pixels(video, config.patch_size, frame == 0 ? 0 : 1 + (frame - 1) * group, frame == 0 ? 1 : group);
    const Clip coded =
        wan_vae::run(impl_->encoder, state, Impl::as_input(state, Impl::view_of(impl_->backend->from_host(pixels))));
    scatter_latents(impl_->download(coded), config, frame, latents);
  }
  return latents;
}

}  // namespace calibatt
