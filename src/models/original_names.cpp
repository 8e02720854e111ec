#include "models/original_names.h"

#include <charconv>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace calibatt {
namespace {

/// Wan-AI's name of a module and ours.
using Names = std::span<const std::pair<std::string_view, std::string_view>>;
using Pair = std::pair<std::string_view, std::string_view>;

constexpr Pair kTransformer[] = {
    {"text_embedding.0", "condition_embedder.text_embedder.linear_1"},
    {"text_embedding.2", "condition_embedder.text_embedder.linear_2"},
    {"time_embedding.0", "condition_embedder.time_embedder.linear_1"},
    {"time_embedding.2", "condition_embedder.time_embedder.linear_2"},
    {"time_projection.1", "condition_embedder.time_proj"},
    {"img_emb.proj.0", "condition_embedder.image_embedder.norm1"},
    {"img_emb.proj.1", "condition_embedder.image_embedder.ff.net.0.proj"},
    {"img_emb.proj.3", "condition_embedder.image_embedder.ff.net.2"},
    {"img_emb.proj.4", "condition_embedder.image_embedder.norm2"},
    {"head.modulation", "scale_shift_table"},
    {"head.head", "proj_out"},
};
constexpr Pair kTransformerBlock[] = {
    {"modulation", "scale_shift_table"},
    {"self_attn.q", "attn1.to_q"},
    {"self_attn.k", "attn1.to_k"},
    {"self_attn.v", "attn1.to_v"},
    {"self_attn.o", "attn1.to_out.0"},
    {"self_attn.norm_q", "attn1.norm_q"},
    {"self_attn.norm_k", "attn1.norm_k"},
    {"cross_attn.q", "attn2.to_q"},
    {"cross_attn.k", "attn2.to_k"},
    {"cross_attn.v", "attn2.to_v"},
    {"cross_attn.o", "attn2.to_out.0"},
    {"cross_attn.k_img", "attn2.add_k_proj"},
    {"cross_attn.v_img", "attn2.add_v_proj"},
    {"cross_attn.norm_k_img", "attn2.norm_added_k"},
    {"cross_attn.norm_q", "attn2.norm_q"},
    {"cross_attn.norm_k", "attn2.norm_k"},
    {"norm3", "norm2"},  // the norm before cross-attention, the only one with weights
    {"ffn.0", "ffn.net.0.proj"},
    {"ffn.2", "ffn.net.2"},
};
constexpr Pair kUmt5[] = {
    {"token_embedding", "shared"},
    {"norm", "encoder.final_layer_norm"},
};
constexpr Pair kUmt5Block[] = {
    {"norm1", "layer.0.layer_norm"},
    {"attn.q", "layer.0.SelfAttention.q"},
    {"attn.k", "layer.0.SelfAttention.k"},
    {"attn.v", "layer.0.SelfAttention.v"},
    {"attn.o", "layer.0.SelfAttention.o"},
    {"pos_embedding.embedding", "layer.0.SelfAttention.relative_attention_bias"},
    {"norm2", "layer.1.layer_norm"},
    {"ffn.gate.0", "layer.1.DenseReluDense.wi_0"},  // the one that goes through GELU
    {"ffn.fc1", "layer.1.DenseReluDense.wi_1"},
    {"ffn.fc2", "layer.1.DenseReluDense.wo"},
};
// As GGUF files of text encoders have them (llama.cpp's T5, city96's UMT5).
constexpr Pair kGgufUmt5[] = {
    {"token_embd", "shared"},
    {"enc.output_norm", "encoder.final_layer_norm"},
};
constexpr Pair kGgufUmt5Block[] = {
    {"attn_norm", "layer.0.layer_norm"},       {"attn_q", "layer.0.SelfAttention.q"},
    {"attn_k", "layer.0.SelfAttention.k"},     {"attn_v", "layer.0.SelfAttention.v"},
    {"attn_o", "layer.0.SelfAttention.o"},     {"attn_rel_b", "layer.0.SelfAttention.relative_attention_bias"},
    {"ffn_norm", "layer.1.layer_norm"},        {"ffn_gate", "layer.1.DenseReluDense.wi_0"},
    {"ffn_up", "layer.1.DenseReluDense.wi_1"}, {"ffn_down", "layer.1.DenseReluDense.wo"},
};
constexpr Pair kVae[] = {
    {"conv1", "quant_conv"},
    {"conv2", "post_quant_conv"},
};
/// Of the encoder and of the decoder.
constexpr Pair kVaeHalf[] = {
    {"conv1", "conv_in"},
    {"middle.0", "mid_block.resnets.0"},
    {"middle.1", "mid_block.attentions.0"},
    {"middle.2", "mid_block.resnets.1"},
    {"head.0", "norm_out"},
    {"head.2", "conv_out"},
};
/// Of a residual block, whose layers torch numbered with those that have no weights (SiLU, dropout).
constexpr Pair kVaeResidual[] = {
    {"residual.0", "norm1"}, {"residual.2", "conv1"},       {"residual.3", "norm2"},
    {"residual.6", "conv2"}, {"shortcut", "conv_shortcut"},
};

/// Takes whole parts between dots off the beginning of a name.
bool take(std::string_view& name, std::string_view beginning) {
  if (!name.starts_with(beginning)) return false;
  if (name.size() > beginning.size() && name[beginning.size()] != '.') return false;
  name.remove_prefix(beginning.size());
  return true;
}

/// A number and the dot after it.
std::optional<int> take_index(std::string_view& name) {
  int index = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), index);
  if (error != std::errc() || end == name.data() + name.size() || *end != '.' || index < 0) return std::nullopt;
  name.remove_prefix(static_cast<size_t>(end - name.data()) + 1);
  return index;
}

