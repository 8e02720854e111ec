#include "models/wan/model.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "base/error.h"
#include "models/clip/vision_encoder.h"
#include "models/model_folder.h"
#include "models/original_layout.h"
#include "models/prompt_embeddings.h"
#include "models/prompt_reader.h"
#include "models/t5/encoder.h"
#include "models/wan/experts.h"
#include "models/wan/layers.h"
#include "models/wan/memory.h"
#include "models/wan/vae.h"
#include "text/text_clean.h"

namespace calibatt {
namespace {

constexpr int kMaxPromptTokens = 512;  // WanPipeline's max_sequence_length

/// What the settings of all components say.
struct WanConfigs {
  WanTransformerConfig transformer;
  WanVaeConfig vae;
  T5Config text_encoder;
};

/// Channels beside the latents of a model that takes a picture: a mark of each video frame of a latent frame, 1 where
/// it is given, and the latents of the video that is the picture and nothing (zeros) behind it.
int image_channels(const WanConfigs& configs) {
  return configs.vae.frames_per_latent() + configs.vae.z_dim;
}

bool takes_image(const WanConfigs& configs) {
  return configs.transformer.in_channels == configs.vae.z_dim + image_channels(configs);
}

/// Refused before anything is loaded: a component that is not of the same model as the others.
void check_components(const WanConfigs& configs, const std::string& folder) {
  const WanTransformerConfig& transformer = configs.transformer;
  const std::string channels = "the VAE's latent channels (z_dim) are";
  if (!takes_image(configs)) {
    require_one_model(folder, channels, configs.vae.z_dim, "the transformer's in_channels", transformer.in_channels);
  }
  require_one_model(folder, channels, configs.vae.z_dim, "the transformer's out_channels", transformer.out_channels);
  require_one_model(folder, "the text encoder's width (d_model) is", configs.text_encoder.d_model,
                    "the transformer's text_dim", transformer.text_dim);
}

class WanPicture final : public EncodedPicture {
 public:
  Tensor channels;  ///< what the transformer sees beside the latents, [image_channels, frames, rows, columns] F32
  Tensor rows;      ///< what its blocks see, as ClipVisionEncoder gives it, or empty
};

/// Text is encoded once. What a transformer makes of it is made when its steps begin, and belongs to it alone.
class WanConditioning final : public Conditioning {
 public:
  std::vector<Tensor> embeddings;  ///< of the prompt and, in guided runs, of the negative one
  struct Prepared {
    int expert = -1;  ///< none yet
    std::vector<WanPrompt> prompts;
  };
  mutable std::vector<Prepared> prepared;
  std::shared_ptr<const WanPicture> picture = std::make_shared<const WanPicture>();  ///< empty where none is taken
};

/// The text encoder, by far the largest part of the public checkpoints, is read block by block and never in memory as a
/// whole; once for up to 32 prompts that are expected.
class WanModel final : public VideoModel {
 public:
  /// sees_picture: in the blocks, through CLIP.
  WanModel(const WanFolder& folder, ModelDescription description, bool sees_picture, Backend& backend, DType dtype,
           const ModelLoadOptions& options)
      : description_(std::move(description)),
        backend_(backend),
        dtype_(dtype),
        prompts_(folder.tokenizer, kMaxPromptTokens, clean_prompt, options.warn),
        text_encoder_(T5Encoder::open(backend, folder.text_encoder, dtype_beside(dtype), options)),
        vae_(WanVae::load(folder.vae, backend, dtype_beside(dtype),
                          {.encodes = description_.takes_image,
                           .defers_bias = {},
                           .warn = options.warn,
                           .settings = folder.vae_settings})),
        clip_(sees_picture ? std::optional(ClipVisionEncoder::open(folder.image_encoder, folder.image_processor,
                                                                   {.warn = options.warn}))
                           : std::nullopt),
        experts_(folder, backend, dtype, options) {}

  const ModelDescription& description() const override { return description_; }
  Backend& backend() override { return backend_; }
  DType dtype() const override { return dtype_; }

  void check_prompt(const Prompt& prompt) override { tokenize(prompt); }

  void expect_prompts(const std::vector<Prompt>& prompts) override {
    std::vector<std::vector<int32_t>> expected;
    expected.reserve(prompts.size());
    for (const Prompt& prompt : prompts) expected.push_back(tokenize(prompt));
    embeddings_.expect(std::move(expected));
  }

