#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace calibatt {

/// The order in which a transformer's block stack sees its video tokens. Attention blocks are runs of consecutive
/// tokens of this order, so it decides which piece of the video a block is.
///   raster: frame, row, column.
///   tiles:  3-D tiles of the latent grid, one after another in raster order of tiles, raster inside a tile.
/// An axis that its tile does not divide leaves a remainder: at the front for frames (Wan's first latent frame stands
/// for one video frame and the others for four), at the end for rows and columns. Whole tiles come first in the order;
/// then the leftover slabs (of frames, of rows, of columns), each tiled again by the tile cut to the slab and doubled
/// along the other axes up to the same volume. So 17×16×16 in tiles of 16×2×2 leaves frame 0, which is tiled 1×8×8.
struct TokenOrder {
  enum class Kind : uint8_t { kRaster, kTiles };
  Kind kind = Kind::kRaster;
  int tile_frames = 0, tile_height = 0, tile_width = 0;  ///< kTiles only; tokens, each ≥ 1

  static TokenOrder raster() { return {}; }
  static TokenOrder tiles(int frames, int height, int width) { return {Kind::kTiles, frames, height, width}; }
  /// "raster" or "tiles:16x2x2" (frames × height × width); throws Error(kUsage).
  static TokenOrder parse(const std::string& text);
  std::string to_string() const;
  bool operator==(const TokenOrder&) const = default;
};

/// One self-attention problem: which token is where, and which block it is in. The only place that maps tokens to
/// blocks. Tokens are video tokens in `order`, followed by `text_tokens` (joint-attention models only). The last block
/// may be partial.
struct AttentionGeometry {
  int frames = 1, height = 1, width = 1;  ///< latent grid after patchify, tokens
  int text_tokens = 0;
  int heads = 1;
  int head_dim = 64;
  int block_q = 64, block_k = 64;  ///< tokens per query block and per key block
  TokenOrder order;

  int num_video_tokens() const { return frames * height * width; }
  int num_tokens() const { return num_video_tokens() + text_tokens; }
  int num_query_blocks() const { return (num_tokens() + block_q - 1) / block_q; }
  int num_key_blocks() const { return (num_tokens() + block_k - 1) / block_k; }
  int query_block_size(int query_block) const;  ///< tokens in this block: block_q, or less for the last
  int key_block_size(int key_block) const;

  /// raster_of[p] = raster index (frame, row, column) of the video token at position p of `order`; text tokens map to
  /// themselves. Size num_tokens(). Apply once before the block stack (x_ordered[p] = x[raster_of[p]]), invert once
  /// after it.
  std::vector<int32_t> raster_of_position() const;

  /// Throws Error(kUsage) when a number is out of range (naming it).
  void validate() const;
  bool operator==(const AttentionGeometry&) const = default;
  std::string to_string() const;  ///< "17×16×16 tokens, 4 heads × 64, blocks 64×64, tiles:16x2x2"
};

/// Spatial repetition: which tokens are computed as queries, and whose output every other token receives.
/// Token numbers are positions in the geometry's order.
struct AnchorRows {
  std::vector<int32_t> query_tokens;  ///< computed tokens, in the order in which they are packed into query blocks
  std::vector<int32_t> source_of;     ///< [num_tokens] index into query_tokens of the token whose output is copied
  int rows_per_frame = 0;             ///< k; 0 when the map was not made by make_anchor_rows

  int num_query_blocks(int block_q) const { return (static_cast<int>(query_tokens.size()) + block_q - 1) / block_q; }
};

/// k evenly spaced anchor rows per frame (a row: fixed frame and latent row, all columns); each other row copies,
/// column by column, from its nearest anchor row (the upper one when two are equally near). Text tokens are always
/// computed. Throws Error(kUsage) unless 1 ≤ rows_per_frame ≤ height.
AnchorRows make_anchor_rows(const AttentionGeometry& geometry, int rows_per_frame);

}  // namespace calibatt
