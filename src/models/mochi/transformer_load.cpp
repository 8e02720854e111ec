#include <algorithm>

#include "models/linear_loading.h"
#include "models/mochi/layers.h"
#include "models/mochi/transformer.h"
#include "models/weight_overlay.h"
#include "models/weights.h"

namespace calibatt {
namespace {

const std::string kBlocks = "transformer_blocks.";

}  // namespace

Component open_mochi_transformer(const std::string& folder, const ModelLoadOptions& options) {
  Component found = open_component_folder(folder, options);
  if (options.overlay) found.tensors = options.overlay->over(found.tensors);
  return found;
}

MochiTransformer MochiTransformer::load(Backend& backend, const std::string& folder, DType dtype,
                                        const ModelLoadOptions& options) {
  CALIBATT_ASSERT(dtype == DType::kF32 || dtype == DType::kBF16 || (dtype == DType::kF16 && backend.has_fp16()));
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
  model.stored_ = stored;
  model.output_weights_ = {stored, kBlocks, config.num_layers, config.dim()};
  if (options.eight_bit_layers) backend.eight_bit_ops().require(options.eight_bit_type);
  model.eight_bit_type_ = options.eight_bit_type;
  const BlockFormats formats = MochiLayers::formats(config, dtype, options);
  model.offloads_ = options.offload;
  if (options.offload) {
    size_t all = 0;
    for (int layer = 0; layer < config.num_layers; ++layer) all += model.missing_bytes(layer, formats, {});
    require_host_memory(all, "--offload", "run without --offload");
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
    model.blocks_.push_back(model.load_block(layer, formats, options));
    for (const Matrix& matrix : model.matrices_of(model.blocks_.back(), layer)) {
      model.has_eight_bits_ = model.has_eight_bits_ || in_eight_bits(*matrix.layer);
    }
  }
  for (const std::string& warning : {weights.check_unused(kBlocks), weights.constant_matrices()}) {
    if (!warning.empty() && options.warn) options.warn(warning);
  }
  if (options.progress) options.progress(config.num_layers, config.num_layers, 0);
  return model;
}

std::vector<MochiTransformer::Matrix> MochiTransformer::matrices_of(Block& block, int layer) const {
  const int64_t dim = config_.dim(), text = config_.text_width, hidden = config_.ffn_dim(),
                text_hidden = config_.text_ffn_dim();
  const MochiLayers& of_video = MochiLayers::video();
  const MochiLayers& of_text = is_last(layer) ? MochiLayers::last_text() : MochiLayers::text();
  std::vector<Matrix> all{
      {block.video.modulation, of_video.modulation, 4 * dim, dim, true},
      {block.video.qkv, of_video.qkv, dim, dim, false},
      {block.video.output, of_video.output, dim, dim, true},
      {block.video.feed_forward_in, of_video.feed_forward_in, 2 * hidden, dim, false},
      {block.video.feed_forward_out, of_video.feed_forward_out, dim, hidden, false},
      {block.text.qkv, of_text.qkv, dim, text, false},
      {block.text.modulation, of_text.modulation, is_last(layer) ? text : 4 * text, dim, true},
  };
  if (is_last(layer)) return all;
  all.push_back({block.text.output, of_text.output, text, dim, true});
  all.push_back({block.text.feed_forward_in, of_text.feed_forward_in, 2 * text_hidden, text, false});
  all.push_back({block.text.feed_forward_out, of_text.feed_forward_out, text, text_hidden, false});
  return all;
}

size_t MochiTransformer::missing_bytes(int layer, const BlockFormats& formats, Block block) const {
  size_t bytes = 0;
  for (const Matrix& matrix : matrices_of(block, layer)) {
    if (matrix.layer != nullptr) continue;
    bytes += Backend::streamed_bytes(matrix.out_of_each * static_cast<int64_t>(matrix.names.size()), matrix.in,
                                     formats.of(layer, matrix.names).dtype);
  }
  return bytes;
}

void MochiTransformer::load_missing(int layer, const BlockFormats& formats, const WorkProgress& progress,
                                    Block& block) const {
  const std::string prefix = kBlocks + std::to_string(layer) + ".";
  const std::vector<Matrix> matrices = matrices_of(block, layer);
  double read = 0;  // a large one takes seconds from a slow disk
  for (const Matrix& matrix : matrices) {
    if (progress) progress(layer, config_.num_layers, read++ / static_cast<double>(matrices.size()));
    if (matrix.layer != nullptr) continue;
    matrix.layer =
        load_fused(*backend_, *stored_, with_prefix(prefix, matrix.names), matrix.out_of_each, matrix.in,
                   formats.of(layer, matrix.names), block.streamed, matrix.has_bias ? Bias::kStored : Bias::kNone);
  }
  if (block.streamed) block.streamed->seal();
}

MochiTransformer::Block MochiTransformer::load_block(int layer, const BlockFormats& formats,
                                                     const ModelLoadOptions& options) const {
  const auto head_norm = [&](const std::string& name) {
    return backend_->from_host(
        stored_->get_f32(kBlocks + std::to_string(layer) + ".attn1." + name + ".weight", {config_.attention_head_dim}));
  };
  Block block;
  if (options.offload) block.streamed = backend_->make_streamed_weights(missing_bytes(layer, formats, {}));
  load_missing(layer, formats, options.progress, block);
  block.video.query_norm = head_norm("norm_q");
  block.video.key_norm = head_norm("norm_k");
  block.text.query_norm = head_norm("norm_added_q");
  block.text.key_norm = head_norm("norm_added_k");
  return block;
}

MochiTransformer::Block MochiTransformer::without_eight_bits(const Block& block, int layer) const {
  Block rest = block;
  rest.streamed = nullptr;
  for (const Matrix& matrix : matrices_of(rest, layer)) {
    if (offloads_ || in_eight_bits(*matrix.layer)) matrix.layer = nullptr;
  }
  return rest;
}

void MochiTransformer::load_wide_layers(const WorkProgress& progress) {
  if (!has_eight_bits_ || !wide_blocks_.empty()) return;
  const BlockFormats formats = MochiLayers::formats(config_, dtype_, {});
  std::vector<Block> wide;
  size_t all = 0;
  for (int layer = 0; layer < config_.num_layers; ++layer) {
    wide.push_back(without_eight_bits(blocks_[static_cast<size_t>(layer)], layer));
    all += missing_bytes(layer, formats, wide.back());
  }
  require_host_memory_of_wide_layers(*backend_, all);
  for (int layer = 0; layer < config_.num_layers; ++layer) {
    Block& block = wide[static_cast<size_t>(layer)];
    if (const size_t bytes = missing_bytes(layer, formats, block); bytes > 0) {
      block.streamed = backend_->make_streamed_weights(bytes);
    }
    load_missing(layer, formats, progress, block);
  }
  wide_blocks_ = std::move(wide);
}

}  // namespace calibatt
