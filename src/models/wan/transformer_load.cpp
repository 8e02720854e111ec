#include "models/linear_loading.h"
#include "models/original_layout.h"
#include "models/wan/layers.h"
#include "models/wan/transformer.h"
#include "models/weights.h"

namespace calibatt {
namespace {

void require_host_memory_of_blocks(const WanTransformerConfig& config, const BlockFormats& formats) {
  size_t all = 0;
  for (int layer = 0; layer < config.num_layers; ++layer) {
    const WanLayers::BlockBytes block = WanLayers::block_bytes(config, formats, layer);
    all += block.forward + block.prompt;
  }
  require_host_memory(all, "--offload", "run without --offload");
}

std::string block_prefix(int block) {
  return "blocks." + std::to_string(block) + ".";
}

}  // namespace

WanTransformer WanTransformer::load(Backend& backend, const std::string& folder, DType dtype,
                                    const ModelLoadOptions& options) {
  CALIBATT_ASSERT(dtype == DType::kF32 || dtype == DType::kBF16 || (dtype == DType::kF16 && backend.has_fp16()));
  WanTransformer model;
  model.backend_ = &backend;
  model.dtype_ = dtype;
  Component files = open_transformer(folder, options);
  model.config_ = WanTransformerConfig::from(files.config);
  warn_of_unread_settings(files.config, {}, options);
  const WanTransformerConfig& config = model.config_;
  const auto stored = std::make_shared<const Weights>(std::move(files.tensors));
  const Weights& weights = *stored;
  model.stored_ = stored;
  model.output_weights_ = {stored, "blocks.", config.num_layers, config.dim()};
  if (options.eight_bit_layers) backend.eight_bit_ops().require(options.eight_bit_type);
  model.eight_bit_type_ = options.eight_bit_type;
  const BlockFormats formats = WanLayers::formats(config, dtype, options);
  model.shards_ = options.shards;
  if (options.offload && options.shards.rank == 0) {  // of several ranks the first speaks for all: they share it
    require_host_memory_of_blocks(config, formats);
  }
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

  if (config.image_dim > 0) model.image_embedder_ = WanImageEmbedder::load(weights, config);

  // The small ones before the blocks: what is wrong with them is said at once.
  model.output_modulation_ = backend.from_host(weights.get_f32("scale_shift_table", {1, 2, dim}).reshaped({2, dim}));
  model.output_projection_ =
      load_linear(backend, weights, "proj_out", int64_t{config.out_channels} * config.patch_volume(), dim, DType::kF32);

  for (int layer = 0; layer < config.num_layers; ++layer) {
    model.blocks_.push_back(model.load_block(weights, layer, formats, options));
    model.has_eight_bits_ = model.has_eight_bits_ || model.blocks_.back().layers.any_in(true);
  }
  for (const std::string& warning : {weights.check_unused("blocks."), weights.constant_matrices()}) {
    if (!warning.empty() && options.warn) options.warn(warning);
  }
  if (options.progress) options.progress(config.num_layers, config.num_layers, 0);
  return model;
}

std::shared_ptr<StreamedWeights> WanTransformer::make_shard(int layer, const std::string& kind, size_t size_bytes,
                                                            bool on_the_host) const {
  return backend_->make_sharded_weights(
      {shards_, shards_.model + block_prefix(layer) + " " + kind, size_bytes, on_the_host});
}

void WanTransformer::load_picture_part(const Weights& weights, const std::string& prefix, Block& block) const {
  const int64_t dim = config_.dim();
  block.image_keys_values = load_fused(*backend_, weights, {prefix + "add_k_proj", prefix + "add_v_proj"}, dim, dim,
                                       dtype_, block.streamed_prompt);
  block.image_key_norm = backend_->from_host(weights.get_f32(prefix + "norm_added_k.weight", {dim}));
  weights.mark_known(prefix + "norm_added_q.weight");  // of older files, and not used
  Tensor bias = weights.get_f32(prefix + "to_out.0.bias", {dim}).clone();
  for (int64_t i = 0; i < dim; ++i) bias.f32()[i] = -bias.f32()[i];
  block.minus_cross_bias = backend_->from_host(bias);
}

WanTransformer::Block WanTransformer::load_block(const Weights& weights, int layer, const BlockFormats& formats,
                                                 const ModelLoadOptions& options) const {
  Backend& backend = *backend_;
  const int64_t dim = config_.dim();
  const std::string prefix = block_prefix(layer);
  Block block;
  constexpr double kMatrices = 8;
  int matrices = 0;  // that were read: a large one takes seconds from a slow disk
  const auto before_matrix = [&] {
    if (options.progress) options.progress(layer, config_.num_layers, matrices++ / kMatrices);
  };
  const WanLayers::BlockBytes bytes = WanLayers::block_bytes(config_, formats, layer);
  if (options.shards) {
    block.layers.streamed = make_shard(layer, "forward", bytes.forward, options.offload);
    block.streamed_prompt = make_shard(layer, "prompt", bytes.prompt, options.offload);
  } else if (options.offload) {
    block.layers.streamed = backend.make_streamed_weights(bytes.forward);
    block.streamed_prompt = backend.make_streamed_weights(bytes.prompt);
  }
  const auto vector = [&](const std::string& name) { return backend.from_host(weights.get_f32(prefix + name, {dim})); };

  block.modulation = backend.from_host(weights.get_f32(prefix + "scale_shift_table", {1, 6, dim}).reshaped({6, dim}));
  load_layers(layer, formats, before_matrix, block.layers);
  before_matrix();
  block.cross_keys_values = load_fused(backend, weights, with_prefix(prefix, WanLayers::kCrossKeysValues), dim, dim,
                                       formats.of(layer, WanLayers::kCrossKeysValues), block.streamed_prompt);
  if (config_.image_dim > 0) load_picture_part(weights, prefix + "attn2.", block);
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
  for (const auto& streamed : {block.layers.streamed, block.streamed_prompt}) {
    if (streamed) streamed->seal();
  }
  return block;
}

void WanTransformer::load_layers(int layer, const BlockFormats& formats, const std::function<void()>& before_matrix,
                                 BlockLayers& to) const {
  const int64_t dim = config_.dim();
  const std::string prefix = block_prefix(layer);
  const auto load = [&](std::shared_ptr<const LinearLayer>& into, const std::vector<std::string>& names, int64_t out,
                        int64_t in) {
    if (into != nullptr) return;
    before_matrix();
    into = load_fused(*backend_, *stored_, with_prefix(prefix, names), out, in, formats.of(layer, names), to.streamed);
  };
  load(to.qkv, WanLayers::kQueryKeyValue, dim, dim);
  load(to.output, WanLayers::kOutput, dim, dim);
  load(to.cross_query, WanLayers::kCrossQuery, dim, dim);
  load(to.cross_output, WanLayers::kCrossOutput, dim, dim);
  load(to.feed_forward_in, WanLayers::kFeedForwardIn, config_.ffn_dim, dim);
  load(to.feed_forward_out, WanLayers::kFeedForwardOut, dim, config_.ffn_dim);
}

void WanTransformer::load_wide_layers(const WorkProgress& progress) {
  if (!has_eight_bits_ || has_wide_layers_) return;
  const BlockFormats formats = WanLayers::formats(config_, dtype_, {});
  const size_t block_size = WanLayers::block_bytes(config_, formats, 0).forward;
  if (!shards_ || shards_.rank == 0) require_host_memory_of_wide_layers(*backend_, block_size * blocks_.size());
  for (int layer = 0; layer < config_.num_layers; ++layer) {
    Block& block = blocks_[static_cast<size_t>(layer)];
    BlockLayers wide;
    if (block.layers.streamed == nullptr) wide = block.layers.without_eight_bits();
    wide.streamed =
        shards_ ? make_shard(layer, "without 8 bits", block_size, true) : backend_->make_streamed_weights(block_size);
    double matrices = 0;
    load_layers(
        layer, formats,
        [&] {
          if (progress) progress(layer, config_.num_layers, matrices++ / BlockLayers::kCount);
        },
        wide);
    if (wide.streamed) wide.streamed->seal();
    block.wide = std::move(wide);
  }
  has_wide_layers_ = true;
}

}  // namespace calibatt
