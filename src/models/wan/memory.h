#pragma once

#include "model_settings/wan_config.h"
#include "models/video_model.h"
#include "models/wan/vae_config.h"

namespace calibatt {

/// Bytes of the transformer's activations in a forward of so many tokens, and of both prompts (wan_prompt_bytes); of
/// one rank, where arithmetic.num_ranks share the forward.
uint64_t wan_activation_bytes(const WanTransformerConfig& config, int64_t num_tokens, int prompt_tokens,
                              const Arithmetic& arithmetic);

/// Bytes of a prompt's keys and values in all layers, and of what is made of few of them (WanPrompt::projected_values):
/// of `rows` keys, which are a prompt's tokens and one for all padding.
uint64_t wan_prompt_bytes(const WanTransformerConfig& config, int rows, const Arithmetic& arithmetic);

/// Of a transformer whose blocks ranks share or the host keeps: bytes of all blocks' matrices as they are kept and as
/// they would be without 8 bits, and of a device's two buffers for blocks that come to it.
struct WanShardBytes {
  uint64_t blocks = 0, wide_blocks = 0, buffers = 0;
};
WanShardBytes wan_shard_bytes(const WanTransformerConfig& config, const Arithmetic& arithmetic);

/// About the bytes that decoding a video of this size takes beside the weights; of the first rank, where several share
/// it. dtype: of activations.
uint64_t wan_decoding_bytes(const WanVaeConfig& config, const VideoSize& size, DType dtype, int num_ranks = 1);

}  // namespace calibatt