std::string replace_beginning(std::string_view name, Names names) {
  for (const auto& [theirs, ours] : names) {
    std::string_view rest = name;
    if (take(rest, theirs)) return std::string(ours) + std::string(rest);
  }
  return std::string(name);
}

/// "<their blocks>3.<name>" → "<blocks>3.<our name>"; names outside of blocks by the other table.
std::string replace_in_blocks(std::string_view name, std::string_view blocks, Names of_block, Names of_model,
                              std::string_view their_blocks = "blocks.") {
  std::string_view rest = name;
  if (rest.starts_with(their_blocks)) {
    rest.remove_prefix(their_blocks.size());
    if (const auto block = take_index(rest)) {
      return std::string(blocks) + std::to_string(*block) + "." + replace_beginning(rest, of_block);
    }
  }
  return replace_beginning(name, of_model);
}

/// A layer of a level of Wan 2.2's autoencoder, "upsamples.3.residual.0.gamma" → "resnets.3.norm1.gamma"; what no such
/// layer is stays.
std::string residual_level_name(std::string_view layer, bool down) {
  std::string_view rest = layer;
  if (!take(rest, down ? "downsamples" : "upsamples") || rest.empty()) return std::string(layer);
  rest.remove_prefix(1);
  const auto index = take_index(rest);
  if (!index) return std::string(layer);
  std::string_view kind = rest;
  if (take(kind, "resample") || take(kind, "time_conv")) {
    return std::string(down ? "downsampler." : "upsampler.") + std::string(rest);
  }
  return "resnets." + std::to_string(*index) + "." + replace_beginning(rest, kVaeResidual);
}

}  // namespace

std::string diffusers_transformer_name(const std::string& original) {
  return replace_in_blocks(original, "blocks.", kTransformerBlock, kTransformer);
}

std::string original_transformer_name(const std::string& ours) {
  const auto swapped = [](Names names) {
    std::vector<Pair> result;
    for (const auto& [theirs, our_name] : names) result.emplace_back(our_name, theirs);
    return result;
  };
  return replace_in_blocks(ours, "blocks.", swapped(kTransformerBlock), swapped(kTransformer));
}

std::string transformers_umt5_name(const std::string& original) {
  if (original.starts_with("enc.") || original.starts_with("token_embd.")) {
    return replace_in_blocks(original, "encoder.block.", kGgufUmt5Block, kGgufUmt5, "enc.blk.");
  }
  return replace_in_blocks(original, "encoder.block.", kUmt5Block, kUmt5);
}

std::string diffusers_vae_name(const std::string& original, int num_res_blocks) {
  for (const std::string half : {"encoder.", "decoder."}) {
    if (!original.starts_with(half)) continue;
    std::string_view rest = std::string_view(original).substr(half.size());
    const bool down = rest.starts_with("downsamples."), up = rest.starts_with("upsamples.");
    if (down || up) {
      rest.remove_prefix(rest.find('.') + 1);
      const auto index = take_index(rest);
      if (!index) return original;
      if (rest.starts_with("downsamples.") || rest.starts_with("upsamples.")) {
        return half + (down ? "down_blocks." : "up_blocks.") + std::to_string(*index) + "." +
               residual_level_name(rest, down);
      }
      const std::string tail = replace_beginning(rest, kVaeResidual);
      if (down) return half + "down_blocks." + std::to_string(*index) + "." + tail;
      const int layers = num_res_blocks + 2, block = *index / layers, layer = *index % layers;
      return half + "up_blocks." + std::to_string(block) + "." +
             (layer <= num_res_blocks ? "resnets." + std::to_string(layer) : "upsamplers.0") + "." + tail;
    }
    std::string_view middle = rest;
    const bool residual = take(middle, "middle.0") || take(middle, "middle.2");
    if (!residual || middle.empty()) return half + replace_beginning(rest, kVaeHalf);
    const std::string_view block = rest.substr(0, rest.size() - middle.size());
    return half + replace_beginning(block, kVaeHalf) + "." + replace_beginning(middle.substr(1), kVaeResidual);
  }
  return replace_beginning(original, kVae);
}

}  // namespace calibatt
