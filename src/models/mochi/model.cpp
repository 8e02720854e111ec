#include "models/mochi/model.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/error.h"
#include "models/lora.h"
#include "models/mochi/layers.h"
#include "models/mochi/memory.h"
#include "models/mochi/transformer.h"
#include "models/mochi/vae.h"
#include "models/mochi/vae_memory.h"
#include "models/model_folder.h"
#include "models/prompt_embeddings.h"
#include "models/prompt_reader.h"
#include "models/t5/encoder.h"
#include "models/transformer_fingerprint.h"

namespace calibatt {
namespace {

constexpr int kMaxPromptTokens = 256;  // MochiPipeline's max_sequence_length
constexpr double kTimesteps = 1000;

/// What the settings of all components say.
struct MochiConfigs {
  MochiTransformerConfig transformer;
  MochiVaeConfig vae;
  T5Config text_encoder;
  bool empty_prompt_has_no_tokens = false;  ///< "force_zeros_for_empty_prompt"
};

/// Refused before anything is loaded: a component that is not of the same model as the others.
void check_components(const MochiConfigs& configs, const std::string& folder) {
  const MochiTransformerConfig& transformer = configs.transformer;
  const std::string channels = "the VAE's latent channels are";
  require_one_model(folder, channels, configs.vae.z_dim, "the transformer's in_channels", transformer.in_channels);
  require_one_model(folder, channels, configs.vae.z_dim, "the transformer's out_channels", transformer.out_channels);
  require_one_model(folder, "the text encoder's width (d_model) is", configs.text_encoder.d_model,
                    "the transformer's text_embed_dim", transformer.text_embed_dim);
}

class MochiConditioning final : public Conditioning {
 public:
  MochiPrompt conditional;
  std::optional<MochiPrompt> unconditional;
};

/// The text encoder, of the size of the transformer in the public checkpoint, is read block by block and never in
/// memory as a whole; once for up to 32 prompts that are expected.
class MochiModel final : public VideoModel {
 public:
  /// options: with the LoRAs merged into its overlay.
  MochiModel(const DiffusersFolder& folder, const MochiConfigs& configs, ModelDescription description, Backend& backend,
             DType dtype, const ModelLoadOptions& options, std::shared_ptr<const WeightOverlay> without_loras)
      : description_(std::move(description)),
        backend_(backend),
        dtype_(dtype),
        empty_prompt_has_no_tokens_(configs.empty_prompt_has_no_tokens),
        fingerprint_({
            [path = folder.transformer](const std::shared_ptr<const WeightOverlay>& overlay) {
              return open_mochi_transformer(path, {.overlay = overlay});
            },
            [](const JsonConfig& config) { return MochiTransformerConfig::from(config).fingerprint_settings(); },
            options.overlay,
            std::move(without_loras),
            options.loras,
        }),
        prompts_(folder.tokenizer, kMaxPromptTokens, nullptr, options.warn),  // MochiPipeline cleans nothing
        text_encoder_(T5Encoder::open(backend, folder.text_encoder, dtype_beside(dtype), options)),
        vae_(MochiVae::load(folder.vae, backend, dtype_beside(dtype),
                            {.defers_bias = {}, .latent_frames_at_once = 0, .warn = options.warn})),
        transformer_(MochiTransformer::load(backend, folder.transformer, dtype, options)) {}

  const ModelDescription& description() const override { return description_; }
  Backend& backend() override { return backend_; }
  DType dtype() const override { return dtype_; }

  void check_prompt(const Prompt& prompt) override { tokenize(prompt); }

  void expect_prompts(const std::vector<Prompt>& prompts) override {
    std::vector<std::vector<int32_t>> expected;
    for (const Prompt& prompt : prompts) {
      if (std::vector<int32_t> ids = tokenize(prompt); !ids.empty()) expected.push_back(std::move(ids));
    }
    embeddings_.expect(std::move(expected));
  }

