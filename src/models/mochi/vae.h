#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "backend/backend.h"
#include "backend/communicator.h"
#include "base/tensor.h"
#include "base/work_progress.h"
#include "calibatt/video.h"
#include "models/mochi/vae_config.h"

namespace calibatt {

/// How the work is cut, which changes results by rounding alone. The defaults are what the backend has best (ClipOps).
struct MochiVaeOptions {
  std::optional<bool> defers_bias = {};
  int64_t latent_frames_at_once = 0;                          ///< all but the first; 0: the backend's
  std::function<void(const std::string& message)> warn = {};  ///< as in ModelLoadOptions
};

/// The decoder of AutoencoderKLMochi, numerically as diffusers decodes a clip in one piece: convolutions over time see
/// the clip's first frame before it, and convolutions over space the nearest pixel outside the picture. It works in
/// groups of latent frames, from one to the next of which every convolution keeps its last input frames: memory does
/// not grow with the length of the clip. One object may decode from one thread at a time.
class MochiVae {
 public:
  /// A finished group: `pixels` is [frames, 3, H, W] F32 in [-1, 1] on the host, its first frame being `first_frame`.
  using FrameSink = std::function<void(int first_frame, const Tensor& pixels)>;

  /// folder: config.json and weights in diffusers' layout. The encoder's weights need not be there, and are not read.
  /// `compute` is kF32 or kBF16: the type of activations and weights; sums are F32 in both. The backend must outlive
  /// the object. Throws Error naming file and tensor: missing, of another shape (expected and found), not finite, or
  /// part of the decoder without a place in this configuration.
  static MochiVae load(const std::string& folder, Backend& backend, DType compute, const MochiVaeOptions& options = {});

  MochiVae(MochiVae&&) noexcept;
  MochiVae& operator=(MochiVae&&) noexcept;
  ~MochiVae();

  const MochiVaeConfig& config() const;

  /// Latents [z_dim, F, h, w] F32, on the host, as the denoising loop leaves them (normalised: the decoder sees
  /// z · latents_std / scaling_factor + latents_mean) → 1 + (F − 1) · frames_per_latent frames of
  /// h · w · pixels_per_latent² RGB pixels. `progress` hears of the frames, before each layer of a group. Throws
  /// Error(kMismatch) for another shape, Error(kNumeric) when the latents or the picture hold NaN.
  VideoFrames decode(const Tensor& latents, const WorkProgress& progress = {}, Communicator* ranks = nullptr) const;
  /// [frames, 3, H, W], [-1, 1]
  Tensor decode_to_float(const Tensor& latents, Communicator* ranks = nullptr) const;
  void decode_groups(const Tensor& latents, const FrameSink& sink) const;  ///< memory of one group

 private:
  struct Impl;
  explicit MochiVae(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace calibatt
