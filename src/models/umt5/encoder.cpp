#include "models/umt5/encoder.h"

#include <cstring>
#include <utility>

#include "models/weights.h"
#include "nn/heads.h"
#include "nn/relative_position.h"
#include "nn/tensor_rows.h"

namespace calibatt {

Umt5Encoder Umt5Encoder::load(Backend& backend, const std::string& folder, DType dtype) {
  CALIBATT_ASSERT(dtype == DType::kF32 || dtype == DType::kBF16);
  Umt5Encoder encoder;
  encoder.backend_ = &backend;
  encoder.dtype_ = dtype;
  encoder.config_ = Umt5Config::load(folder);
  const Umt5Config& config = encoder.config_;
  const Weights weights = Weights::open(folder);

  const int64_t width = config.d_model, inner = int64_t{config.num_heads} * config.d_kv, hidden = config.d_ff;
  // One table under two names; files hold either.
  const std::string embedding = weights.has("shared.weight") ? "shared.weight" : "encoder.embed_tokens.weight";
  encoder.embedding_ = weights.get(embedding, {config.vocab_size, width});
  const auto norm = [&](const std::string& name) { return backend.from_host(weights.get_f32(name, {width})); };
  const auto linear = [&](const std::string& name, int64_t out, int64_t in) {
    return backend.make_linear(weights.get(name, {out, in}), {}, dtype);
  };
  for (int layer = 0; layer < config.num_layers; ++layer) {
    const std::string prefix = "encoder.block." + std::to_string(layer) + ".layer.";
    const std::string attention = prefix + "0.SelfAttention.", feed_forward = prefix + "1.DenseReluDense.";
    Block block;
    block.attention_norm = norm(prefix + "0.layer_norm.weight");
    block.relative_bias = weights.get_f32(attention + "relative_attention_bias.weight",
                                          {config.relative_attention_num_buckets, config.num_heads});
    block.qkv =
        backend.make_linear(weights.stacked({attention + "q.weight", attention + "k.weight", attention + "v.weight"},
                                            {inner, width}, dtype),
                            {}, dtype);
    block.output = linear(attention + "o.weight", width, inner);
    block.feed_forward_norm = norm(prefix + "1.layer_norm.weight");
    block.gate = linear(feed_forward + "wi_0.weight", hidden, width);
    block.up = linear(feed_forward + "wi_1.weight", hidden, width);
    block.down = linear(feed_forward + "wo.weight", width, hidden);
    encoder.blocks_.push_back(std::move(block));
  }
  encoder.final_norm_ = norm("encoder.final_layer_norm.weight");
  return encoder;
}

Tensor Umt5Encoder::encode(std::span<const int32_t> token_ids) const {
  Tensor residual = embed(token_ids);
  for (const Block& block : blocks_) {
    self_attention(block, residual);
    feed_forward(block, residual);
  }
  Tensor output = backend_->empty(DType::kF32, residual.shape());
  backend_->rms_norm(residual, final_norm_, config_.layer_norm_epsilon, output);
  return backend_->to_host(output);
}

Tensor Umt5Encoder::embed(std::span<const int32_t> token_ids) const {
  if (token_ids.empty()) throw Error(ErrorKind::kUsage, "text encoder: the prompt has no tokens");
  Tensor stored(embedding_.dtype(), {static_cast<int64_t>(token_ids.size()), config_.d_model});
  char* to = static_cast<char*>(stored.raw());
  const size_t row_bytes = embedding_.size_bytes() / static_cast<size_t>(config_.vocab_size);
  for (const int32_t id : token_ids) {
    if (id < 0 || id >= config_.vocab_size) {
      throw Error(ErrorKind::kUsage, "text encoder: token " + std::to_string(id) + " is outside its vocabulary of " +
                                         std::to_string(config_.vocab_size) +
                                         "; the tokenizer and the text encoder do not belong together");
    }
    std::memcpy(to, static_cast<const char*>(embedding_.raw()) + static_cast<size_t>(id) * row_bytes, row_bytes);
    to += row_bytes;
  }
  // A copy even where nothing is converted: the residual stream is written to.
  return backend_->from_host(stored.dtype() == DType::kF32 ? stored : converted(stored, DType::kF32));
}

/// residual += W_o · softmax(QKᵀ + position bias) V
void Umt5Encoder::self_attention(const Block& block, Tensor& residual) const {
  const int64_t num_tokens = residual.dim(0), inner = int64_t{config_.num_heads} * config_.d_kv;
  const Tensor bias = backend_->from_host(
      relative_position_bias(block.relative_bias, config_.relative_attention_max_distance, num_tokens));
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
void Umt5Encoder::feed_forward(const Block& block, Tensor& residual) const {
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
