#include "models/wan/transformer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/ceil_div.h"
#include "models/weights.h"
#include "nn/heads.h"
#include "nn/rope.h"
#include "nn/tensor_rows.h"
#include "nn/timestep_embedding.h"

namespace calibatt {
namespace {

/// Rows of a block's modulation [6, dim], and of the output's [2, dim].
enum ModulationRow { kShift, kScale, kGate, kFeedForwardShift, kFeedForwardScale, kFeedForwardGate };

const Tensor* or_null(const Tensor& tensor) {
  return tensor.empty() ? nullptr : &tensor;
}

}  // namespace

bool WanTransformer::BlockLayers::any_in(bool eight_bits) const {
  for (const auto& layer : {qkv, output, cross_query, cross_output, feed_forward_in, feed_forward_out}) {
    if (layer != nullptr && in_eight_bits(*layer) == eight_bits) return true;
  }
  return false;
}

WanTransformer::BlockLayers WanTransformer::BlockLayers::without_eight_bits() const {
  const auto kept = [](const std::shared_ptr<const LinearLayer>& layer) {
    return in_eight_bits(*layer) ? nullptr : layer;
  };
  return {kept(qkv), kept(output), kept(cross_query), kept(cross_output), kept(feed_forward_in), kept(feed_forward_out),
          nullptr};
}

AttentionGeometry WanTransformer::geometry(int latent_frames, int latent_height, int latent_width,
                                           const TokenOrder& order) const {
  const std::array<int, 3> latent{latent_frames, latent_height, latent_width};
  constexpr std::array<const char*, 3> kAxis{"frames", "rows", "columns"};
  for (size_t axis = 0; axis < 3; ++axis) {
    const int patch = config_.patch_size[axis];
    if (latent[axis] < patch || latent[axis] % patch != 0) {
      throw Error(ErrorKind::kUsage, "video size: " + std::to_string(latent[axis]) + " latent " + kAxis[axis] +
                                         " cannot be cut into patches of " + std::to_string(patch) +
                                         "; choose a size that is a multiple");
    }
    if (latent[axis] / patch > config_.rope_max_seq_len) {
      throw Error(ErrorKind::kUsage, "video size: " + std::to_string(latent[axis] / patch) + " tokens along its " +
                                         kAxis[axis] + "; this model knows " +
                                         std::to_string(config_.rope_max_seq_len) + " positions: choose a smaller one");
    }
  }
  return token_geometry(latent, config_.patch_size, config_.num_attention_heads, config_.attention_head_dim, order);
}

WanPrompt WanTransformer::prepare_prompt(const Tensor& text_embeddings, int max_sequence_length,
                                         const WorkProgress& progress, const Tensor& picture) const {
  CALIBATT_ASSERT(picture.empty() != image_embedder_.has_value());
  CALIBATT_ASSERT(text_embeddings.rank() == 2 && text_embeddings.dtype() == DType::kF32);
  const int64_t num_tokens = text_embeddings.dim(0), dim = config_.dim();
  if (text_embeddings.dim(1) != config_.text_dim) {
    throw Error(ErrorKind::kMismatch, "text embeddings are " + std::to_string(text_embeddings.dim(1)) +
                                          " wide, the transformer takes " + std::to_string(config_.text_dim) +
                                          "; text encoder and transformer do not belong together");
  }
  if (num_tokens < 1 || num_tokens > max_sequence_length) {
    throw Error(ErrorKind::kUsage,
                "prompt: " + std::to_string(num_tokens) + " tokens; give 1 to " + std::to_string(max_sequence_length));
  }
  const int64_t num_padding = max_sequence_length - num_tokens;
  const int64_t rows = num_tokens + (num_padding > 0 ? 1 : 0);  // rows of padding are all alike: one stands for them

  Tensor padded = Tensor::zeros(DType::kF32, {rows, config_.text_dim});
  std::memcpy(padded.raw(), text_embeddings.raw(), text_embeddings.size_bytes());
  WanPrompt prompt;
  if (num_padding > 0) {
    prompt.key_bias.assign(static_cast<size_t>(rows), 0.0f);
    prompt.key_bias.back() = std::log(static_cast<float>(num_padding));
  }

  Tensor input = backend_->empty(dtype_, padded.shape());
  Tensor hidden = backend_->empty(dtype_, {rows, dim}), text = backend_->empty(dtype_, {rows, dim});
  backend_->convert(backend_->from_host(padded), input);
  backend_->linear(*text_in_, input, hidden, {.activation = Activation::kGeluTanh});
  backend_->linear(*text_out_, hidden, text);
  Tensor seen;
  if (!picture.empty()) {
    const Tensor embedded = backend_->from_host(image_embedder_->embed(picture));
    seen = backend_->empty(dtype_, embedded.shape());
    backend_->convert(embedded, seen);
  }
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    const Block& block = blocks_[layer];
    const WeightsInUse in_use(block.streamed_prompt, layer + 1 < blocks_.size() ? blocks_[layer + 1].streamed_prompt
                                                                                : blocks_[0].layers.streamed);
    Tensor keys_values = backend_->empty(dtype_, {rows, 2 * dim});
    backend_->linear(*block.cross_keys_values, text, keys_values);
    backend_->norm_and_rotate(heads_view(keys_values, 0, config_.attention_head_dim), config_.num_attention_heads,
                              config_.attention_head_dim, or_null(block.cross_key_norm), config_.eps, nullptr);
    prompt.keys_values.push_back(std::move(keys_values));
    if (!seen.empty()) prepare_picture(block, seen, prompt);
    after_part(*backend_, progress, static_cast<int>(layer), config_.num_layers, 0.5);
  }
  if (backend_->attention_weight_slots(dtype_, config_.attention_head_dim, rows) == 0) return prompt;
  prompt.projected_values = project_values(prompt, &Block::layers, progress);
  if (has_wide_layers_) prompt.projected_values_wide = project_values(prompt, &Block::wide, progress);
  return prompt;
}

