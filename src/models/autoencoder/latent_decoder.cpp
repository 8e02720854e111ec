#include "models/autoencoder/latent_decoder.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/mapped_ranges.h"
#include "base/thread_pool.h"
#include "models/autoencoder/patches.h"

namespace calibatt {

using namespace autoencoder;

namespace {

[[noreturn]] void refuse_nan(int64_t first_frame) {
  throw Error(ErrorKind::kNumeric, "the decoded video holds NaN from frame " + std::to_string(first_frame) +
                                       " on; check the autoencoder's weights, or decode in f32");
}

void require_latents(const Tensor& latents, int64_t z_dim) {
  if (latents.rank() != 4 || latents.dtype() != DType::kF32 || latents.dim(0) != z_dim ||
      std::ranges::min(latents.shape()) < 1) {
    throw Error(ErrorKind::kMismatch, "latents to decode: expected F32 [" + std::to_string(z_dim) +
                                          ", frames, height, width], found " + latents.describe());
  }
  if (!all_finite(latents)) throw Error(ErrorKind::kNumeric, "latents to decode hold NaN or infinite values");
}

/// A group as the last layer left it, of which ranks have some rows each → all of it on the first rank.
Clip whole_picture(CodingState& state, Clip own) {
  if (!state.rows.is_shared()) return own;
  const ClipView& size = own.view();
  Clip all;
  if (state.rows.is_first()) {
    all = state.pool.make(size.dtype, state.rows.height_of_all(size.height), size.frames, size.width, size.channels);
  }
  state.rows.gather_at_first(size, all.view());
  return all;
}

}  // namespace

/// Latents [z, F, h, w] → as the layers want them: [h, F, w, z], not normalised.
Tensor LatentDecoder::gather(const Tensor& latents) const {
  const int64_t channels = latents.dim(0), frames = latents.dim(1), height = latents.dim(2), width = latents.dim(3);
  Tensor result(DType::kF32, {height, frames, width, channels});
  const float* from = latents.f32();
  parallel_for(height, 4, [&](int64_t begin, int64_t end, int) {
    float* to = result.f32() + begin * frames * width * channels;
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t frame = 0; frame < frames; ++frame) {
        for (int64_t column = 0; column < width; ++column) {
          for (int64_t channel = 0; channel < channels; ++channel) {
            const float z = from[((channel * frames + frame) * height + row) * width + column];
            *to++ = z * settings_.scale[static_cast<size_t>(channel)] + settings_.shift[static_cast<size_t>(channel)];
          }
        }
      }
    }
  });
  return result;
}

void LatentDecoder::decode(const Tensor& latents, const GroupSink& sink, const WorkProgress& progress,
                           Communicator* ranks) const {
  require_latents(latents, static_cast<int64_t>(settings_.scale.size()));
  CodingState state(*settings_.backend, settings_.compute, num_histories_);
  const Tensor all = settings_.backend->from_host(gather(latents));
  ClipView rows = view_of(all);
  if (ranks != nullptr && ranks->size() > 1) {
    state.rows = RowShard(*ranks, rows.height);
    rows = rows.row_range(state.rows.latent_begin(), state.rows.latent_count());
  }
  const int64_t at_once =
      settings_.latent_frames_at_once > 0 ? settings_.latent_frames_at_once : state.ops.latent_frames_at_once();
  const auto num_frames = static_cast<int>(first_frame_of(latents.dim(1)));
  for (int64_t frame = 0; frame < latents.dim(1);) {
    state.first_group = frame == 0;
    const int64_t count = frame == 0 ? 1 : std::min(at_once, latents.dim(1) - frame);
    const int64_t first = first_frame_of(frame), group = first_frame_of(frame + count) - first;
    const auto before_layer = [&](size_t layer) {
      if (!progress) return;
      settings_.backend->limit_run_ahead();
      const double done = static_cast<double>(first) +
                          static_cast<double>(group) * static_cast<double>(layer) / static_cast<double>(layers_.size());
      progress(static_cast<int>(done), num_frames, done - std::floor(done));
    };
    Clip patches =
        whole_picture(state, run(layers_, state, as_input(state, rows.frame_range(frame, count)), before_layer));
    if (state.rows.is_first()) sink(first, group, std::move(patches));
    frame += count;
  }
  // Nobody else waits for what another rank has computed.
  if (!state.rows.is_first()) settings_.backend->synchronize();
  require_mapped_files();  // weights may be used where they lie
}

void LatentDecoder::decode_groups(const Tensor& latents, const FrameSink& sink, Communicator* ranks) const {
  const int patch = settings_.patch_size;
  decode(
      latents,
      [&](int64_t first_frame, int64_t frames, Clip patches) {
        const ClipView& view = patches.view();
        Tensor pixels(DType::kF32, {frames, kColors, view.height * patch, view.width * patch});
        const Tensor host = settings_.backend->to_host(patches.storage());
        if (!scatter_pixels(host, patch, pixels)) refuse_nan(first_frame);
        sink(static_cast<int>(first_frame), pixels);
      },
      {}, ranks);
}

VideoFrames LatentDecoder::decode(const Tensor& latents, const WorkProgress& progress, Communicator* ranks) const {
  VideoFrames video;
  const int patch = settings_.patch_size;
  struct Group {
    int64_t first_frame = 0;
    Clip patches;
    std::unique_ptr<PendingRgb> rgb;
  };
  Group last;  // fetched while the backend computes the next one
  const auto finish = [&](Group group) {
    if (!group.rgb) return;
    if (!group.rgb->finish(video.rgb.data() + static_cast<size_t>(group.first_frame) * video.frame_bytes())) {
      refuse_nan(group.first_frame);
    }
  };
  decode(
      latents,
      [&](int64_t first_frame, int64_t frames, Clip patches) {
        const ClipView& view = patches.view();
        if (first_frame == 0) {
          video.frames = static_cast<int>(first_frame_of(latents.dim(1)));
          video.height = static_cast<int>(view.height) * patch;
          video.width = static_cast<int>(view.width) * patch;
          video.rgb.resize(static_cast<size_t>(video.frames) * video.frame_bytes());
        }
        Group group;
        group.first_frame = first_frame;
        group.rgb = settings_.backend->clip_ops().start_rgb(view.frame_range(view.frames - frames, frames), patch);
        group.patches = std::move(patches);
        finish(std::exchange(last, std::move(group)));
      },
      progress, ranks);
  finish(std::move(last));
  const auto num_frames = static_cast<int>(first_frame_of(latents.dim(1)));
  if (progress) progress(num_frames, num_frames, 0);
  return video;
}

Tensor LatentDecoder::decode_to_float(const Tensor& latents, Communicator* ranks) const {
  Tensor video;
  const auto keep = [&](int first_frame, const Tensor& pixels) {
    if (first_frame == 0) {
      video = Tensor(DType::kF32, {first_frame_of(latents.dim(1)), pixels.dim(1), pixels.dim(2), pixels.dim(3)});
    }
    std::copy_n(pixels.f32(), pixels.size(), video.f32() + first_frame * pixels.size() / pixels.dim(0));
  };
  decode_groups(latents, keep, ranks);
  return video;
}

}  // namespace calibatt
