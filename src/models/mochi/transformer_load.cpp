#include <algorithm>

#include "models/linear_loading.h"
#include "models/mochi/transformer.h"
#include "models/weight_overlay.h"
#include "models/weights.h"

namespace calibatt {
namespace {

/// Of a block's matrices.
size_t block_bytes(const MochiTransformerConfig& config, DType dtype, bool last) {
  const int64_t dim = config.dim(), text = config.text_width, hidden = config.ffn_dim(),
                text_hidden = config.text_ffn_dim();
  const auto bytes = [dtype](int64_t out, int64_t in) { return Backend::streamed_bytes(out, in, dtype); };
  const size_t video =
      bytes(4 * dim, dim) + bytes(3 * dim, dim) + bytes(dim, dim) + bytes(2 * hidden, dim) + bytes(dim, hidden);
  const size_t both = video + bytes(3 * dim, text);
  if (last) return both + bytes(text, dim);
  return both + bytes(4 * text, dim) + bytes(text, dim) + bytes(2 * text_hidden, text) + bytes(text, text_hidden);
}

}  // namespace

Component open_mochi_transformer(const std::string& folder, const ModelLoadOptions& options) {
  Component found = open_component_folder(folder, options);
  if (options.overlay) found.tensors = options.overlay->over(found.tensors);
  return found;
}

MochiTransformer MochiTransformer::load(Backend& backend, const std::string& folder, DType dtype,
                                        const ModelLoadOptions& options) {
  CALIBATT_ASSERT(dtype == DType::kF32 || dtype == DType::kBF16 || (dtype == DType::kF16 && backend.has_fp16()));
  if (options.eight_bit_layers) {
    throw Error(ErrorKind::kUsage, "Mochi's linear layers are not computed in 8 bits yet; use --weights-dtype bf16");
  }
  MochiTransformer model;
  model.backend_ = &backend;
  model.dtype_ = dtype;
  Tensor one(DType::kF32, {1});
  one.f32()[0] = 1;
  model.one_ = backend.from_host(one);
  Component files = open_mochi_transformer(folder, options);
  model.config_ = MochiTransformerConfig::from(files.config);
  warn_of_unread_settings(files.config, {}, options);
  const MochiTransformerConfig& config = model.config_;
  const auto stored = std::make_shared<const Weights>(std::move(files.tensors));
  const Weights& weights = *stored;
  model.output_weights_ = {stored, "transformer_blocks.", config.num_layers, config.dim()};
  if (options.offload) {
    require_host_memory(static_cast<size_t>(config.num_layers) * block_bytes(config, dtype, false), "--offload",
                        "run without --offload");
  }
  const int64_t dim = config.dim(), text = config.text_embed_dim, patch = config.patch_size;

  // A convolution whose stride is its kernel's size: a linear layer on patches.
  model.patch_embedding_ =
      backend.make_linear(weights.get("patch_embed.proj.weight", {dim, config.in_channels, patch, patch})
                              .reshaped({dim, config.in_channels * patch * patch}),
                          weights.get("patch_embed.proj.bias", {dim}), DType::kF32);
  const auto linear = [&](const std::string& name, int64_t out, int64_t in) {
    return load_linear(backend, weights, name, out, in, DType::kF32);
  };
  model.time_in_ = linear("time_embed.timestep_embedder.linear_1", dim, config.time_embed_dim);
  model.time_out_ = linear("time_embed.timestep_embedder.linear_2", dim, dim);
  model.pool_keys_values_ = linear("time_embed.pooler.to_kv", 2 * text, text);
  model.pool_query_ = linear("time_embed.pooler.to_q", text, text);
  model.pool_output_ = linear("time_embed.pooler.to_out", dim, text);
  model.text_projection_ = linear("time_embed.caption_proj", config.text_width, text);
  model.frequencies_ = backend.from_host(
      weights.get_f32("pos_frequencies", {3, config.num_attention_heads, config.attention_head_dim / 2}));
  model.output_modulation_ = linear("norm_out.linear", 2 * dim, dim);
  model.output_projection_ = linear("proj_out", patch * patch * config.out_channels, dim);

  for (int layer = 0; layer < config.num_layers; ++layer) {
    model.blocks_.push_back(model.load_block(weights, layer, options));
  }
  for (const std::string& warning : {weights.check_unused("transformer_blocks."), weights.constant_matrices()}) {
    if (!warning.empty() && options.warn) options.warn(warning);
  }
  if (options.progress) options.progress(config.num_layers, config.num_layers, 0);
  return model;
}

MochiTransformer::Block MochiTransformer::load_block(const Weights& weights, int layer,
                                                     const ModelLoadOptions& options) const {
  Backend& backend = *backend_;
  const int64_t dim = config_.dim(), text = config_.text_width;
  const bool last = is_last(layer);
  const std::string prefix = "transformer_blocks." + std::to_string(layer) + ".";
  Block block;
  constexpr double kMatrices = 10;
  int matrices = 0;  // that were read: a large one takes seconds from a slow disk
  const auto before_matrix = [&] {
    if (options.progress) options.progress(layer, config_.num_layers, std::min(matrices++ / kMatrices, 1.0));
  };
  if (options.offload) block.streamed = backend.make_streamed_weights(block_bytes(config_, dtype_, last));
  const auto linear = [&](const std::string& name, int64_t out, int64_t in, Bias bias) {
    before_matrix();
    return load_linear(backend, weights, prefix + name, out, in, dtype_, block.streamed, bias);
  };
  const auto fused = [&](const std::vector<std::string>& names, int64_t in) {
    before_matrix();
    std::vector<std::string> full;
    full.reserve(names.size());
    for (const std::string& name : names) full.push_back(prefix + "attn1." + name);
    return load_fused(backend, weights, full, dim, in, dtype_, block.streamed, Bias::kNone);
  };
  const auto head_norm = [&](const std::string& name) {
    return backend.from_host(weights.get_f32(prefix + "attn1." + name + ".weight", {config_.attention_head_dim}));
  };

  block.video.modulation = linear("norm1.linear", 4 * dim, dim, Bias::kStored);
  block.video.qkv = fused({"to_q", "to_k", "to_v"}, dim);
  block.video.output = linear("attn1.to_out.0", dim, dim, Bias::kStored);
  block.video.query_norm = head_norm("norm_q");
  block.video.key_norm = head_norm("norm_k");
  block.video.feed_forward_in = linear("ff.net.0.proj", 2 * int64_t{config_.ffn_dim()}, dim, Bias::kNone);
  block.video.feed_forward_out = linear("ff.net.2", dim, config_.ffn_dim(), Bias::kNone);

  block.text.qkv = fused({"add_q_proj", "add_k_proj", "add_v_proj"}, text);
  block.text.query_norm = head_norm("norm_added_q");
  block.text.key_norm = head_norm("norm_added_k");
  if (last) {
    block.text.modulation = linear("norm1_context.linear_1", text, dim, Bias::kStored);
  } else {
    block.text.modulation = linear("norm1_context.linear", 4 * text, dim, Bias::kStored);
    block.text.output = linear("attn1.to_add_out", text, dim, Bias::kStored);
    block.text.feed_forward_in =
        linear("ff_context.net.0.proj", 2 * int64_t{config_.text_ffn_dim()}, text, Bias::kNone);
    block.text.feed_forward_out = linear("ff_context.net.2", text, config_.text_ffn_dim(), Bias::kNone);
  }
  if (block.streamed) block.streamed->seal();
  return block;
}

}  // namespace calibatt