std::vector<std::shared_ptr<const LinearLayer>> WanTransformer::project_values(const WanPrompt& prompt,
                                                                               BlockLayers Block::*layers,
                                                                               const WorkProgress& progress) const {
  std::vector<std::shared_ptr<const LinearLayer>> projected;
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    const BlockLayers& own = blocks_[layer].*layers;
    const WeightsInUse in_use(own.streamed, (blocks_[(layer + 1) % blocks_.size()].*layers).streamed);
    const ConstHeadsView values = heads_view(prompt.keys_values[layer], config_.dim(), config_.attention_head_dim);
    projected.push_back(
        backend_->project_values(*own.cross_output, values, config_.num_attention_heads, config_.attention_head_dim));
    after_part(*backend_, progress, static_cast<int>(layer), config_.num_layers, 1);
  }
  return projected;
}

void WanTransformer::prepare_picture(const Block& block, const Tensor& picture, WanPrompt& prompt) const {
  Tensor keys_values = backend_->empty(dtype_, {picture.dim(0), 2 * int64_t{config_.dim()}});
  backend_->linear(*block.image_keys_values, picture, keys_values);
  backend_->norm_and_rotate(heads_view(keys_values, 0, config_.attention_head_dim), config_.num_attention_heads,
                            config_.attention_head_dim, or_null(block.image_key_norm), config_.eps, nullptr);
  prompt.image_keys_values.push_back(std::move(keys_values));
}

