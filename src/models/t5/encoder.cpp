#include "models/t5/encoder.h"

#include <cstring>
#include <map>
#include <utility>

#include "models/original_layout.h"
#include "nn/heads.h"
#include "nn/relative_position.h"

namespace calibatt {

namespace {

constexpr const char* kFinalNorm = "encoder.final_layer_norm.weight";
constexpr const char* kAttention = "0.SelfAttention.";
constexpr const char* kFeedForward = "1.DenseReluDense.";

/// Of transformers' config.json: of training, of the decoder, of how it was saved, or said by other keys.
const std::vector<std::string_view> kHarmless = {"architectures",
                                                 "classifier_dropout",
                                                 "decoder_start_token_id",
                                                 "dense_act_fn",
                                                 "dropout_rate",
                                                 "dtype",
                                                 "eos_token_id",
                                                 "initializer_factor",
                                                 "is_decoder",
                                                 "is_encoder_decoder",
                                                 "is_gated_act",
                                                 "num_decoder_layers",
                                                 "output_past",
                                                 "pad_token_id",
                                                 "scalable_attention",
                                                 "n_positions",
                                                 "scale_decoder_outputs",
                                                 "task_specific_params",
                                                 "tie_word_embeddings",
                                                 "tokenizer_class",
                                                 "torch_dtype",
                                                 "transformers_version",
                                                 "use_cache"};

std::string block_prefix(int layer) {
  return "encoder.block." + std::to_string(layer) + ".layer.";
}

bool has_relative_bias(const T5Config& config, int layer) {
  return layer == 0 || config.bias_in_every_layer;
}

/// Every tensor of a block, by its name after the prefix.
std::map<std::string, std::vector<int64_t>> block_shapes(const T5Config& config, int layer) {
  const int64_t width = config.d_model, inner = int64_t{config.num_heads} * config.d_kv, hidden = config.d_ff;
  const std::string attention = kAttention, feed_forward = kFeedForward;
  std::map<std::string, std::vector<int64_t>> shapes{{"0.layer_norm.weight", {width}},
                                                     {attention + "q.weight", {inner, width}},
                                                     {attention + "k.weight", {inner, width}},
                                                     {attention + "v.weight", {inner, width}},
                                                     {attention + "o.weight", {width, inner}},
                                                     {"1.layer_norm.weight", {width}},
                                                     {feed_forward + "wi_0.weight", {hidden, width}},
                                                     {feed_forward + "wi_1.weight", {hidden, width}},
                                                     {feed_forward + "wo.weight", {width, hidden}}};
  if (has_relative_bias(config, layer)) {
    shapes[attention + "relative_attention_bias.weight"] = {config.relative_attention_num_buckets, config.num_heads};
  }
  return shapes;
}

}  // namespace

T5Encoder T5Encoder::open(Backend& backend, const std::string& path, DType dtype, const ModelLoadOptions& options) {
  CALIBATT_ASSERT(dtype == DType::kF32 || dtype == DType::kBF16);
  Component files = open_text_encoder(path, options);
  const T5Config config = T5Config::from(files.config);
  warn_of_unread_settings(files.config, kHarmless, options);
  T5Encoder encoder(Weights(std::move(files.tensors)));
  encoder.backend_ = &backend;
  encoder.dtype_ = dtype;
  encoder.config_ = config;
  const Weights& weights = encoder.weights_;

  // One table under two names; files hold either, or both.
  const std::string shared = "shared.weight", embedding = "encoder.embed_tokens.weight";
  const std::string table = weights.has(shared) ? shared : embedding;
  weights.require(table, {config.vocab_size, config.d_model});
  weights.mark_known(embedding);
  for (int layer = 0; layer < config.num_layers; ++layer) {
    for (const auto& [name, shape] : block_shapes(config, layer)) weights.require(block_prefix(layer) + name, shape);
  }
  weights.require(kFinalNorm, {config.d_model});
  if (const std::string warning = weights.check_unused("encoder.block."); !warning.empty() && options.warn) {
    options.warn(warning);
  }
  encoder.warn_ = options.warn;
  encoder.embedding_ = weights.view(table, {config.vocab_size, config.d_model});
  return encoder;
}

T5Encoder::Block T5Encoder::load_block(int layer) const {
  const std::string prefix = block_prefix(layer), attention = kAttention, feed_forward = kFeedForward;
  const auto shapes = block_shapes(config_, layer);
  const auto stored = [&](const std::string& name) { return weights_.stored(prefix + name, shapes.at(name)); };
  const auto norm = [&](const std::string& name) {
    return backend_->from_host(weights_.get_f32(prefix + name, shapes.at(name)));
  };
  const auto linear = [&](const std::vector<std::string>& names) {
    StoredLinear layers{{}, {}, dtype_, nullptr};
    for (const std::string& name : names) layers.weights.push_back(stored(name));
    return backend_->load_linear(layers);
  };
  const std::string bias = attention + "relative_attention_bias.weight";
  Block block;
  block.attention_norm = norm("0.layer_norm.weight");
  if (has_relative_bias(config_, layer)) block.relative_bias = weights_.get_f32(prefix + bias, shapes.at(bias));
  block.qkv = linear({attention + "q.weight", attention + "k.weight", attention + "v.weight"});
  block.output = linear({attention + "o.weight"});
  block.feed_forward_norm = norm("1.layer_norm.weight");
  block.gate = linear({feed_forward + "wi_0.weight"});
  block.up = linear({feed_forward + "wi_1.weight"});
  block.down = linear({feed_forward + "wo.weight"});
  return block;
}

Tensor T5Encoder::encode(std::span<const int32_t> prompt) const {
  return encode_all({{prompt.begin(), prompt.end()}})[0];
}

std::vector<Tensor> T5Encoder::encode_all(const std::vector<std::vector<int32_t>>& prompts,
                                          const WorkProgress& progress) const {
  std::vector<Tensor> results;  // the residual streams until the end
  results.reserve(prompts.size());
  for (const std::vector<int32_t>& prompt : prompts) results.push_back(embed(prompt));
  Tensor relative_bias;
  for (int layer = 0; layer < config_.num_layers; ++layer) {
    if (progress) progress(layer, config_.num_layers, 0);
    const Block block = load_block(layer);
    if (!block.relative_bias.empty()) relative_bias = block.relative_bias;
    for (Tensor& residual : results) {
      if (progress) progress(layer, config_.num_layers, 0.5);
      self_attention(block, relative_bias, residual);
      feed_forward(block, residual);
    }
  }
  if (const std::string warning = weights_.constant_matrices(); !warning.empty() && warn_) warn_(warning);
  const Tensor final_norm = backend_->from_host(weights_.get_f32(kFinalNorm, {config_.d_model}));
  for (Tensor& residual : results) {
    Tensor output = backend_->empty(DType::kF32, residual.shape());
    backend_->rms_norm(residual, final_norm, config_.layer_norm_epsilon, output);
    residual = backend_->to_host(output);
  }
  if (progress) progress(config_.num_layers, config_.num_layers, 0);
  return results;
}

void T5Encoder::check_tokens(std::span<const int32_t> token_ids) const {
  for (const int32_t id : token_ids) {
    if (id >= 0 && id < config_.vocab_size) continue;
    throw Error(ErrorKind::kUsage, "text encoder: token " + std::to_string(id) + " is outside its vocabulary of " +
                                       std::to_string(config_.vocab_size) +
                                       "; the tokenizer and the text encoder do not belong together");
  }
}

Tensor T5Encoder::embed(std::span<const int32_t> token_ids) const {
  if (token_ids.empty()) throw Error(ErrorKind::kUsage, "text encoder: the prompt has no tokens");
  Tensor stored(embedding_.dtype(), {static_cast<int64_t>(token_ids.size()), config_.d_model});
  char* to = static_cast<char*>(stored.raw());
  const size_t row_bytes = embedding_.size_bytes() / static_cast<size_t>(config_.vocab_size);
  check_tokens(token_ids);
  for (const int32_t id : token_ids) {
    std::memcpy(to, static_cast<const char*>(embedding_.raw()) + static_cast<size_t>(id) * row_bytes, row_bytes);
    to += row_bytes;
  }
  const ValueCheck values = check_values(stored);
  if (!values.finite) {
    throw Error(ErrorKind::kNumeric, "text encoder: the embedding table holds NaN or infinity; fetch its file again");
  }
  if (values.constant && warn_) {
    warn_(
        "text encoder: the embedding table holds the same value for all of a prompt; it is damaged: fetch its file "
        "again");
  }
  // A copy even where nothing is converted: the residual stream is written to.
  return backend_->from_host(stored.dtype() == DType::kF32 ? stored : converted(stored, DType::kF32));
}

/// residual += W_o · softmax(QKᵀ + position bias) V
void T5Encoder::self_attention(const Block& block, const Tensor& relative_bias, Tensor& residual) const {
  const int64_t num_tokens = residual.dim(0), inner = int64_t{config_.num_heads} * config_.d_kv;
  const Tensor bias =
      backend_->from_host(relative_position_bias(relative_bias, config_.relative_attention_max_distance, num_tokens));
  Tensor normed = backend_->empty(dtype_, residual.shape());
  // float32 also in a bfloat16 run: logits are not scaled, and rounded queries and keys would show in them.
  Tensor qkv = backend_->empty(DType::kF32, {num_tokens, 3 * inner});
  Tensor attended = backend_->empty(dtype_, {num_tokens, inner});

  backend_->rms_norm(residual, block.attention_norm, config_.layer_norm_epsilon, normed);
  backend_->linear(*block.qkv, normed, qkv);
  const auto part = [&](int64_t index) { return heads_view(std::as_const(qkv), index * inner, config_.d_kv); };
  backend_->biased_attention(part(0), part(1), part(2), bias, config_.num_heads, config_.d_kv,
                             heads_view(attended, 0, config_.d_kv));
  backend_->linear(*block.output, attended, residual, {.accumulate = true});
}

/// residual += W_down · (gelu(W_gate · x) ⊙ (W_up · x)), x = norm(residual)
void T5Encoder::feed_forward(const Block& block, Tensor& residual) const {
  Tensor normed = backend_->empty(dtype_, residual.shape());
  Tensor gate = backend_->empty(DType::kF32, {residual.dim(0), config_.d_ff});
  Tensor up = backend_->empty(DType::kF32, gate.shape());
  Tensor hidden = backend_->empty(dtype_, gate.shape());

  backend_->rms_norm(residual, block.feed_forward_norm, config_.layer_norm_epsilon, normed);
  backend_->linear(*block.gate, normed, gate, {.activation = Activation::kGeluTanh});
  backend_->linear(*block.up, normed, up);
  backend_->multiply(gate, up, gate);
  backend_->convert(gate, hidden);
  backend_->linear(*block.down, hidden, residual, {.accumulate = true});
}

}  // namespace calibatt
