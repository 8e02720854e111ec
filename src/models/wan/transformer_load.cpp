#include "models/wan/transformer.h"
#include "models/weights.h"

namespace calibatt {
namespace {

/// A torch Linear of this name: name.weight [out, in], name.bias [out].
std::shared_ptr<const LinearLayer> load_linear(Backend& backend, const Weights& weights, const std::string& name,
                                               int64_t out, int64_t in, DType dtype) {
  return backend.make_linear(weights.get(name + ".weight", {out, in}), weights.get(name + ".bias", {out}), dtype);
}

/// Linears of one input, computed as one: their outputs side by side.
std::shared_ptr<const LinearLayer> load_fused(Backend& backend, const Weights& weights,
                                              const std::vector<std::string>& names, int64_t out_of_each, int64_t in,
                                              DType dtype) {
  std::vector<std::string> matrices, biases;
  for (const std::string& name : names) {
    matrices.push_back(name + ".weight");
    biases.push_back(name + ".bias");
  }
  return backend.make_linear(weights.stacked(matrices, {out_of_each, in}, dtype),
                             weights.stacked(biases, {out_of_each}, DType::kF32), dtype);
}

}  // namespace

WanTransformer WanTransformer::load(Backend& backend, const std::string& folder, DType dtype) {
  CALIBATT_ASSERT(dtype == DType::kF32 || dtype == DType::kBF16);
  WanTransformer model;
  model.backend_ = &backend;
  model.dtype_ = dtype;
  model.config_ = WanTransformerConfig::load(folder);
  const WanTransformerConfig& config = model.config_;
  const Weights weights = Weights::open(folder);
  const int64_t dim = config.dim();

  // A convolution whose stride is its kernel's size: a linear layer on patches.
  const auto [patch_frames, patch_height, patch_width] = config.patch_size;
  const Tensor patch =
      weights.get("patch_embedding.weight", {dim, config.in_channels, patch_frames, patch_height, patch_width});
  model.patch_embedding_ =
      backend.make_linear(patch.reshaped({dim, int64_t{config.in_channels} * config.patch_volume()}),
                          weights.get("patch_embedding.bias", {dim}), DType::kF32);

  const auto conditioner = [&](const char* name, int64_t out, int64_t in, DType type) {
    return load_linear(backend, weights, std::string("condition_embedder.") + name, out, in, type);
  };
  model.time_in_ = conditioner("time_embedder.linear_1", dim, config.freq_dim, DType::kF32);
  model.time_out_ = conditioner("time_embedder.linear_2", dim, dim, DType::kF32);
  model.time_projection_ = conditioner("time_proj", 6 * dim, dim, DType::kF32);
  model.text_in_ = conditioner("text_embedder.linear_1", dim, config.text_dim, dtype);
  model.text_out_ = conditioner("text_embedder.linear_2", dim, dim, dtype);

  for (int layer = 0; layer < config.num_layers; ++layer) model.blocks_.push_back(model.load_block(weights, layer));

  model.output_modulation_ = backend.from_host(weights.get_f32("scale_shift_table", {1, 2, dim}).reshaped({2, dim}));
  model.output_projection_ =
      load_linear(backend, weights, "proj_out", int64_t{config.out_channels} * config.patch_volume(), dim, DType::kF32);
  return model;
}

WanTransformer::Block WanTransformer::load_block(const Weights& weights, int layer) const {
  Backend& backend = *backend_;
  const int64_t dim = config_.dim();
  const std::string prefix = "blocks." + std::to_string(layer) + ".";
  const auto vector = [&](const std::string& name) { return backend.from_host(weights.get_f32(prefix + name, {dim})); };
  const auto linear = [&](const std::string& name, int64_t out, int64_t in) {
    return load_linear(backend, weights, prefix + name, out, in, dtype_);
  };
  const auto fused = [&](const std::vector<std::string>& names) {
    std::vector<std::string> full;
    full.reserve(names.size());
    for (const std::string& name : names) full.push_back(prefix + name);
    return load_fused(backend, weights, full, dim, dim, dtype_);
  };

  Block block;
  block.modulation = backend.from_host(weights.get_f32(prefix + "scale_shift_table", {1, 6, dim}).reshaped({6, dim}));
  block.qkv = fused({"attn1.to_q", "attn1.to_k", "attn1.to_v"});
  block.output = linear("attn1.to_out.0", dim, dim);
  block.output_weight = weights.get(prefix + "attn1.to_out.0.weight", {dim, dim});
  block.cross_query = linear("attn2.to_q", dim, dim);
  block.cross_keys_values = fused({"attn2.to_k", "attn2.to_v"});
  block.cross_output = linear("attn2.to_out.0", dim, dim);
  // diffusers of today normalises even when the configuration says qk_norm null; older ones then had no such weights.
  // The weights of a null configuration therefore decide.
  if (config_.qk_norm || weights.has(prefix + "attn1.norm_q.weight")) {
    block.query_norm = vector("attn1.norm_q.weight");
    block.key_norm = vector("attn1.norm_k.weight");
    block.cross_query_norm = vector("attn2.norm_q.weight");
    block.cross_key_norm = vector("attn2.norm_k.weight");
  }
  if (config_.cross_attn_norm) {
    block.cross_norm_weight = vector("norm2.weight");
    block.cross_norm_bias = vector("norm2.bias");
  }
  block.feed_forward_in = linear("ffn.net.0.proj", config_.ffn_dim, dim);
  block.feed_forward_out = linear("ffn.net.2", dim, config_.ffn_dim);
  return block;
}

}  // namespace calibatt
