#include "models/mochi/transformer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "models/weights.h"
#include "nn/heads.h"
#include "nn/rope.h"
#include "nn/tensor_rows.h"
#include "nn/timestep_embedding.h"

namespace calibatt {
namespace {

constexpr float kEpsilon = 1e-6f;      // of the streams' norms
constexpr float kHeadEpsilon = 1e-5f;  // of queries and keys

}  // namespace

AttentionGeometry MochiTransformer::geometry(int latent_frames, int latent_height, int latent_width,
                                             const TokenOrder& order) const {
  CALIBATT_ASSERT(latent_height % config_.patch_size == 0 && latent_width % config_.patch_size == 0);
  return token_geometry({latent_frames, latent_height, latent_width}, {1, config_.patch_size, config_.patch_size},
                        config_.num_attention_heads, config_.attention_head_dim, order);
}

MochiPrompt MochiTransformer::prepare_prompt(const Tensor& text_embeddings) const {
  MochiPrompt prompt;
  if (!text_embeddings.empty()) {
    CALIBATT_ASSERT(text_embeddings.rank() == 2 && text_embeddings.dtype() == DType::kF32 &&
                    text_embeddings.dim(0) >= 1 && text_embeddings.dim(1) == config_.text_embed_dim);
    prompt.text = backend_->empty(DType::kF32, {text_embeddings.dim(0), config_.text_width});
    backend_->linear(*text_projection_, backend_->from_host(text_embeddings), prompt.text);
  }
  const Tensor pooled = backend_->from_host(pooled_tokens(text_embeddings));
  prompt.pooled = backend_->empty(DType::kF32, {config_.dim()});
  backend_->linear(*pool_output_, pooled, prompt.pooled);
  return prompt;
}

/// Attention of the tokens' mean, which is among the keys, to them: [text_embed_dim] on the host. Once per prompt, and
/// with heads as wide as no kernel wants them, so it is done there.
Tensor MochiTransformer::pooled_tokens(const Tensor& text_embeddings) const {
  const int64_t width = config_.text_embed_dim, tokens = text_embeddings.empty() ? 0 : text_embeddings.dim(0);
  Tensor inputs = Tensor::zeros(DType::kF32, {tokens + 1, width});  // without tokens the mean is zero
  for (int64_t token = 0; token < tokens; ++token) {
    const float* row = text_embeddings.f32() + token * width;
    std::copy_n(row, width, inputs.f32() + (token + 1) * width);
    for (int64_t c = 0; c < width; ++c) inputs.f32()[c] += row[c] / static_cast<float>(tokens);
  }
  const Tensor device = backend_->from_host(inputs);
  Tensor device_query = backend_->empty(DType::kF32, {1, width}),
         device_keys_values = backend_->empty(DType::kF32, {tokens + 1, 2 * width});
  backend_->linear(*pool_query_, tensor_rows(device, 0, 1), device_query);
  backend_->linear(*pool_keys_values_, device, device_keys_values);
  const Tensor query = backend_->to_host(device_query), keys_values = backend_->to_host(device_keys_values);

  constexpr int64_t kHeads = MochiTransformerConfig::kPoolHeads;
  const int64_t head_dim = width / kHeads;
  Tensor pooled = Tensor::zeros(DType::kF32, {1, width});
  std::vector<double> weights(static_cast<size_t>(tokens) + 1);
  for (int64_t head = 0; head < kHeads; ++head) {
    const float* q = query.f32() + head * head_dim;
    double largest = -INFINITY, sum = 0;
    for (size_t key = 0; key < weights.size(); ++key) {
      const float* k = keys_values.f32() + static_cast<int64_t>(key) * 2 * width + head * head_dim;
      double dot = 0;
      for (int64_t c = 0; c < head_dim; ++c) dot += double{q[c]} * k[c];
      weights[key] = dot / std::sqrt(static_cast<double>(head_dim));
      largest = std::max(largest, weights[key]);
    }
    for (double& weight : weights) sum += weight = std::exp(weight - largest);
    for (int64_t c = 0; c < head_dim; ++c) {
      double value = 0;
      for (size_t key = 0; key < weights.size(); ++key) {
        value +=
            weights[key] / sum * keys_values.f32()[(2 * static_cast<int64_t>(key) + 1) * width + head * head_dim + c];
      }
      pooled.f32()[head * head_dim + c] = static_cast<float>(value);
    }
  }
  return pooled;
}

Tensor MochiTransformer::forward(const Tensor& latents, const TransformerStep& step, const MochiPrompt& prompt,
                                 SelfAttention& self_attention, TransformerTimes* times, const BlockObserver& observer,
                                 const WorkProgress& progress) {
  CALIBATT_ASSERT(latents.rank() == 4 && latents.dtype() == DType::kF32 && latents.dim(0) == config_.in_channels);
  WallClockTimer all;  // the wall clock is right for the whole: the result is waited for
  const std::unique_ptr<Timer> attention_timer = backend_->make_timer();
  all.start();

  const int frames = static_cast<int>(latents.dim(1)), height = static_cast<int>(latents.dim(2)),
            width = static_cast<int>(latents.dim(3));
  const AttentionGeometry attention_geometry = geometry(frames, height, width, self_attention.token_order());
  Communicator* const ranks = self_attention.ranks();
  const TokenShard shard = shard_of_forward(ranks, attention_geometry.num_tokens());
  const Layout& layout = layout_for(attention_geometry, shard);
  const PatchLayout patches{{1, config_.patch_size, config_.patch_size}, layout.raster_of_position};
  const int64_t num_tokens = layout.geometry.num_tokens(), dim = config_.dim(),
                patch_volume = int64_t{config_.patch_size} * config_.patch_size;
  wide_forward_ = has_eight_bits_ && !step.eight_bit_layers;
  if (wide_forward_) load_wide_layers(progress);
  prepare_workspace(shard.count, prompt);

  // The tokens take the order of the run here, and leave it in unpatchify: nothing in between depends on it but the
  // rotary embedding, which is in the same order.
  Tensor tokens = backend_->empty(DType::kF32, {num_tokens, config_.in_channels * patch_volume});
  backend_->patchify(backend_->from_host(latents), patches, tokens);
  backend_->linear(*patch_embedding_, tensor_rows(tokens, shard.begin, shard.count), work_.video.residual);
  const auto [condition_f32, condition] = this->condition(step.timestep, prompt);

  Modulation next;  // of the block to come, whose first norm follows the residual's last change where it is known
  for (int layer = 0; layer < config_.num_layers; ++layer) {
    next = apply_block(layer, std::move(next), condition, [&](const Block& block, const Modulation& now) {
      attention_step(block, layer, now, layout, self_attention, *attention_timer);
      after_part(*backend_, progress, layer, config_.num_layers, 0.5);
    });
    if (observer) observer(layer, work_.video.residual, work_.text.residual);
    after_part(*backend_, progress, layer, config_.num_layers, 1);
  }

  Tensor modulation = backend_->empty(DType::kF32, {2 * dim});
  backend_->linear(*output_modulation_, condition_f32, modulation);
  const Tensor scale = tensor_rows(modulation, 0, dim), shift = tensor_rows(modulation, dim, dim);
  backend_->layer_norm(work_.video.residual, &scale, &shift, true, kEpsilon, work_.video.residual);
  Tensor patches_out = backend_->empty(DType::kF32, {num_tokens, config_.out_channels * patch_volume});
  Tensor own_patches = tensor_rows(patches_out, shard.begin, shard.count);
  backend_->linear(*output_projection_, work_.video.residual, own_patches);
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

/// now: what modulates the block, unless it is empty: then the block's input is not normed yet. Returns the same of the
/// next block.
MochiTransformer::Modulation MochiTransformer::apply_block(
    int layer, Modulation now, const Tensor& condition,
    const std::function<void(const Block& block, const Modulation& now)>& attend) {
  // The first one again after the last: another forward follows most of the time.
  const Block &block = this->block(layer), &next_block = this->block((layer + 1) % config_.num_layers);
  const WeightsInUse in_use(block.streamed, next_block.streamed);
  const bool has_text = !work_.text.residual.empty();
  if (now.video.empty()) {
    now = modulation(block, condition);
    norm_stream(block.video, now.video, work_.video);
    if (has_text) norm_stream(block.text, now.text, work_.text);
  }
  Modulation next = is_last(layer) || offloads_ ? Modulation() : modulation(next_block, condition);
  attend(block, now);
  feed_forward_step(block.video, now.video, next_block.video, next.video, work_.video);
  if (has_text && !is_last(layer)) feed_forward_step(block.text, now.text, next_block.text, next.text, work_.text);
  return next;
}

std::pair<Tensor, Tensor> MochiTransformer::condition(double timestep, const MochiPrompt& prompt) const {
  const int64_t dim = config_.dim();
  const Tensor sinusoids = backend_->from_host(timestep_embedding(timestep, config_.time_embed_dim));
  Tensor hidden = backend_->empty(DType::kF32, {dim}), embedding = backend_->empty(DType::kF32, {dim});
  backend_->linear(*time_in_, sinusoids, hidden, {.activation = Activation::kSiLU});
  backend_->linear(*time_out_, hidden, embedding);
  backend_->add(embedding, prompt.pooled, embedding);
  backend_->activate(Activation::kSiLU, embedding, hidden);
  Tensor rounded = backend_->empty(dtype_, {dim});
  backend_->convert(hidden, rounded);
  return {hidden, rounded};
}

MochiTransformer::Modulation MochiTransformer::modulation(const Block& block, const Tensor& condition) const {
  return {modulation(block.video, condition),
          work_.text.residual.empty() ? Tensor() : modulation(block.text, condition)};
}

Tensor MochiTransformer::modulation(const Stream& stream, const Tensor& condition) const {
  const int64_t width = stream.qkv->in_features(), rows = stream.modulation->out_features() / width;
  Tensor values_of_all = backend_->empty(DType::kF32, {rows * width});
  backend_->linear(*stream.modulation, condition, values_of_all);
  Tensor result = values_of_all.reshaped({rows, width});
  for (int64_t row = 0; row < rows; ++row) {
    Tensor values = tensor_row(result, row);
    if (row == kScale || row == kFeedForwardScale) {
      backend_->add(values, one_, values);
    } else {
      backend_->activate(Activation::kTanh, values, values);
    }
  }
  return result;
}

/// What a block begins with: rms_norm(residual)·(1 + scale).
void MochiTransformer::norm_stream(const Stream& stream, const Tensor& modulation, StreamRows& rows) {
  const Tensor scale = tensor_row(modulation, kScale);
  if (in_eight_bits(*stream.qkv)) {
    backend_->eight_bit_ops().rms_norm(rows.residual, scale, kEpsilon, rows.normed.eight_bits);
  } else {
    backend_->rms_norm(rows.residual, scale, kEpsilon, rows.normed.wide);
  }
}

/// One stream's queries, keys and values, from row first_row on: norm_rotate(W_q x), norm_rotate(W_k x), W_v x, x as
/// norm_stream or the block before left it.
void MochiTransformer::project(const Stream& stream, const StreamRows& rows, int64_t first_row,
                               const RopeFactors* rope) {
  const int head_dim = config_.attention_head_dim;
  const int64_t count = rows.residual.dim(0);
  Tensor qkv = tensor_rows(work_.qkv, first_row, count);
  apply_layer(*backend_, *stream.qkv, rows.normed, 0, count, qkv);
  backend_->norm_and_rotate_heads(heads_view(qkv, 0, head_dim), heads_view(qkv, config_.dim(), head_dim),
                                  config_.num_attention_heads, head_dim,
                                  {stream.query_norm, stream.key_norm, kHeadEpsilon}, rope);
}

/// Of both streams: residual += tanh(gate) ⊙ rms_norm(W_o · attention(queries, keys, values of both)).
void MochiTransformer::attention_step(const Block& block, int layer, const Modulation& modulation, const Layout& layout,
                                      SelfAttention& attention, Timer& timer) {
  const int head_dim = config_.attention_head_dim, dim = config_.dim();
  const int64_t num_tokens = layout.shard.count;
  AttentionGeometry geometry = layout.geometry;
  if (!work_.text.residual.empty()) geometry.text_tokens = static_cast<int>(work_.text.residual.dim(0));

  project(block.video, work_.video, 0, &layout.rope);
  if (geometry.text_tokens > 0) project(block.text, work_.text, num_tokens, nullptr);
  const Tensor qkv = tensor_rows(work_.qkv, 0, num_tokens + geometry.text_tokens);
  Tensor attended = tensor_rows(work_.attended, 0, num_tokens + geometry.text_tokens);
  const Tensor of_video = tensor_rows(attended, 0, num_tokens), gate = tensor_row(modulation.video, kGate);

  OutputContext context;
  Tensor host_gate;
  if (attention.wants_output_context()) context = output_context(block, layer, gate, of_video, host_gate);
  timer.start();
  attention.attend(layer, geometry, heads_view(qkv, 0, head_dim), heads_view(qkv, dim, head_dim),
                   heads_view(qkv, 2 * dim, head_dim), heads_view(attended, 0, head_dim), context);
  timer.stop();

  add_output(block.video, of_video, modulation.video, work_.video);
  if (geometry.text_tokens > 0 && !is_last(layer)) {
    add_output(block.text, tensor_rows(attended, num_tokens, geometry.text_tokens), modulation.text, work_.text);
  }
}

OutputContext MochiTransformer::output_context(const Block& block, int layer, const Tensor& gate,
                                               const Tensor& attended, Tensor& host_gate) {
  const LinearLayer& projection = *block.video.output;
  OutputContext context = output_weights_.context(*backend_, layer, projection, gate, work_.video.residual, host_gate);
  context.squared_gain = [this, &projection, attended] {
    Tensor output = backend_->empty(DType::kF32, attended.shape());
    apply_layer(*backend_, projection, attended, work_.video.normed.eight_bits, output);
    return 1 / (backend_->sum_of_squares(output) / static_cast<double>(output.size()) + kEpsilon);
  };
  return context;
}

/// And rms_norm(residual)·(1 + scale), which the feed-forward begins with.
void MochiTransformer::add_output(const Stream& stream, const Tensor& attended, const Tensor& modulation,
                                  StreamRows& rows) {
  apply_layer(*backend_, *stream.output, attended, rows.normed.eight_bits, rows.normed.wide);
  add_norm(rows.normed.wide, tensor_row(modulation, kGate), rows.residual, stream.feed_forward_in.get(),
           tensor_row(modulation, kFeedForwardScale), rows.normed.eight_bits);
}

/// residual += tanh(gate) ⊙ rms_norm(W_2 · swiglu(W_1 x)), x as add_output left it; and what the next block begins
/// with, unless its modulation is empty.
void MochiTransformer::feed_forward_step(const Stream& stream, const Tensor& modulation, const Stream& next,
                                         const Tensor& next_modulation, StreamRows& rows) {
  const int64_t num_tokens = rows.residual.dim(0), inner = stream.feed_forward_out->in_features();
  const Tensor gate = tensor_row(modulation, kFeedForwardGate),
               next_scale = next_modulation.empty() ? Tensor() : tensor_row(next_modulation, kScale);
  const LinearLayer* const reader = next_modulation.empty() ? nullptr : next.qkv.get();
  const int64_t chunk = std::min(num_tokens, work_.hidden.size() / (3 * inner));
  for (int64_t begin = 0; begin < num_tokens; begin += chunk) {
    const int64_t count = std::min(chunk, num_tokens - begin);
    Tensor both(dtype_, {count, 2 * inner}, work_.hidden.storage());
    LayerInput hidden{tensor_rows(Tensor(dtype_, {3 * count, inner}, work_.hidden.storage()), 2 * count, count), {}};
    Tensor output = tensor_rows(rows.normed.wide, begin, count), to = tensor_rows(rows.residual, begin, count);
    apply_layer(*backend_, *stream.feed_forward_in, rows.normed, begin, count, both);
    if (in_eight_bits(*stream.feed_forward_out)) {
      hidden.eight_bits = {{eight_bit_type_, {count, inner}, hidden.wide.storage()},
                           tensor_rows(work_.hidden_scales, 0, count)};
      backend_->eight_bit_ops().swiglu(both, hidden.eight_bits);
    } else {
      backend_->swiglu(both, hidden.wide);
    }
    apply_layer(*backend_, *stream.feed_forward_out, hidden, 0, count, output);
    EightBitRows eight_bits;
    if (reader != nullptr && in_eight_bits(*reader)) eight_bits = row_range(rows.normed.eight_bits, begin, count);
    add_norm(output, gate, to, reader, next_scale, eight_bits);
  }
}

/// residual += gate ⊙ rms_norm(output); and then, unless `reader` is null, rms_norm(residual) ⊙ scale in the form in
/// which it takes that: in the place of output, or in eight_bits.
void MochiTransformer::add_norm(Tensor& output, const Tensor& gate, Tensor& residual, const LinearLayer* reader,
                                const Tensor& scale, EightBitRows eight_bits) {
  if (reader != nullptr && in_eight_bits(*reader)) {
    return backend_->eight_bit_ops().add_rms_norm(output, gate, kEpsilon, residual, scale, eight_bits);
  }
  const FollowingNorm following{scale, output};
  backend_->add_rms_norm(output, gate, kEpsilon, residual, reader == nullptr ? nullptr : &following);
}

const MochiTransformer::Layout& MochiTransformer::layout_for(const AttentionGeometry& geometry,
                                                             const TokenShard& shard) {
  if (layout_ == nullptr || !(layout_->geometry == geometry && layout_->shard == shard)) {
    auto layout = std::make_unique<Layout>();
    layout->geometry = geometry;
    layout->shard = shard;
    layout->raster_of_position = geometry.raster_of_position();
    const auto own_tokens = std::span(layout->raster_of_position)
                                .subspan(static_cast<size_t>(shard.begin), static_cast<size_t>(shard.count));
    const Tensor positions = learned_rope_positions({geometry.frames, geometry.height, geometry.width}, own_tokens);
    layout->rope = {backend_->from_host(positions), frequencies_};
    layout_ = std::move(layout);
  }
  return *layout_;
}

void MochiTransformer::prepare_workspace(int64_t num_tokens, const MochiPrompt& prompt) {
  const int64_t dim = config_.dim(), text_width = config_.text_width, text_tokens = prompt.num_tokens();
  const Tensor& residual = work_.video.residual;
  if (residual.empty() || residual.dim(0) != num_tokens || work_.text_capacity < text_tokens) {
    const int64_t capacity = std::max(work_.text_capacity, text_tokens);  // prompts of both branches take turns
    work_ = {};                                                           // before the new one is made: never both
    work_.text_capacity = capacity;
    work_.video.residual = backend_->empty(DType::kF32, {num_tokens, dim});
    work_.video.normed.wide = backend_->empty(dtype_, {num_tokens, dim});
    if (capacity > 0) work_.text_normed = backend_->empty(dtype_, {capacity, text_width});
    work_.attended = backend_->empty(dtype_, {num_tokens + capacity, dim});
    // The largest activations of all share their memory: q, k and v are done with when the feed-forward begins.
    const int64_t qkv = (num_tokens + capacity) * 3 * dim, one_row = 3 * int64_t{config_.ffn_dim()};
    const int64_t rows = std::min(num_tokens, backend_->rows_at_a_time());
    const int64_t text_rows = std::min<int64_t>(capacity, rows) * 3 * config_.text_ffn_dim();
    const Tensor shared = backend_->empty(dtype_, {std::max({qkv, rows * one_row, text_rows})});
    work_.qkv = {dtype_, {num_tokens + capacity, 3 * dim}, shared.storage()};
    work_.hidden = {dtype_, {std::max(rows * one_row, text_rows)}, shared.storage()};
    if (has_eight_bits_) {
      work_.video.normed.eight_bits = {backend_->empty(eight_bit_type_, {num_tokens, dim}),
                                       backend_->empty(DType::kF32, {num_tokens})};
      work_.hidden_scales = backend_->empty(DType::kF32, {work_.hidden.size() / one_row});
    }
  }
  work_.text = {};
  if (text_tokens == 0) return;
  work_.text.residual = backend_->empty(DType::kF32, {text_tokens, text_width});  // blocks change it
  work_.text.normed.wide = tensor_rows(work_.text_normed, 0, text_tokens);
  backend_->convert(prompt.text, work_.text.residual);
}

}  // namespace calibatt