Tensor WanTransformer::forward(const Tensor& latents, const TransformerStep& step, const WanPrompt& prompt,
                               SelfAttention& self_attention, TransformerTimes* times, const BlockObserver& observer,
                               const WorkProgress& progress) {
  CALIBATT_ASSERT(latents.rank() == 4 && latents.dtype() == DType::kF32 && latents.dim(0) == config_.in_channels);
  CALIBATT_ASSERT(prompt.keys_values.size() == blocks_.size());
  WallClockTimer all;  // the wall clock is right for the whole: the result is waited for
  const std::unique_ptr<Timer> attention_timer = backend_->make_timer();
  all.start();
  const int frames = static_cast<int>(latents.dim(1)), height = static_cast<int>(latents.dim(2)),
            width = static_cast<int>(latents.dim(3));
  const AttentionGeometry attention_geometry = geometry(frames, height, width, self_attention.token_order());
  Communicator* const ranks = self_attention.ranks();
  const TokenShard shard = shard_of_forward(ranks, attention_geometry.num_tokens());
  const Layout& layout = layout_for(attention_geometry, shard);
  const PatchLayout patches{config_.patch_size, layout.raster_of_position};
  const int64_t num_tokens = layout.geometry.num_tokens(), dim = config_.dim();
  wide_forward_ = has_eight_bits_ && !step.eight_bit_layers;
  if (wide_forward_) load_wide_layers(progress);
  prepare_workspace(shard.count);

  // The tokens take the order of the run here, and leave it in unpatchify: nothing in between depends on it but the
  // rotary embedding, which is in the same order.
  Tensor tokens = backend_->empty(DType::kF32, {num_tokens, int64_t{config_.in_channels} * config_.patch_volume()});
  backend_->patchify(backend_->from_host(latents), patches, tokens);
  backend_->linear(*patch_embedding_, tensor_rows(tokens, shard.begin, shard.count), work_.residual);
  const auto [time_embedding, time_modulation] = embed_timestep(step.timestep);

  for (int layer = 0; layer < config_.num_layers; ++layer) {
    // The first one again after the last: another forward follows most of the time.
    const WeightsInUse in_use(layers_of(layer).streamed, layers_of((layer + 1) % config_.num_layers).streamed);
    Tensor modulation = backend_->empty(DType::kF32, {6, dim});
    backend_->add(blocks_[layer].modulation, time_modulation, modulation);
    self_attention_step(layer, modulation, layout, self_attention, *attention_timer);
    after_part(*backend_, progress, layer, config_.num_layers, 0.5);
    cross_attention_step(layer, prompt);
    feed_forward_step(layer, modulation);
    if (observer) observer(layer, work_.residual);
    after_part(*backend_, progress, layer, config_.num_layers, 1);
  }

  Tensor modulation = backend_->empty(DType::kF32, {2, dim});
  backend_->add(output_modulation_, time_embedding, modulation);
  const Tensor shift = tensor_row(modulation, kShift), scale = tensor_row(modulation, kScale);
  backend_->layer_norm(work_.residual, &scale, &shift, true, config_.eps, work_.residual);
  Tensor patches_out =
      backend_->empty(DType::kF32, {num_tokens, int64_t{config_.out_channels} * config_.patch_volume()});
  Tensor own_patches = tensor_rows(patches_out, shard.begin, shard.count);
  backend_->linear(*output_projection_, work_.residual, own_patches);
  gather_shards(ranks, patches_out);
  Tensor prediction = backend_->empty(DType::kF32, {config_.out_channels, frames, height, width});
  backend_->unpatchify(patches_out, patches, prediction);

  Tensor result = backend_->to_host(prediction);
  all.stop();
  if (times != nullptr) {
    times->self_attention += attention_timer->seconds();
    times->other += all.seconds() - attention_timer->seconds();
  }
  return result;
}

/// residual += gate ⊙ W_o · attention(norm_rotate(W_q x), norm_rotate(W_k x), W_v x), x = norm(residual)·(1 + scale) +
/// shift
void WanTransformer::self_attention_step(int layer, const Tensor& modulation, const Layout& layout,
                                         SelfAttention& attention, Timer& timer) {
  const Block& block = blocks_[layer];
  const BlockLayers& layers = layers_of(layer);
  const int heads = config_.num_attention_heads, head_dim = config_.attention_head_dim, dim = config_.dim();
  const Tensor shift = tensor_row(modulation, kShift), scale = tensor_row(modulation, kScale),
               gate = tensor_row(modulation, kGate);

  norm_for(*layers.qkv, {&scale, &shift, true, config_.eps});
  apply_layer(*backend_, *layers.qkv, work_.normed, 0, work_.residual.dim(0), work_.qkv);
  const HeadsView query = heads_view(work_.qkv, 0, head_dim), key = heads_view(work_.qkv, dim, head_dim),
                  value = heads_view(work_.qkv, 2 * dim, head_dim);
  const QueryKeyNorm norm{query, key, or_null(block.query_norm), or_null(block.key_norm), config_.eps, &layout.rope};
  const HeadsView out = heads_view(work_.attended, 0, head_dim);
  if (attention.takes_norm()) {
    timer.start();
    attention.norm_and_attend(layer, layout.geometry, norm, as_const(value), out);
  } else {
    backend_->norm_and_rotate(query, heads, head_dim, norm.query_weight, norm.eps, norm.rope);
    backend_->norm_and_rotate(key, heads, head_dim, norm.key_weight, norm.eps, norm.rope);
    OutputContext context;
    Tensor host_gate;
    if (attention.wants_output_context()) {
      context = output_weights_.context(*backend_, layer, *layers.output, gate, work_.residual, host_gate);
    }
    timer.start();
    attention.attend(layer, layout.geometry, as_const(query), as_const(key), as_const(value), out, context);
  }
  timer.stop();

  add_attended(*layers.output, &gate);
}

