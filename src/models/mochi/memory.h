#pragma once

#include <cstdint>

#include "model_settings/mochi_config.h"
#include "models/video_model.h"

namespace calibatt {

/// Bytes of the transformer's activations in a forward of so many tokens of video and text, on one of its ranks.
uint64_t mochi_activation_bytes(const MochiTransformerConfig& config, int64_t num_tokens, int text_tokens,
                                const Arithmetic& arithmetic);

/// Of a transformer whose blocks the host keeps: bytes of all blocks' matrices, as they would be without 8 bits, and of
/// a device's two buffers for them.
struct MochiOffloadBytes {
  uint64_t blocks = 0, wide_blocks = 0, buffers = 0;
};
MochiOffloadBytes mochi_offload_bytes(const MochiTransformerConfig& config, const Arithmetic& arithmetic);

}  // namespace calibatt
