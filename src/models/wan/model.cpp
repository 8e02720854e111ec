#include "models/wan/model.h"

#include <optional>
#include <set>
#include <utility>

#include "base/error.h"
#include "io/fingerprint.h"
#include "models/lora.h"
#include "models/original_layout.h"
#include "models/t5/encoder.h"
#include "models/wan/memory.h"
#include "models/wan/transformer.h"
#include "models/wan/vae.h"
#include "text/text_clean.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

namespace calibatt {
namespace {

constexpr int kMaxPromptTokens = 512;  // WanPipeline's max_sequence_length

/// Of the text encoder, whose activations exceed the largest half (T5 is known for it), and the autoencoder.
DType beside(DType dtype) {
  return dtype == DType::kF16 ? DType::kBF16 : dtype;
}

uint64_t num_elements(const MappedTensors& tensors) {
  uint64_t count = 0;
  for (const auto& [name, entry] : tensors.entries()) count += entry.size_bytes / dtype_size(entry.dtype);
  return count;
}

/// What the settings of all components say.
struct WanConfigs {
  WanTransformerConfig transformer;
  WanVaeConfig vae;
  T5Config text_encoder;
};

/// Refused before anything is loaded: a component that is not of the same model as the others.
void require_one_model(const WanConfigs& configs, const std::string& folder) {
  const auto require = [&](int found, int expected, const std::string& what, const std::string& against) {
    if (found == expected) return;
    throw Error(ErrorKind::kMismatch, folder + ": " + what + " " + std::to_string(found) + " and " + against + " " +
                                          std::to_string(expected) + "; they are not of one model");
  };
  require(configs.vae.z_dim, configs.transformer.in_channels, "the VAE's latent channels (z_dim) are",
          "the transformer's in_channels");
  require(configs.vae.z_dim, configs.transformer.out_channels, "the VAE's latent channels (z_dim) are",
          "the transformer's out_channels");
  require(configs.text_encoder.d_model, configs.transformer.text_dim, "the text encoder's width (d_model) is",
          "the transformer's text_dim");
}

class WanConditioning final : public Conditioning {
 public:
  WanPrompt conditional;
  std::optional<WanPrompt> unconditional;
};

/// The text encoder, by far the largest part of the public checkpoints, is read anew for each run, block by block, and
/// never in memory as a whole.
class WanModel final : public VideoModel {
 public:
  WanModel(const WanFolder& folder, ModelDescription description, Backend& backend, DType dtype,
           const ModelLoadOptions& options)
      : description_(std::move(description)),
        backend_(backend),
        dtype_(dtype),
        transformer_path_(folder.transformer),
        warn_(options.warn),
        overlay_(options.overlay),
        tokenizer_(Tokenizer::load(folder.tokenizer)),
        text_encoder_(T5Encoder::open(backend, folder.text_encoder, beside(dtype), options)),
        vae_(WanVae::load(folder.vae, backend, beside(dtype),
                          {.encodes = false, .defers_bias = {}, .warn = options.warn})),
        transformer_(WanTransformer::load(backend, folder.transformer, dtype, options)) {}

  const ModelDescription& description() const override { return description_; }
  Backend& backend() override { return backend_; }
  DType dtype() const override { return dtype_; }

  void check_prompt(const Prompt& prompt) override { tokenize(prompt); }

  std::unique_ptr<Conditioning> encode(const Prompt& prompt, const Prompt* negative,
                                       const WorkProgress& progress) override {
    std::vector<std::vector<int32_t>> prompts{tokenize(prompt)};
    if (negative != nullptr) prompts.push_back(tokenize(*negative));
    const std::vector<Tensor> embeddings = text_encoder_.encode_all(prompts, progress);
    backend_.trim_memory();
    const int blocks = text_encoder_.config().num_layers;
    const WorkProgress rest = [&](int, int, double) {
      if (progress) progress(blocks, blocks, 0);
    };
    auto result = std::make_unique<WanConditioning>();
    result->conditional = transformer_.prepare_prompt(embeddings[0], kMaxPromptTokens, rest);
    if (negative != nullptr) {
      result->unconditional = transformer_.prepare_prompt(embeddings[1], kMaxPromptTokens, rest);
    }
    return result;
  }

  Tensor forward(const Tensor& latents, const StepSettings& step, GuidanceBranch branch,
                 const Conditioning& conditioning, SelfAttention& attention, TransformerTimes& times,
                 const WorkProgress& progress) override {
    const auto& prompts = static_cast<const WanConditioning&>(conditioning);  // made by encode
    CALIBATT_ASSERT(branch == GuidanceBranch::kConditional || prompts.unconditional.has_value());
    const WanPrompt& prompt = branch == GuidanceBranch::kConditional ? prompts.conditional : *prompts.unconditional;
    return transformer_.forward(latents, step.timestep, prompt, attention, &times, {}, progress);
  }

