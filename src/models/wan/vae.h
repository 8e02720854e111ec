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
#include "models/wan/vae_config.h"

namespace calibatt {

/// What is loaded, and how the work is cut, which changes results by rounding alone. The defaults are what the backend
/// has best (ClipOps).
struct WanVaeOptions {
  bool encodes = true;  ///< false: the encoder, which text to video has no use for, is not loaded
  std::optional<bool> defers_bias = {};
  int64_t latent_frames_at_once = 0;                          ///< when decoding, all but the first; 0: the backend's
  std::function<void(const std::string& message)> warn = {};  ///< as in ModelLoadOptions
  std::string settings = {};                                  ///< likewise
};

/// AutoencoderKLWan: the causal video autoencoder of Wan 2.1 (and of tiny-wan), numerically as diffusers runs it.
/// A clip is coded in groups over time (the first frame alone, then groups of frames_per_latent); every causal
/// convolution carries its last input frames from group to group, so memory does not grow with the length of the clip
/// and the result does not depend on how it was cut. One object may decode from one thread at a time.
class WanVae {
 public:
  /// A finished group: `pixels` is [frames, 3, H, W] F32 in [-1, 1] on the host, its first frame being `first_frame`.
  using FrameSink = std::function<void(int first_frame, const Tensor& pixels)>;

  /// path: as open_vae (models/original_layout.h) takes it. `compute` is kF32 or kBF16: the type of activations and
  /// weights; sums are F32 in both. The backend must outlive the object. Throws Error naming file and tensor: missing,
  /// of another shape (expected and found), or not finite.
  static WanVae load(const std::string& path, Backend& backend, DType compute, const WanVaeOptions& options = {});

  WanVae(WanVae&&) noexcept;
  WanVae& operator=(WanVae&&) noexcept;
  ~WanVae();

  const WanVaeConfig& config() const;

  /// Latents [z_dim, F, h, w] F32 as the denoising loop leaves them (normalised: z · latents_std + latents_mean is what
  /// the decoder sees) → 1 + (F − 1) · frames_per_latent frames of h · w · pixels_per_latent² RGB pixels.
  /// `progress` hears of the frames, before each layer of a group. Throws Error(kMismatch) for another shape,
  /// Error(kNumeric) when the latents or the picture hold NaN.
  VideoFrames decode(const Tensor& latents, const WorkProgress& progress = {}, Communicator* ranks = nullptr) const;
  /// [frames, 3, H, W], [-1, 1]
  Tensor decode_to_float(const Tensor& latents, Communicator* ranks = nullptr) const;
  void decode_groups(const Tensor& latents, const FrameSink& sink) const;  ///< memory of one group

  /// Video [frames, 3, H, W] F32 in [-1, 1] → the posterior's mean, normalised as `decode` expects it, [z_dim, F, h,
  /// w]. `frames` must be 1 + a multiple of four, H and W multiples of pixels_per_latent; Error(kMismatch) otherwise.
  /// Only of an object that was loaded with its encoder. blank_frames: so many frames of zeros, a multiple of four,
  /// follow the video. `progress` hears of latent frames.
  Tensor encode(const Tensor& video, const WorkProgress& progress = {}, int64_t blank_frames = 0) const;

 private:
  struct Impl;
  explicit WanVae(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace calibatt
