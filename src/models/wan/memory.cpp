#include "models/wan/memory.h"

#include <algorithm>

#include "attention/sequence_parallel.h"
#include "backend/few_keys.h"
#include "base/ceil_div.h"
#include "models/model_folder.h"
#include "models/wan/layers.h"

namespace calibatt {

// As WanTransformer::prepare_workspace lays them out, and what is made beside them in each forward.
uint64_t wan_activation_bytes(const WanTransformerConfig& config, int64_t num_tokens, int prompt_tokens,
                              const Arithmetic& arithmetic) {
  const auto all_tokens = static_cast<uint64_t>(num_tokens),
             tokens = static_cast<uint64_t>(ceil_div(num_tokens, int64_t{arithmetic.num_ranks})),
             dim = static_cast<uint64_t>(config.dim()), bytes = static_cast<uint64_t>(dtype_size(arithmetic.dtype));
  const uint64_t residual = tokens * dim * sizeof(float),
                 normed_in_8_bits = arithmetic.eight_bit_layers ? tokens * dim : 0,
                 query_attended = 2 * tokens * dim * bytes, qkv = 3 * tokens * dim * bytes;
  const uint64_t rope = 2 * tokens * static_cast<uint64_t>(config.attention_head_dim) * sizeof(float);
  const auto patches =
      static_cast<uint64_t>(config.in_channels + config.out_channels) * static_cast<uint64_t>(config.patch_volume());
  constexpr uint64_t kBranches = 2;
  uint64_t largest_prompt = 0;  // not the longest: of few keys more is made
  for (int rows = 1; rows <= prompt_tokens; ++rows) {
    largest_prompt = std::max(largest_prompt, wan_prompt_bytes(config, rows, arithmetic));
  }
  return residual + normed_in_8_bits + query_attended + qkv + rope + 2 * all_tokens * patches * sizeof(float) +
         kBranches * largest_prompt +
         SequenceParallelEngine::memory_bytes(config.num_attention_heads, config.attention_head_dim, num_tokens,
                                              arithmetic.num_ranks, arithmetic.dtype);
}

// As WanTransformer::prepare_prompt makes them, without their biases and scales (some kilobytes a layer).
uint64_t wan_prompt_bytes(const WanTransformerConfig& config, int rows, const Arithmetic& arithmetic) {
  const auto dim = static_cast<uint64_t>(config.dim()), bytes = static_cast<uint64_t>(dtype_size(arithmetic.dtype));
  const uint64_t keys_values = 2 * static_cast<uint64_t>(rows) * dim * bytes;
  const int slots = arithmetic.on_host ? 0 : few_keys_slots(arithmetic.dtype, config.attention_head_dim, rows);
  const uint64_t projected = static_cast<uint64_t>(config.num_attention_heads) * static_cast<uint64_t>(slots) * dim;
  uint64_t element_bytes = bytes;
  if (arithmetic.eight_bit_layers)
    element_bytes = dtype_size(DType::kE4M3) + (arithmetic.wide_transformers > 0 ? bytes : 0);
  return static_cast<uint64_t>(config.num_layers) * (keys_values + projected * element_bytes);
}

WanShardBytes wan_shard_bytes(const WanTransformerConfig& config, const Arithmetic& arithmetic) {
  ModelLoadOptions kept;
  kept.eight_bit_layers = arithmetic.eight_bit_layers;
  kept.kept_layers = arithmetic.kept_layers;
  const BlockFormats formats = WanLayers::formats(config, arithmetic.dtype, kept),
                     wide_formats = WanLayers::formats(config, arithmetic.dtype, {});
  WanShardBytes bytes;
  uint64_t largest = 0;  // of what is gathered at a time
  for (int layer = 0; layer < config.num_layers; ++layer) {
    const WanLayers::BlockBytes own = WanLayers::block_bytes(config, formats, layer),
                                wide = WanLayers::block_bytes(config, wide_formats, layer);
    bytes.blocks += own.forward + own.prompt;
    bytes.wide_blocks += wide.forward + wide.prompt;
    largest =
        std::max<uint64_t>({largest, own.forward, own.prompt, arithmetic.wide_transformers > 0 ? wide.forward : 0});
  }
  bytes.buffers = 2 * largest;
  return bytes;
}

// Level by level as make_decoder builds it: the widest layer's input, its padded copy and its output for one group of
// frames, and two frames of every causal convolution's input, which are kept from group to group. Of ranks each has a
// share of the rows, and the first the pixels of a whole group.
uint64_t wan_decoding_bytes(const WanVaeConfig& config, const VideoSize& size, DType dtype, int num_ranks) {
  const auto bytes = static_cast<uint64_t>(dtype_size(dtype));
  const auto latent_rows = static_cast<uint64_t>(ceil_div(size.height / config.pixels_per_latent(), num_ranks));
  uint64_t histories = 0, widest = 0;
  int in_channels = config.decoder_base_dim * config.dim_mult.back(), group = 1;
  for (int level = config.levels() - 1; level >= 0; --level) {
    const int out_channels = config.decoder_base_dim * config.dim_mult[static_cast<size_t>(level)];
    const uint64_t pixels =
        (latent_rows << (config.levels() - 1 - level)) * static_cast<uint64_t>(size.width / config.patch_size >> level);
    const auto blocks = static_cast<uint64_t>(config.num_res_blocks) + 1, in = static_cast<uint64_t>(in_channels),
               out = static_cast<uint64_t>(out_channels);
    histories += 2 * pixels * bytes * (in + (2 * blocks - 1) * out);
    const uint64_t shortcut = config.is_residual ? in : 0;  // kept until the level's end
    widest =
        std::max(widest, pixels * static_cast<uint64_t>(group) * bytes * (2 * std::max(in, out) + 2 * out + shortcut));
    in_channels = config.is_residual ? out_channels : out_channels / 2;
    if (level > 0 && config.temporal_downsample[static_cast<size_t>(level) - 1]) group *= 2;
  }
  const uint64_t gathered = num_ranks > 1 ? gathered_group_bytes(size, config.frames_per_latent()) : 0;
  return histories + widest + gathered;
}

}  // namespace calibatt
