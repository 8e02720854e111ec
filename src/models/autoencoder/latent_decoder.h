#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "backend/backend.h"
#include "backend/communicator.h"
#include "base/tensor.h"
#include "base/work_progress.h"
#include "calibatt/video.h"
#include "models/autoencoder/layers.h"

namespace calibatt {

/// The way from latents to frames, whatever the layers are: the first latent frame alone, of which one frame comes
/// (the last that the layers make), then groups of latent frames. What convolutions carry from group to group makes
/// the result independent of how the clip was cut. One object may decode from one thread at a time.
class LatentDecoder {
 public:
  struct Settings {
    Backend* backend = nullptr;
    DType compute = DType::kF32;        ///< of activations
    int64_t latent_frames_at_once = 0;  ///< all but the first; 0: the backend's
    int frames_per_latent = 1;          ///< all but the first
    int patch_size = 1;                 ///< pixels per axis that the last layer yields in its channels
    std::vector<float> scale, shift;    ///< [z_dim]: the layers see z · scale + shift
  };
  using FrameSink = std::function<void(int first_frame, const Tensor& pixels)>;

  LatentDecoder() = default;
  /// The last layer yields F32. num_histories: of the layers' builder.
  LatentDecoder(Settings settings, autoencoder::Layers layers, int num_histories)
      : settings_(std::move(settings)), layers_(std::move(layers)), num_histories_(num_histories) {}

  /// As WanVae and MochiVae say. latents: host, [z_dim, F, h, w] F32. ranks: of the backends that share the rows of the
  /// picture, each with the same latents, at most as many as latents have rows; the first gets the video, the others an
  /// empty one. Null: none.
  VideoFrames decode(const Tensor& latents, const WorkProgress& progress, Communicator* ranks = nullptr) const;
  Tensor decode_to_float(const Tensor& latents, Communicator* ranks = nullptr) const;
  void decode_groups(const Tensor& latents, const FrameSink& sink, Communicator* ranks = nullptr) const;

 private:
  /// The frames of a group are the last ones of `patches`, which the backend may still be computing. Of ranks the first
  /// alone hears of them.
  using GroupSink = std::function<void(int64_t first_frame, int64_t frames, Clip patches)>;
  void decode(const Tensor& latents, const GroupSink& sink, const WorkProgress& progress, Communicator* ranks) const;
  int64_t first_frame_of(int64_t latent_frame) const {
    return latent_frame == 0 ? 0 : 1 + (latent_frame - 1) * settings_.frames_per_latent;
  }
  Tensor gather(const Tensor& latents) const;

  Settings settings_;
  autoencoder::Layers layers_;
  int num_histories_ = 0;
};

}  // namespace calibatt