  std::unique_ptr<Conditioning> encode(const Prompt& prompt, const Prompt* negative,
                                       const WorkProgress& progress) override {
    std::vector<std::vector<int32_t>> prompts{tokenize(prompt)};
    if (negative != nullptr) prompts.push_back(tokenize(*negative));
    std::vector<std::vector<int32_t>> encoded;
    for (const auto& ids : prompts) {
      if (!ids.empty()) encoded.push_back(ids);
    }
    const PromptEmbeddings::Embeddings text = embeddings_.of(encoded, progress);
    backend_.trim_memory();
    const auto prepared = [&](size_t index) {
      const size_t before = index == 0 || prompts[0].empty() ? 0 : 1;  // in the embeddings
      return transformer_.prepare_prompt(prompts[index].empty() ? Tensor() : text.of_prompts[before]);
    };
    auto result = std::make_unique<MochiConditioning>();
    result->text_seconds_elsewhere = text.seconds_elsewhere;
    result->conditional = prepared(0);
    if (negative != nullptr) result->unconditional = prepared(1);
    return result;
  }

  void expect_steps(std::span<const StepSettings> steps, const WorkProgress& progress) override {
    const bool has_wide = std::ranges::any_of(steps, [](const StepSettings& step) { return !step.eight_bit_layers; });
    if (has_wide) transformer_.load_wide_layers(progress);
  }

  /// Mochi counts time from noise, 0, to data, 1000, in float32 (bfloat16 would make steps of 4 of it), and predicts
  /// data − noise.
  Tensor forward(const Tensor& latents, const StepSettings& step, GuidanceBranch branch,
                 const Conditioning& conditioning, SelfAttention& attention, TransformerTimes& times,
                 const WorkProgress& progress) override {
    const auto& prompts = static_cast<const MochiConditioning&>(conditioning);  // made by encode
    CALIBATT_ASSERT(branch == GuidanceBranch::kConditional || prompts.unconditional.has_value());
    const MochiPrompt& prompt = branch == GuidanceBranch::kConditional ? prompts.conditional : *prompts.unconditional;
    const float timestep = (1.0f - static_cast<float>(step.sigma)) * static_cast<float>(kTimesteps);
    Tensor prediction =
        transformer_.forward(latents, {timestep, step.eight_bit_layers}, prompt, attention, &times, {}, progress);
    float* values = prediction.f32();
    for (int64_t i = 0; i < prediction.size(); ++i) values[i] = -values[i];
    return prediction;
  }

  VideoFrames decode(const Tensor& latents, const WorkProgress& progress, Communicator* ranks) override {
    transformer_.release_buffers();
    backend_.trim_memory();  // what libraries allocate by themselves cannot come from what a pool keeps
    return vae_.decode(latents, progress, ranks);
  }

  std::string fingerprint(int expert, const std::string& like, const WorkProgress& progress) override {
    CALIBATT_ASSERT(expert == 0);
    return fingerprint_.like(like, progress);
  }

 private:
  /// Empty for an empty prompt where the model was trained without any text for it.
  std::vector<int32_t> tokenize(const Prompt& prompt) {
    std::vector<int32_t> ids = prompts_.tokens(prompt);
    if (prompt.text.empty() && empty_prompt_has_no_tokens_) return {};
    text_encoder_.check_tokens(ids);
    return ids;
  }