  std::unique_ptr<Conditioning> encode(const Prompt& prompt, const Prompt* negative,
                                       const WorkProgress& progress) override {
    std::vector<std::vector<int32_t>> prompts{tokenize(prompt)};
    if (negative != nullptr) prompts.push_back(tokenize(*negative));
    auto result = std::make_unique<WanConditioning>();
    PromptEmbeddings::Embeddings text = embeddings_.of(prompts, progress);
    result->embeddings = std::move(text.of_prompts);
    result->text_seconds_elsewhere = text.seconds_elsewhere;
    backend_.trim_memory();
    if (description_.takes_image) return result;  // prompts are prepared once the picture is known
    const int blocks = text_encoder_.config().num_layers;
    prepare(0, *result, [&](int, int, double) {
      if (progress) progress(blocks, blocks, 0);
    });
    return result;
  }

  std::shared_ptr<const EncodedPicture> encode_picture(const FirstFrame& first, const WorkProgress& progress) override {
    auto result = std::make_shared<WanPicture>();
    if (clip_) result->rows = clip_->encode(first.picture, progress);
    const Tensor& image = first.pixels;
    experts_.release_buffers();  // as large as the autoencoder's
    backend_.trim_memory();
    const Tensor latents =
        vae_.encode(image.reshaped({1, image.dim(0), image.dim(1), image.dim(2)}), progress, first.video_frames - 1);
    backend_.trim_memory();
    const int64_t marks = vae_.config().frames_per_latent(), plane = latents.size() / (latents.dim(0) * latents.dim(1));
    Tensor all = Tensor::zeros(DType::kF32, {marks + latents.dim(0), latents.dim(1), latents.dim(2), latents.dim(3)});
    for (int64_t mark = 0; mark < marks; ++mark) std::fill_n(all.f32() + mark * latents.dim(1) * plane, plane, 1.0f);
    std::memcpy(all.f32() + marks * latents.dim(1) * plane, latents.raw(), latents.size_bytes());
    result->channels = std::move(all);
    return result;
  }

  void begin_with(const std::shared_ptr<const EncodedPicture>& picture, Conditioning& conditioning) override {
    static_cast<WanConditioning&>(conditioning).picture =  // made by encode, and encode_picture
        std::static_pointer_cast<const WanPicture>(picture);
  }

  void expect_steps(std::span<const StepSettings> steps, const WorkProgress& progress) override {
    has_wide_steps_.assign(static_cast<size_t>(experts_.size()), false);
    for (const StepSettings& step : steps) {
      if (!step.eight_bit_layers) has_wide_steps_[static_cast<size_t>(step.expert)] = true;
    }
    for (int expert = 0; expert < experts_.size(); ++expert) {
      if (experts_.is_loaded(expert)) load_for_steps(expert, progress);
    }
  }

  Tensor forward(const Tensor& latents, const StepSettings& step, GuidanceBranch branch,
                 const Conditioning& conditioning, SelfAttention& attention, TransformerTimes& times,
                 const WorkProgress& progress) override {
    const auto& prompts = static_cast<const WanConditioning&>(conditioning);  // made by encode
    const std::vector<WanPrompt>& prepared = prepare(step.expert, prompts, [&](int, int total, double) {
      if (progress) progress(0, total, 0);
    });
    const size_t prompt = branch == GuidanceBranch::kConditional ? 0 : 1;
    CALIBATT_ASSERT(prompt < prepared.size());
    return experts_.use(step.expert, progress)
        .forward(with_image(latents, prompts.picture->channels), {step.timestep, step.eight_bit_layers},
                 prepared[prompt], attention, &times, {}, progress);
  }

  VideoFrames decode(const Tensor& latents, const WorkProgress& progress, Communicator* ranks) override {
    experts_.release_buffers();
    backend_.trim_memory();  // what libraries allocate by themselves cannot come from what a pool keeps
    return vae_.decode(latents, progress, ranks);
  }

  std::string fingerprint(int expert, const std::string& like, const WorkProgress& progress) override {
    return experts_.fingerprint(expert, like, progress);
  }

 private:
  static Tensor with_image(const Tensor& latents, const Tensor& image) {
    if (image.empty()) return latents;
    Tensor all(DType::kF32, {latents.dim(0) + image.dim(0), latents.dim(1), latents.dim(2), latents.dim(3)});
    std::memcpy(all.raw(), latents.raw(), latents.size_bytes());
    std::memcpy(all.f32() + latents.size(), image.raw(), image.size_bytes());
    return all;
  }

