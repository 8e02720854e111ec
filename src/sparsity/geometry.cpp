#include "sparsity/geometry.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <string_view>

#include "base/error.h"

namespace calibatt {
namespace {

// Far above any video model (Wan 2.1 at 720p: 75,600), and low enough that no product of two such numbers overflows 64
// bits.
constexpr int64_t kMaxTokens = int64_t{1} << 24;

struct Box {
  int frame = 0, row = 0, column = 0;  // first token
  int frames = 0, rows = 0, columns = 0;
  bool empty() const { return frames == 0 || rows == 0 || columns == 0; }
};

// Walks the boxes of a tiled grid and writes down the raster index of each token in turn.
class TileWalker {
 public:
  TileWalker(const AttentionGeometry& geometry, std::vector<int32_t>& raster_of)
      : height_(geometry.height),
        width_(geometry.width),
        volume_(int64_t{geometry.order.tile_frames} * geometry.order.tile_height * geometry.order.tile_width),
        raster_of_(raster_of) {}

  // The part of the box that whole tiles fill comes first, so that its tiles stay aligned with blocks of their volume
  // whatever the rest is; then the three slabs that are left over, each with a tile of its own.
  void walk(const Box& box, Box tile) {
    if (box.empty()) return;
    fit(box, tile);
    const int rest_frames = box.frames % tile.frames;
    const int rest_rows = box.rows % tile.rows;
    const int rest_columns = box.columns % tile.columns;
    const Box whole{box.frame + rest_frames,   box.row, box.column, box.frames - rest_frames, box.rows - rest_rows,
                    box.columns - rest_columns};
    for (int frame = 0; frame < whole.frames; frame += tile.frames) {
      for (int row = 0; row < whole.rows; row += tile.rows) {
        for (int column = 0; column < whole.columns; column += tile.columns) {
          append({whole.frame + frame, whole.row + row, whole.column + column, tile.frames, tile.rows, tile.columns});
        }
      }
    }
    walk({box.frame, box.row, box.column, rest_frames, box.rows, box.columns}, tile);
    walk({whole.frame, box.row + whole.rows, box.column, whole.frames, rest_rows, box.columns}, tile);
    walk({whole.frame, box.row, box.column + whole.columns, whole.frames, whole.rows, rest_columns}, tile);
  }

 private:
  // Cuts the tile to the box and doubles what is left (the shorter spatial side first, frames last) while the volume
  // allows.
  void fit(const Box& box, Box& tile) const {
    tile.frames = std::min(tile.frames, box.frames);
    tile.rows = std::min(tile.rows, box.rows);
    tile.columns = std::min(tile.columns, box.columns);
    const auto can_double = [&](int side, int limit) {
      return side * 2 <= limit && int64_t{tile.frames} * tile.rows * tile.columns * 2 <= volume_;
    };
    while (true) {
      const bool rows = can_double(tile.rows, box.rows), columns = can_double(tile.columns, box.columns);
      if (rows && (tile.rows <= tile.columns || !columns)) {
        tile.rows *= 2;
      } else if (columns) {
        tile.columns *= 2;
      } else if (can_double(tile.frames, box.frames)) {
        tile.frames *= 2;
      } else {
        return;
      }
    }
  }

  void append(const Box& tile) {
    for (int frame = tile.frame; frame < tile.frame + tile.frames; ++frame) {
      for (int row = tile.row; row < tile.row + tile.rows; ++row) {
        for (int column = tile.column; column < tile.column + tile.columns; ++column) {
          raster_of_.push_back((frame * height_ + row) * width_ + column);
        }
      }
    }
  }