/// residual += W_o · (attention(norm(W_q x), keys and values of the prompt) + the same of the picture), x =
/// norm(residual).
void WanTransformer::cross_attention_step(int layer, const WanPrompt& prompt) {
  const Block& block = blocks_[layer];
  const BlockLayers& layers = layers_of(layer);
  const int heads = config_.num_attention_heads, head_dim = config_.attention_head_dim;

  if (config_.cross_attn_norm) {
    norm_for(*layers.cross_query, {&block.cross_norm_weight, &block.cross_norm_bias, false, config_.eps});
  } else if (in_eight_bits(*layers.cross_query)) {
    backend_->eight_bit_ops().quantise(work_.residual, Activation::kNone, work_.normed.eight_bits);
  } else {
    backend_->convert(work_.residual, work_.normed.wide);
  }
  apply_layer(*backend_, *layers.cross_query, work_.normed, 0, work_.residual.dim(0), work_.query);
  const HeadsView query = heads_view(work_.query, 0, head_dim);
  backend_->norm_and_rotate(query, heads, head_dim, or_null(block.cross_query_norm), config_.eps, nullptr);

  AttentionCall call;
  call.q = as_const(query);
  call.num_heads = heads;
  call.head_dim = head_dim;
  call.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  attend_to_text(layer, prompt, call);
  if (prompt.image_keys_values.empty()) return;
  call.k = heads_view(prompt.image_keys_values[layer], 0, head_dim);
  call.v = heads_view(prompt.image_keys_values[layer], config_.dim(), head_dim);
  call.key_bias = {};
  call.out = heads_view(work_.attended, 0, head_dim);
  backend_->attention(call);
  add_attended(*layers.cross_output);
  backend_->add(work_.residual, block.minus_cross_bias, work_.residual);
}

/// W_o is applied to the values beforehand where that pays.
void WanTransformer::attend_to_text(int layer, const WanPrompt& prompt, AttentionCall& call) {
  const int head_dim = config_.attention_head_dim;
  call.k = heads_view(prompt.keys_values[layer], 0, head_dim);
  call.key_bias = prompt.key_bias;
  const auto& all_projected = wide_forward_ ? prompt.projected_values_wide : prompt.projected_values;
  if (!all_projected.empty()) {
    const LinearLayer& projected = *all_projected[layer];  // narrower than what is attended otherwise
    if (in_eight_bits(projected)) {
      const EightBitRows& room = work_.normed.eight_bits;  // the query is made: norms are not needed any more
      EightBitRows rows{{projected.dtype(), {room.scales.size(), projected.in_features()}, room.elements.storage()},
                        room.scales};
      backend_->eight_bit_ops().attention_weights(call, rows);
      backend_->eight_bit_ops().linear(projected, rows, work_.residual, {.accumulate = true});
      return;
    }
    Tensor weights(dtype_, {work_.attended.dim(0), projected.in_features()}, work_.attended.storage());
    backend_->attention_weights(call, weights);
    backend_->linear(projected, weights, work_.residual, {.accumulate = true});
    return;
  }
  call.v = heads_view(prompt.keys_values[layer], config_.dim(), head_dim);
  call.out = heads_view(work_.attended, 0, head_dim);
  backend_->attention(call);
  add_attended(*layers_of(layer).cross_output);
}

/// residual += gate ⊙ W_2 · gelu(W_1 x), x = norm(residual)·(1 + scale) + shift
void WanTransformer::feed_forward_step(int layer, const Tensor& modulation) {
  const BlockLayers& layers = layers_of(layer);
  const Tensor shift = tensor_row(modulation, kFeedForwardShift), scale = tensor_row(modulation, kFeedForwardScale),
               gate = tensor_row(modulation, kFeedForwardGate);

  norm_for(*layers.feed_forward_in, {&scale, &shift, true, config_.eps});
  const int64_t num_tokens = work_.residual.dim(0), chunk = work_.hidden.wide.dim(0);
  // The input of a layer in 8 bits is activated by the pass that quantises it.
  const bool quantises = in_eight_bits(*layers.feed_forward_out);
  const Activation activation = quantises ? Activation::kNone : Activation::kGeluTanh;
  for (int64_t begin = 0; begin < num_tokens; begin += chunk) {
    const int64_t count = std::min(chunk, num_tokens - begin);
    Tensor hidden = tensor_rows(work_.hidden.wide, 0, count), residual = tensor_rows(work_.residual, begin, count);
    apply_layer(*backend_, *layers.feed_forward_in, work_.normed, begin, count, hidden, {.activation = activation});
    if (quantises) {
      EightBitRows rows = row_range(work_.hidden.eight_bits, 0, count);
      backend_->eight_bit_ops().quantise(hidden, Activation::kGeluTanh, rows);
    }
    apply_layer(*backend_, *layers.feed_forward_out, work_.hidden, 0, count, residual,
                {.accumulate = true, .gate = &gate});
  }
}

