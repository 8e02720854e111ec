#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "model_settings/mochi_config.h"
#include "models/block_formats.h"

namespace calibatt {

/// The linear layers of one stream in Mochi's blocks, stacked as they are computed.
struct MochiLayers {
  std::vector<std::string> modulation, qkv, output, feed_forward_in, feed_forward_out;

  static const MochiLayers& video();
  /// The last block's has a modulation by another name, and nothing behind qkv.
  static const MochiLayers& text();
  static const MochiLayers& last_text();

  /// Bytes of a block's matrices, as they are streamed.
  static size_t block_bytes(const MochiTransformerConfig& config, const BlockFormats& formats, int block);
  static BlockFormats formats(const MochiTransformerConfig& config, DType dtype, const ModelLoadOptions& options);
};

}  // namespace calibatt
