#pragma once

#include <string>
#include <vector>

#include "model_settings/wan_config.h"
#include "models/block_formats.h"

namespace calibatt {

/// The linear layers of Wan's blocks, stacked as they are computed.
struct WanLayers {
  inline static const std::vector<std::string> kQueryKeyValue{"attn1.to_q", "attn1.to_k", "attn1.to_v"},
      kOutput{"attn1.to_out.0"}, kCrossQuery{"attn2.to_q"}, kCrossOutput{"attn2.to_out.0"},
      kFeedForwardIn{"ffn.net.0.proj"}, kFeedForwardOut{"ffn.net.2"};
  /// Of a prompt and of a picture.
  inline static const std::vector<std::string> kCrossKeysValues{"attn2.to_k", "attn2.to_v"},
      kPictureKeysValues{"attn2.add_k_proj", "attn2.add_v_proj"};

  /// Of a block's matrices: those that every forward uses, and those of a prompt alone.
  struct BlockBytes {
    size_t forward, prompt;
  };
  static BlockBytes block_bytes(const WanTransformerConfig& config, const BlockFormats& formats, int block);

  static BlockFormats formats(const WanTransformerConfig& config, DType dtype, const ModelLoadOptions& options);
};

}  // namespace calibatt