void WanTransformer::norm_for(const LinearLayer& layer, const LayerNorm& norm) {
  if (in_eight_bits(layer)) {
    backend_->eight_bit_ops().layer_norm(work_.residual, norm, work_.normed.eight_bits);
  } else {
    backend_->layer_norm(work_.residual, norm.scale, norm.shift, norm.one_plus_scale, norm.eps, work_.normed.wide);
  }
}

/// Nothing of norms is needed any more when attention is done, so their memory takes what is quantised.
void WanTransformer::add_attended(const LinearLayer& layer, const Tensor* gate) {
  apply_layer(*backend_, layer, work_.attended, work_.normed.eight_bits, work_.residual,
              {.accumulate = true, .gate = gate});
}

std::pair<Tensor, Tensor> WanTransformer::embed_timestep(double timestep) const {
  const int64_t dim = config_.dim();
  const Tensor sinusoids = backend_->from_host(timestep_embedding(timestep, config_.freq_dim));
  Tensor hidden = backend_->empty(DType::kF32, {dim}), embedding = backend_->empty(DType::kF32, {dim});
  backend_->linear(*time_in_, sinusoids, hidden, {.activation = Activation::kSiLU});
  backend_->linear(*time_out_, hidden, embedding);
  backend_->activate(Activation::kSiLU, embedding, hidden);
  Tensor modulation = backend_->empty(DType::kF32, {6 * dim});
  backend_->linear(*time_projection_, hidden, modulation);
  return {embedding, modulation};
}

const WanTransformer::Layout& WanTransformer::layout_for(const AttentionGeometry& geometry, const TokenShard& shard) {
  if (layout_ == nullptr || !(layout_->geometry == geometry && layout_->shard == shard)) {
    auto layout = std::make_unique<Layout>();
    layout->geometry = geometry;
    layout->shard = shard;
    layout->raster_of_position = geometry.raster_of_position();
    const auto own_tokens = std::span(layout->raster_of_position)
                                .subspan(static_cast<size_t>(shard.begin), static_cast<size_t>(shard.count));
    const RopeTable rope =
        make_video_rope({geometry.frames, geometry.height, geometry.width}, geometry.head_dim, own_tokens);
    layout->rope = {backend_->from_host(rope.cos), backend_->from_host(rope.signed_sin)};
    layout_ = std::move(layout);
  }
  return *layout_;
}

void WanTransformer::prepare_workspace(int64_t num_tokens) {
  if (!work_.residual.empty() && work_.residual.dim(0) == num_tokens) return;
  work_ = {};  // before the new one is made: never both
  const int64_t dim = config_.dim();
  const int64_t activation = num_tokens * dim, chunk = std::min(num_tokens, backend_->rows_at_a_time());
  const auto bytes_of = [this](int64_t elements) { return elements * static_cast<int64_t>(dtype_size(dtype_)); };
  const auto bytes = [this](int64_t count) { return backend_->empty(DType::kU8, {count}); };
  bool eight_bits = false;
  for (const Block& block : blocks_) eight_bits = eight_bits || block.layers.any_in(true);
  work_.residual = backend_->empty(DType::kF32, {num_tokens, dim});

  // Activations share memory. In the feed-forward nobody needs q, k, v, nor the query and result of attention; where
  // norms are needed, nobody needs that result.
  constexpr int64_t kAlignment = 256;
  const int64_t query_bytes =
      ceil_div(std::max(bytes_of(activation), eight_bits ? chunk * config_.ffn_dim : 0), kAlignment) * kAlignment;
  Tensor attention = bytes(query_bytes + bytes_of(activation));
  const std::shared_ptr<void> attended(attention.storage(), static_cast<char*>(attention.raw()) + query_bytes);
  work_.query = {dtype_, {num_tokens, dim}, attention.storage()};
  work_.attended = {dtype_, {num_tokens, dim}, attended};
  work_.normed.wide = {dtype_, {num_tokens, dim}, attended};
  const Tensor shared = bytes(bytes_of(std::max(3 * activation, chunk * config_.ffn_dim)));
  work_.qkv = {dtype_, {num_tokens, 3 * dim}, shared.storage()};
  work_.hidden.wide = {dtype_, {chunk, config_.ffn_dim}, shared.storage()};
  if (!eight_bits) return;
  work_.normed.eight_bits = {backend_->empty(eight_bit_type_, {num_tokens, dim}),
                             backend_->empty(DType::kF32, {num_tokens})};
  work_.hidden.eight_bits = {{eight_bit_type_, {chunk, config_.ffn_dim}, attention.storage()},
                             backend_->empty(DType::kF32, {chunk})};
}

}  // namespace calibatt
