#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "attention/self_attention.h"
#include "backend/backend.h"
#include "base/tensor.h"
#include "base/work_progress.h"
#include "calibatt/pipeline.h"
#include "calibatt/prompts.h"
#include "calibatt/video.h"
#include "model_settings/load_options.h"
#include "models/block_formats.h"
#include "sampling/scheduler.h"
#include "sampling/step_settings.h"
#include "sparsity/geometry.h"

namespace calibatt {

/// Of a video: frames, and pixels.
struct VideoSize {
  int frames = 0, height = 0, width = 0;
};

/// What a run does where nobody says otherwise.
struct ModelDefaults {
  int width = 832, height = 480, video_frames = 81, steps = 50;
  double cfg_scale = 5, fps = 16;
  std::optional<double> cfg_scale_2 = {};  ///< of the second expert; absent: cfg_scale
  std::string path;                        ///< of the file that says some of them; empty: none does
};

/// What a model's settings say of it. Known before any weight is read.
struct ModelDescription {
  std::string path;  ///< of its folder
  std::string name;  ///< the folder's own name
  std::string kind;  ///< diffusers' class of its transformer, such as "WanTransformer3DModel"
  ModelDefaults defaults;
  SchedulerConfig scheduler;
  std::vector<std::string> warnings;  ///< one line each, about settings that this version does not know
  std::vector<Expert> experts = std::vector<Expert>(1);
  std::vector<std::string> weight_files;        ///< all that hold tensors of it
  std::vector<std::string> text_encoder_files;  ///< those of its text encoder
  std::vector<std::string> tokenizer_files;
  std::string settings;  ///< what its components' files say, as one text: videos depend on it beside the weights

  bool takes_image = false;     ///< its videos begin with a picture that is given
  bool shards_weights = false;  ///< several ranks can keep parts of its blocks (ModelLoadOptions::shards)

  int num_layers = 0, num_heads = 0, head_dim = 0;  ///< of each transformer
  int max_prompt_tokens = 512;                      ///< what a prompt is cut to

  // How a video becomes latents and tokens.
  int latent_channels = 16;
  int frames_per_latent = 4;               ///< of all latent frames but the first, which is one frame
  int pixels_per_latent = 8;               ///< rows, and columns
  std::array<int, 3> patch_size{1, 2, 2};  ///< latent frames, rows, columns per token
  int max_positions = 1024;                ///< tokens along an axis of the grid

  /// Latent frames, rows, columns of a video; sizes that do not divide are rounded down.
  std::array<int, 3> latent_size(const VideoSize& size) const {
    return {(size.frames - 1) / frames_per_latent + 1, size.height / pixels_per_latent, size.width / pixels_per_latent};
  }
  /// The attention problem of a video's tokens; without text. The size must be one that the model can do
  /// (pipeline/options.h checks it).
  AttentionGeometry geometry(const VideoSize& size, const TokenOrder& order = TokenOrder::raster()) const;
};

/// Where a forward's time went, in seconds, by the backend's own clock (Backend::make_timer); forwards add to it.
struct TransformerTimes {
  double self_attention = 0;  ///< inside SelfAttention::attend or norm_and_attend (pipeline.h: StageSeconds)
  double other = 0;           ///< everything else of the transformer
  double total() const { return self_attention + other; }
};

/// A picture that a video begins with.
struct FirstFrame {
  const Picture& picture;  ///< as it is
  Tensor pixels;           ///< [3, height, width] F32 in [−1, 1] on the host, of the video's size
  int video_frames = 0;
};

/// What a model makes of a picture that videos begin with, the same for all prompts: its own, made by encode_picture.
class EncodedPicture {
 public:
  virtual ~EncodedPicture() = default;
};

/// What a model needs of a run's prompts, the same in every step: a model's own, made by its encode.
class Conditioning {
 public:
  virtual ~Conditioning() = default;
  /// What an encode before took for these prompts, less what this one took for prompts of later ones.
  double text_seconds_elsewhere = 0;
};

/// A model that makes videos of text, or of text and a picture, loaded: what the pipeline and calibration drive, and
/// all that they know of it. One thread. Adding a model: implement this and ModelFiles in a folder of its own, and give
/// registry.cpp a line.
class VideoModel {
 public:
  virtual ~VideoModel() = default;
  virtual const ModelDescription& description() const = 0;
  virtual Backend& backend() = 0;
  virtual DType dtype() const = 0;  ///< of the transformer's arithmetic

  /// Cleans and tokenizes a prompt, without encoding it. Throws Error(kUsage) for one that the model cannot read;
  /// warns (ModelLoadOptions::warn), once for each prompt, when it is longer than the model reads.
  virtual void check_prompt(const Prompt& prompt) = 0;
  /// Prompts that encode will be asked for from here on, in this order: it may encode the text of several at a time,
  /// since reading a text encoder takes longer than its arithmetic. Throws as check_prompt.
  virtual void expect_prompts(const std::vector<Prompt>& prompts);
  /// The prompts of both branches of guidance; `negative` is null without guidance. `progress` hears of the text
  /// encoder's blocks.
  virtual std::unique_ptr<Conditioning> encode(const Prompt& prompt, const Prompt* negative,
                                               const WorkProgress& progress) = 0;