  VideoFrames decode(const Tensor& latents, const WorkProgress& progress) override {
    transformer_.release_buffers();
    backend_.trim_memory();  // what libraries allocate by themselves cannot come from what a pool keeps
    return vae_.decode(latents, progress);
  }

  std::string fingerprint(int expert, const std::string& like, const WorkProgress& progress) override {
    CALIBATT_ASSERT(expert == 0);
    const bool of_values = fingerprint_scheme(like) == FingerprintScheme::kValues;
    std::string& fingerprint = of_values ? values_fingerprint_ : stored_fingerprint_;
    if (fingerprint.empty()) {
      const Component transformer = open_transformer(transformer_path_, {.overlay = overlay_});
      const auto tell = [&](int done, int total) {
        if (progress) progress(done, total, 0);
      };
      fingerprint = of_values
                        ? values_fingerprint(transformer_.config().fingerprint_settings(), transformer.tensors, tell)
                        : stored_fingerprint(transformer.config, transformer.tensors, tell);
    }
    return fingerprint;
  }

 private:
  /// Cleaned, cut to what the model reads; warns of a cut, once for each prompt.
  std::vector<int32_t> tokenize(const Prompt& prompt) {
    calibatt::check_prompt(prompt);
    const Tokenizer::Cut cut = tokenizer_.encode(clean_prompt(prompt.text), kMaxPromptTokens);
    text_encoder_.check_tokens(cut.ids);
    if (cut.num_tokens > kMaxPromptTokens) {
      const std::string message = prompt.source + ": is " + std::to_string(cut.num_tokens) +
                                  " tokens long and the model reads " + std::to_string(kMaxPromptTokens) +
                                  "; this is cut off: " + shortened_quote(cut.dropped);
      if (warn_ && warned_.insert(message).second) warn_(message);
    }
    return cut.ids;
  }

  /// Fit for a one-line message: the beginning, in quotes.
  static std::string shortened_quote(const std::string& clean_text) {
    constexpr size_t kMost = 80;
    const std::u32string text = to_code_points(clean_text);
    return "\"" + to_utf8(text.substr(0, kMost)) + (text.size() > kMost ? "…\"" : "\"");
  }

  ModelDescription description_;
  Backend& backend_;
  DType dtype_;
  std::string transformer_path_;
  std::function<void(const std::string&)> warn_;
  std::set<std::string> warned_;
  std::shared_ptr<const WeightOverlay> overlay_;
  Tokenizer tokenizer_;
  T5Encoder text_encoder_;
  WanVae vae_;
  WanTransformer transformer_;  // last: it takes long, and what is wrong with the others is said before
  std::string values_fingerprint_, stored_fingerprint_;
};

class WanFiles final : public ModelFiles {
 public:
  explicit WanFiles(const std::string& path) : folder_(open_wan_folder(path)), description_(folder_.description) {
    const Component transformer = open_transformer(folder_.transformer), vae = open_vae(folder_.vae);
    configs_ = {WanTransformerConfig::from(transformer.config), WanVaeConfig::from(vae.config),
                T5Config::from(open_text_encoder(folder_.text_encoder).config)};
    require_one_model(configs_, path);
    transformer_elements_ = num_elements(transformer.tensors);
    vae_elements_ = num_elements(vae.tensors);

    description_.kind = "WanTransformer3DModel";
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

  MemoryEstimate memory(const VideoSize& size, DType dtype) const override {
    MemoryEstimate needs;
    needs.weights = transformer_elements_ * dtype_size(dtype);
    needs.activations =
        wan_activation_bytes(configs_.transformer, description_.geometry(size).num_tokens(), kMaxPromptTokens, dtype);
    needs.autoencoder =
        vae_elements_ * dtype_size(beside(dtype)) + wan_decoding_bytes(configs_.vae, size, beside(dtype));
    needs.video =
        static_cast<uint64_t>(size.frames) * static_cast<uint64_t>(size.height) * static_cast<uint64_t>(size.width) * 3;
    return needs;
  }

  std::unique_ptr<VideoModel> load(Backend& backend, DType dtype, const ModelLoadOptions& options) const override {
    ModelLoadOptions with_loras = options;
    with_loras.overlay = merged_overlay(options.loras, 0, 1, open_transformer(folder_.transformer).tensors,
                                        options.overlay, options.warn);
    auto model = std::make_unique<WanModel>(folder_, description_, backend, dtype, with_loras);
    backend.trim_memory();
    return model;
  }

 private:
  WanFolder folder_;
  ModelDescription description_;
  WanConfigs configs_;
  uint64_t transformer_elements_ = 0, vae_elements_ = 0;
};

}  // namespace

std::unique_ptr<ModelFiles> open_wan(const std::string& folder) {
  return std::make_unique<WanFiles>(folder);
}

}  // namespace calibatt
