#include "models/mochi/memory.h"

#include <algorithm>

#include "attention/sequence_parallel.h"
#include "base/ceil_div.h"
#include "models/mochi/layers.h"

namespace calibatt {

// As MochiTransformer::prepare_workspace lays them out, and what is made beside them in each forward. q, k and v share
// their memory with the feed-forward, which takes all tokens at a time (on a GPU; fewer on a CPU).
uint64_t mochi_activation_bytes(const MochiTransformerConfig& config, int64_t num_tokens, int text_tokens,
                                const Arithmetic& arithmetic) {
  const auto all_video = static_cast<uint64_t>(num_tokens),
             video = static_cast<uint64_t>(ceil_div(num_tokens, int64_t{arithmetic.num_ranks})),
             text = static_cast<uint64_t>(text_tokens), dim = static_cast<uint64_t>(config.dim()),
             hidden = static_cast<uint64_t>(config.ffn_dim()), text_width = static_cast<uint64_t>(config.text_width),
             bytes = static_cast<uint64_t>(dtype_size(arithmetic.dtype));
  const uint64_t residuals = (video * dim + 3 * text * text_width) * sizeof(float),  // both prompts' text, and a copy
      normed = (video * dim + text * text_width) * bytes,
                 normed_in_8_bits = arithmetic.eight_bit_layers ? video * dim : 0,
                 attended = (video + text) * dim * bytes,
                 shared = std::max(3 * (video + text) * dim, 3 * video * hidden) * bytes;
  const auto patch = static_cast<uint64_t>(config.patch_size),
             channels = static_cast<uint64_t>(config.in_channels) + static_cast<uint64_t>(config.out_channels);
  return residuals + normed + normed_in_8_bits + attended + shared +
         2 * all_video * channels * patch * patch * sizeof(float) +
         SequenceParallelEngine::memory_bytes(config.num_attention_heads, config.attention_head_dim,
                                              num_tokens + text_tokens, arithmetic.num_ranks, arithmetic.dtype);
}

MochiOffloadBytes mochi_offload_bytes(const MochiTransformerConfig& config, const Arithmetic& arithmetic) {
  ModelLoadOptions kept;
  kept.eight_bit_layers = arithmetic.eight_bit_layers;
  kept.kept_layers = arithmetic.kept_layers;
  const BlockFormats formats = MochiLayers::formats(config, arithmetic.dtype, kept),
                     wide_formats = MochiLayers::formats(config, arithmetic.dtype, {});
  MochiOffloadBytes bytes;
  uint64_t largest = 0;  // of what is streamed at a time
  for (int layer = 0; layer < config.num_layers; ++layer) {
    const uint64_t own = MochiLayers::block_bytes(config, formats, layer),
                   wide = MochiLayers::block_bytes(config, wide_formats, layer);
    bytes.blocks += own;
    bytes.wide_blocks += wide;
    largest = std::max({largest, own, arithmetic.wide_transformers > 0 ? wide : 0});
  }
  bytes.buffers = 2 * largest;
  return bytes;
}

}  // namespace calibatt