  /// A transformer, and what its steps need beside its layers in 8 bits.
  WanTransformer& load_for_steps(int expert, const WorkProgress& progress) {
    WanTransformer& transformer = experts_.use(expert, progress);
    if (has_wide_steps_[static_cast<size_t>(expert)]) transformer.load_wide_layers(progress);
    return transformer;
  }

  /// The prompts as this expert takes them.
  const std::vector<WanPrompt>& prepare(int expert, const WanConditioning& conditioning, const WorkProgress& progress) {
    for (const auto& each : conditioning.prepared) {
      if (each.expert == expert && experts_.is_loaded(expert)) return each.prompts;
    }
    if (!experts_.is_loaded(expert)) conditioning.prepared.clear();  // they hold memory of the one that goes
    WanConditioning::Prepared made{expert, {}};
    WanTransformer& transformer = load_for_steps(expert, progress);
    for (const Tensor& text : conditioning.embeddings) {
      made.prompts.push_back(transformer.prepare_prompt(text, kMaxPromptTokens, progress, conditioning.picture->rows));
    }
    conditioning.prepared.push_back(std::move(made));
    return conditioning.prepared.back().prompts;
  }

  std::vector<int32_t> tokenize(const Prompt& prompt) {
    std::vector<int32_t> ids = prompts_.tokens(prompt);
    text_encoder_.check_tokens(ids);
    return ids;
  }

  ModelDescription description_;
  Backend& backend_;
  DType dtype_;
  PromptReader prompts_;
  T5Encoder text_encoder_;
  PromptEmbeddings embeddings_{[this](const std::vector<std::vector<int32_t>>& prompts, const WorkProgress& progress) {
    return text_encoder_.encode_all(prompts, progress);
  }};
  WanVae vae_;
  std::optional<ClipVisionEncoder> clip_;
  std::vector<bool> has_wide_steps_ = std::vector<bool>(description_.experts.size());  // of each expert
  WanExperts experts_;  // last: they take long, and what is wrong with the others is said before
};

class WanFiles final : public ModelFiles {
 public:
  WanFiles(const std::string& path, const ModelParts& parts) : folder_(open_wan_folder(path, parts)) {
    const auto& [first, settings] = folder_.transformers.front();
    const Component transformer = open_transformer(first, {.settings = settings}),
                    vae = open_vae(folder_.vae, {.settings = folder_.vae_settings}),
                    text_encoder = open_text_encoder(folder_.text_encoder, {.settings = folder_.text_encoder_settings});
    configs_ = {WanTransformerConfig::from(transformer.config), WanVaeConfig::from(vae.config),
                T5Config::from(text_encoder.config)};
    check_components(configs_, path);
    check_picture_encoder(path);
    if (takes_image(configs_)) describe_image_to_video(path, folder_);
    description_ = folder_.description;
    describe_files(transformer, vae, text_encoder, folder_.tokenizer, description_);
    if (configs_.transformer.image_dim > 0) {
      const Component encoder = open_component_folder(folder_.image_encoder);
      add_weight_files(encoder, description_.weight_files);
      add_settings(encoder.config, description_.settings);
      add_settings(JsonConfig::load(folder_.image_processor + "/preprocessor_config.json"), description_.settings);
      picture_encoding_ = ClipVisionConfig::from(encoder.config).encoding_bytes();
    }
    check_experts(path);
    elements_ = {num_elements(transformer.tensors), num_elements(vae.tensors)};

    description_.kind = "WanTransformer3DModel";
    description_.takes_image = takes_image(configs_);
    description_.shards_weights = true;
    description_.num_layers = configs_.transformer.num_layers;
    description_.num_heads = configs_.transformer.num_attention_heads;
    description_.head_dim = configs_.transformer.attention_head_dim;
    description_.max_prompt_tokens = kMaxPromptTokens;
    description_.latent_channels = configs_.vae.z_dim;
    description_.frames_per_latent = configs_.vae.frames_per_latent();
    description_.pixels_per_latent = configs_.vae.pixels_per_latent();
    description_.patch_size = configs_.transformer.patch_size;
    description_.max_positions = configs_.transformer.rope_max_seq_len;
  }

  const ModelDescription& description() const override { return description_; }