  /// Of a model that takes a picture. `progress` hears of latent frames, or of a picture encoder's layers. On the host.
  virtual std::shared_ptr<const EncodedPicture> encode_picture(const FirstFrame& first, const WorkProgress& progress);
  /// The video of a conditioning begins with this. Of a model that takes a picture, once after encode.
  virtual void begin_with(const std::shared_ptr<const EncodedPicture>& picture, Conditioning& conditioning);

  /// Tells of the steps of the runs that follow, before their prompts are encoded, so that what they need is loaded
  /// before they begin. They work without, and then load it when they come to it. `progress` hears of blocks.
  virtual void expect_steps(std::span<const StepSettings> /*steps*/, const WorkProgress& /*progress*/) {}

  /// One forward of the step's expert. latents: host, F32 [channels, frames, rows, columns]. Returns its prediction of
  /// noise − data (a model that was trained on another target or sign converts it), host, F32, of the same shape. The
  /// caller has told `attention` which forward this is, and every rank that shares it (SelfAttention::ranks) does the
  /// same. `progress` hears of the blocks, at least once in each, with little left to do on the device behind it.
  virtual Tensor forward(const Tensor& latents, const StepSettings& step, GuidanceBranch branch,
                         const Conditioning& conditioning, SelfAttention& attention, TransformerTimes& times,
                         const WorkProgress& progress) = 0;

  /// Latents as the denoising loop leaves them → the video. Frees what forwards kept. `progress` hears of the frames.
  /// ranks: of the models that decode it together, each some of its rows, at most as many as latents have rows. Each is
  /// called with the same latents, and the first gets the video; the others' are empty. Null: alone.
  virtual VideoFrames decode(const Tensor& latents, const WorkProgress& progress, Communicator* ranks) = 0;

  /// Of one expert's weights and settings, in the scheme that `like` is of (io/fingerprint.h; empty: the present one).
  /// Reads all of them when first asked; `progress` hears of the tensors.
  virtual std::string fingerprint(int expert, const std::string& like, const WorkProgress& progress) = 0;
};

/// What a model's memory depends on beside a video's size.
struct Arithmetic {
  Arithmetic(DType dtype, bool eight_bit_layers = false, int wide_transformers = 0, int num_ranks = 1,
             int decoding_ranks = 1, int weight_ranks = 1, bool on_host = false, bool offload = false)
      : dtype(dtype),
        eight_bit_layers(eight_bit_layers),
        wide_transformers(wide_transformers),
        num_ranks(num_ranks),
        decoding_ranks(decoding_ranks),
        weight_ranks(weight_ranks),
        on_host(on_host),
        offload(offload) {}

  DType dtype;
  bool eight_bit_layers;  ///< ModelLoadOptions::eight_bit_layers
  int wide_transformers;  ///< of which some steps are without them (StepSettings::eight_bit_layers)
  int num_ranks;          ///< that share a forward; the memory is one rank's
  int decoding_ranks;     ///< that share decoding; the memory is the first one's
  int weight_ranks;       ///< that keep a part of each block (ModelLoadOptions::shards); 1: blocks are whole
  bool on_host;           ///< a CPU computes
  bool offload;           ///< ModelLoadOptions::offload
  std::vector<std::string> kept_layers = {};  ///< ModelLoadOptions::kept_layers
};

/// A model on disk whose settings are understood; its weights are not read yet.
class ModelFiles {
 public:
  virtual ~ModelFiles() = default;
  virtual const ModelDescription& description() const = 0;
  virtual MemoryEstimate memory(const VideoSize& size, const Arithmetic& arithmetic) const = 0;
  /// Which linear layers would be in 8 bits. Throws Error(kUsage) for an entry of kept_layers that names none of these.
  virtual BlockFormats block_formats(DType dtype, const ModelLoadOptions& options) const = 0;
  /// With layers in 8 bits: by how many bytes those that ModelLoadOptions::kept_layers names, of type `dtype`, are
  /// larger than in 8 bits on a device. Throws as block_formats.
  uint64_t kept_layer_bytes(const std::vector<std::string>& kept_layers, DType dtype) const;
  /// Whether no layer would be in 8 bits, all of them being named.
  bool keeps_all_layers(const std::vector<std::string>& kept_layers) const;
  /// kF16: the transformer; what exceeds half precision beside it is in bfloat16. The backend must outlive the model.
  /// Throws Error naming file and tensor.
  virtual std::unique_ptr<VideoModel> load(Backend& backend, DType dtype, const ModelLoadOptions& options) const = 0;

 protected:
  /// What whole weights take where the model computes; all_wide: without layers in 8 bits.
  uint64_t whole_weight_bytes(uint64_t all_wide, const Arithmetic& arithmetic) const;
  /// Beside whole weights: the device's buffers for the layers of steps without 8 bits, of which it holds none.
  uint64_t wide_buffer_bytes(const Arithmetic& arithmetic) const;
  /// What a host keeps of one transformer for the steps without 8 bits. kept_are_shared: these steps use the layers
  /// that stay in the run's type where the others have them, so that only the rest is kept.
  uint64_t wide_layer_bytes(const Arithmetic& arithmetic, bool kept_are_shared) const;

 private:
  BlockFormats eight_bit_formats(const std::vector<std::string>& kept_layers, DType dtype) const;
};

}  // namespace calibatt