  int height_, width_;
  int64_t volume_;
  std::vector<int32_t>& raster_of_;
};

void require_positive(int value, const char* name) {
  if (value < 1)
    throw Error(ErrorKind::kUsage, std::string(name) + " must be at least 1, not " + std::to_string(value));
}

int block_size_at(int block, int num_blocks, int block_size, int num_tokens) {
  CALIBATT_ASSERT(block >= 0 && block < num_blocks);
  return std::min(block_size, num_tokens - block * block_size);
}

}  // namespace

TokenOrder TokenOrder::parse(const std::string& text) {
  if (text == "raster") return raster();
  constexpr std::string_view kPrefix = "tiles:";
  const auto refuse = [&] {
    return Error(ErrorKind::kUsage,
                 "token order '" + text +
                     "' is not known: use 'raster' or 'tiles:FxHxW' (tokens per tile along frames, rows and "
                     "columns, for example tiles:16x2x2)");
  };
  if (text.rfind(kPrefix, 0) != 0) throw refuse();
  int sides[3];
  const char* at = text.data() + kPrefix.size();
  const char* const end = text.data() + text.size();
  for (int axis = 0; axis < 3; ++axis) {
    if (axis > 0 && (at == end || *at++ != 'x')) throw refuse();
    const auto [next, problem] = std::from_chars(at, end, sides[axis]);
    if (problem != std::errc() || sides[axis] < 1) throw refuse();
    at = next;
  }
  if (at != end) throw refuse();
  return tiles(sides[0], sides[1], sides[2]);
}

std::string TokenOrder::to_string() const {
  if (kind == Kind::kRaster) return "raster";
  return "tiles:" + std::to_string(tile_frames) + "x" + std::to_string(tile_height) + "x" + std::to_string(tile_width);
}

int AttentionGeometry::query_block_size(int query_block) const {
  return block_size_at(query_block, num_query_blocks(), block_q, num_tokens());
}

int AttentionGeometry::key_block_size(int key_block) const {
  return block_size_at(key_block, num_key_blocks(), block_k, num_tokens());
}

std::vector<int32_t> AttentionGeometry::raster_of_position() const {
  validate();
  std::vector<int32_t> raster_of;
  raster_of.reserve(static_cast<size_t>(num_tokens()));
  if (order.kind == TokenOrder::Kind::kTiles) {
    const Box tile{0, 0, 0, order.tile_frames, order.tile_height, order.tile_width};
    TileWalker(*this, raster_of).walk({0, 0, 0, frames, height, width}, tile);
  }
  // Raster order, or the text tokens behind the tiled video tokens: each in its own place.
  for (int position = static_cast<int>(raster_of.size()); position < num_tokens(); ++position)
    raster_of.push_back(position);
  return raster_of;
}

void AttentionGeometry::validate() const {
  require_positive(frames, "the number of latent frames");
  require_positive(height, "the latent height");
  require_positive(width, "the latent width");
  require_positive(heads, "the number of heads");
  require_positive(head_dim, "the head dimension");
  require_positive(block_q, "the query block size");
  require_positive(block_k, "the key block size");
  if (text_tokens < 0) {
    throw Error(ErrorKind::kUsage,
                "the number of text tokens must not be negative, as " + std::to_string(text_tokens) + " is");
  }
  if (order.kind == TokenOrder::Kind::kTiles) {
    require_positive(order.tile_frames, "the tile's number of frames");
    require_positive(order.tile_height, "the tile's height");
    require_positive(order.tile_width, "the tile's width");
  } else if (order.kind != TokenOrder::Kind::kRaster) {
    throw Error(ErrorKind::kUsage, "the token order is neither raster nor tiles");
  }
  const auto too_many = [](const char* what, int64_t value) {
    return Error(ErrorKind::kUsage, std::string(what) + " " + std::to_string(value) + " is above the limit of " +
                                        std::to_string(kMaxTokens));
  };
  int64_t tokens = 1;
  for (const int side : {frames, height, width}) {
    tokens *= side;
    if (tokens > kMaxTokens) throw too_many("the number of tokens, at least", tokens);
  }
  if (tokens + text_tokens > kMaxTokens) throw too_many("the number of tokens", tokens + text_tokens);
  for (const int number : {heads, head_dim, block_q, block_k}) {
    if (number > kMaxTokens) throw too_many("a head count, head dimension or block size of", number);
  }
  if (order.kind == TokenOrder::Kind::kTiles) {
    for (const int side : {order.tile_frames, order.tile_height, order.tile_width}) {
      if (side > (1 << 20)) throw too_many("a tile side of", side);
    }
  }
}

std::string AttentionGeometry::to_string() const {
  const auto number = [](int value) { return std::to_string(value); };
  return number(frames) + "×" + number(height) + "×" + number(width) + " tokens, " +
         (text_tokens > 0 ? number(text_tokens) + " text tokens, " : "") + number(heads) + " heads × " +
         number(head_dim) + ", blocks " + number(block_q) + "×" + number(block_k) + ", " + order.to_string();
}

AnchorRows make_anchor_rows(const AttentionGeometry& geometry, int rows_per_frame) {
  geometry.validate();
  if (rows_per_frame < 1 || rows_per_frame > geometry.height) {
    throw Error(ErrorKind::kUsage, "anchor rows per frame must be between 1 and the latent height " +
                                       std::to_string(geometry.height) + ", not " + std::to_string(rows_per_frame));
  }
  // Row i of k stands in the middle of the i-th of k equal parts of the frame.
  std::vector<int> anchors(static_cast<size_t>(rows_per_frame));
  for (int i = 0; i < rows_per_frame; ++i) {
    anchors[i] = static_cast<int>((2 * int64_t{i} + 1) * geometry.height / (2 * int64_t{rows_per_frame}));
  }
  std::vector<int> nearest_anchor(static_cast<size_t>(geometry.height));
  for (int row = 0, i = 0; row < geometry.height; ++row) {
    while (i + 1 < rows_per_frame && std::abs(anchors[i + 1] - row) < std::abs(anchors[i] - row)) ++i;
    nearest_anchor[row] = anchors[i];
  }

  AnchorRows result;
  result.rows_per_frame = rows_per_frame;
  const std::vector<int32_t> raster_of = geometry.raster_of_position();
  const int num_video_tokens = geometry.num_video_tokens();
  const auto anchor_of = [&](int raster) {
    if (raster >= num_video_tokens) return raster;  // text
    const int column = raster % geometry.width, line = raster / geometry.width;
    const int row = line % geometry.height;
    return (line - row + nearest_anchor[row]) * geometry.width + column;
  };
  std::vector<int32_t> packed_index(raster_of.size(), -1);  // by raster index
  for (size_t position = 0; position < raster_of.size(); ++position) {
    const int raster = raster_of[position];
    if (anchor_of(raster) != raster) continue;
    packed_index[raster] = static_cast<int32_t>(result.query_tokens.size());
    result.query_tokens.push_back(static_cast<int32_t>(position));
  }
  result.source_of.reserve(raster_of.size());
  for (const int raster : raster_of) result.source_of.push_back(packed_index[anchor_of(raster)]);
  return result;
}

}  // namespace calibatt