  MemoryEstimate memory(const VideoSize& size, const Arithmetic& arithmetic) const override {
    const DType dtype = arithmetic.dtype;
    const int64_t tokens = description_.geometry(size).num_tokens();
    MemoryEstimate needs = memory_estimate(
        elements_, wan_activation_bytes(configs_.transformer, tokens, kMaxPromptTokens, arithmetic),
        wan_decoding_bytes(configs_.vae, size, dtype_beside(dtype), arithmetic.decoding_ranks), size, dtype);
    needs.host_weights = wide_layer_bytes(arithmetic, false);  // whole blocks are reserved
    if (arithmetic.weight_ranks > 1 || arithmetic.offload) {
      share_weights(arithmetic, needs);
    } else {
      needs.weights = whole_weight_bytes(needs.weights, arithmetic);
      needs.activations += wide_buffer_bytes(arithmetic);
    }
    // The picture is encoded before there are frames. Its way through the video autoencoder takes less than theirs.
    needs.video = std::max(needs.video, picture_encoding_);
    return needs;
  }

  BlockFormats block_formats(DType dtype, const ModelLoadOptions& options) const override {
    return WanLayers::formats(configs_.transformer, dtype, options);
  }

  std::unique_ptr<VideoModel> load(Backend& backend, DType dtype, const ModelLoadOptions& options) const override {
    auto model =
        std::make_unique<WanModel>(folder_, description_, configs_.transformer.image_dim > 0, backend, dtype, options);
    backend.trim_memory();
    return model;
  }

 private:
  /// Of each block a part, or none where the host keeps them; of two transformers both, which stay, and two buffers for
  /// blocks while there are activations.
  void share_weights(const Arithmetic& arithmetic, MemoryEstimate& needs) const {
    const auto experts = static_cast<uint64_t>(description_.experts.size());
    const WanShardBytes bytes = wan_shard_bytes(configs_.transformer, arithmetic);
    const uint64_t beside_blocks =
        less_described(elements_.transformer * dtype_size(arithmetic.dtype), bytes.wide_blocks, description_.path);
    const uint64_t part = arithmetic.offload ? 0 : bytes.blocks / static_cast<uint64_t>(arithmetic.weight_ranks);
    needs.weights = experts * (beside_blocks + part);
    needs.activations += bytes.buffers;
    needs.host_weights *= static_cast<uint64_t>(arithmetic.wide_transformers);
    if (arithmetic.offload) needs.host_weights += experts * bytes.blocks;
  }

  /// Of a transformer that sees a picture in its blocks.
  void check_picture_encoder(const std::string& path) const {
    const int width = configs_.transformer.image_dim;
    if (width == 0) return;
    if (!takes_image(configs_)) {
      require_one_model(path, "the transformer sees a picture in its blocks and its in_channels are",
                        configs_.transformer.in_channels, "latents and a picture have",
                        configs_.vae.z_dim + image_channels(configs_));
    }
    if (folder_.image_encoder.empty() || folder_.image_processor.empty()) {
      throw Error(ErrorKind::kMismatch,
                  path +
                      ": the transformer sees its picture through CLIP, and the model has no image_encoder and "
                      "image_processor; give a folder in the diffusers layout, such as "
                      "Wan2.1-I2V-14B-480P-Diffusers (with --transformer for a single file beside it)");
    }
    require_folders(path, {folder_.image_encoder, folder_.image_processor});
    const Component encoder = open_component_folder(folder_.image_encoder);
    require_one_model(path, "the image encoder's hidden_size is", ClipVisionConfig::from(encoder.config).hidden_size,
                      "the transformer's image_dim", width);
  }

  /// The second must be of the first one's shape: they take the same prompts and latents, and one plan is for both.
  void check_experts(const std::string& path) {
    for (size_t expert = 1; expert < folder_.transformers.size(); ++expert) {
      const auto& [transformer, settings] = folder_.transformers[expert];
      const Component opened = open_transformer(transformer, {.settings = settings});
      add_weight_files(opened, description_.weight_files);
      add_settings(opened.config, description_.settings);
      const WanTransformerConfig config = WanTransformerConfig::from(opened.config);
      if (config.fingerprint_settings() == configs_.transformer.fingerprint_settings()) continue;
      throw Error(ErrorKind::kMismatch, path + ": " + transformer + " and " + folder_.transformers.front().path +
                                            " are transformers of different shapes; they are not of one model");
    }
  }

  WanFolder folder_;
  ModelDescription description_;
  WanConfigs configs_;
  ModelElements elements_;
  uint64_t picture_encoding_ = 0;  // host memory; of models whose blocks see their picture
};

}  // namespace

std::unique_ptr<ModelFiles> open_wan(const std::string& folder, const ModelParts& parts) {
  return std::make_unique<WanFiles>(folder, parts);
}

}  // namespace calibatt