  ModelDescription description_;
  Backend& backend_;
  DType dtype_;
  bool empty_prompt_has_no_tokens_;
  TransformerFingerprint fingerprint_;
  PromptReader prompts_;
  T5Encoder text_encoder_;
  PromptEmbeddings embeddings_{[this](const std::vector<std::vector<int32_t>>& prompts, const WorkProgress& progress) {
    return text_encoder_.encode_all(prompts, progress);
  }};
  MochiVae vae_;
  MochiTransformer transformer_;  // last: it takes long, and what is wrong with the others is said before
};

ModelDefaults mochi_defaults() {
  ModelDefaults defaults;
  defaults.width = 848, defaults.height = 480;
  defaults.video_frames = 163;  // the model's whole length, as Genmo's own program makes them; diffusers: 19
  defaults.steps = 64;
  defaults.cfg_scale = 4.5;
  defaults.fps = 30;
  return defaults;
}

class MochiFiles final : public ModelFiles {
 public:
  explicit MochiFiles(const std::string& path)
      : folder_(open_diffusers_folder(path, true)), description_(describe_folder(path, mochi_defaults())) {
    require_folders(path, {folder_.transformer, folder_.vae, folder_.text_encoder});
    const Component transformer = open_component_folder(folder_.transformer), vae = open_component_folder(folder_.vae),
                    text_encoder = open_component_folder(folder_.text_encoder);
    configs_ = {MochiTransformerConfig::from(transformer.config), MochiVaeConfig::from(vae.config),
                T5Config::from(text_encoder.config), folder_.empty_prompt_is_zeros};
    check_components(configs_, path);
    elements_ = {num_elements(transformer.tensors), num_elements(vae.tensors)};
    describe_files(transformer, vae, text_encoder, folder_.tokenizer, description_);
    description_.settings += configs_.empty_prompt_has_no_tokens ? "an empty prompt has no tokens" : "";

    description_.scheduler = folder_.scheduler;
    description_.scheduler.spacing = SchedulerConfig::Spacing::kLinearQuadratic;
    description_.warnings = folder_.warnings;
    description_.kind = "MochiTransformer3DModel";
    description_.num_layers = configs_.transformer.num_layers;
    description_.num_heads = configs_.transformer.num_attention_heads;
    description_.head_dim = configs_.transformer.attention_head_dim;
    description_.max_prompt_tokens = kMaxPromptTokens;
    description_.latent_channels = configs_.vae.z_dim;
    description_.frames_per_latent = configs_.vae.frames_per_latent();
    description_.pixels_per_latent = configs_.vae.pixels_per_latent();
    description_.patch_size = {1, configs_.transformer.patch_size, configs_.transformer.patch_size};
    description_.max_positions = 1 << 16;  // positions are no table: any number of them is known
  }

  const ModelDescription& description() const override { return description_; }

  MemoryEstimate memory(const VideoSize& size, const Arithmetic& arithmetic) const override {
    const DType dtype = arithmetic.dtype;
    const int64_t tokens = description_.geometry(size).num_tokens();
    MemoryEstimate needs = memory_estimate(
        elements_, mochi_activation_bytes(configs_.transformer, tokens, kMaxPromptTokens, arithmetic),
        mochi_decoding_bytes(configs_.vae, size, dtype_beside(dtype), arithmetic.decoding_ranks), size, dtype);
    needs.host_weights = wide_layer_bytes(arithmetic, true);
    if (arithmetic.offload) {
      const MochiOffloadBytes bytes = mochi_offload_bytes(configs_.transformer, arithmetic);
      needs.weights = less_described(needs.weights, bytes.wide_blocks, description_.path);
      needs.activations += bytes.buffers;
      if (needs.host_weights > 0) needs.host_weights = bytes.wide_blocks;  // all of a block is streamed again
      needs.host_weights += bytes.blocks;
      return needs;
    }
    needs.weights = whole_weight_bytes(needs.weights, arithmetic);
    needs.activations += wide_buffer_bytes(arithmetic);
    return needs;
  }

  BlockFormats block_formats(DType dtype, const ModelLoadOptions& options) const override {
    return MochiLayers::formats(configs_.transformer, dtype, options);
  }

  std::unique_ptr<VideoModel> load(Backend& backend, DType dtype, const ModelLoadOptions& options) const override {
    ModelLoadOptions with_loras = options;
    with_loras.overlay = merged_overlay(options.loras, 0, 1, open_mochi_transformer(folder_.transformer).tensors,
                                        options.overlay, options.warn);
    auto model =
        std::make_unique<MochiModel>(folder_, configs_, description_, backend, dtype, with_loras, options.overlay);
    backend.trim_memory();
    return model;
  }

 private:
  DiffusersFolder folder_;
  ModelDescription description_;
  MochiConfigs configs_;
  ModelElements elements_;
};

}  // namespace

std::unique_ptr<ModelFiles> open_mochi(const std::string& folder, const ModelParts&) {
  return std::make_unique<MochiFiles>(folder);
}

}  // namespace calibatt
