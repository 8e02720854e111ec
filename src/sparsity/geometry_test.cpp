#include "sparsity/geometry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <set>

#include "base/error.h"

namespace calibatt {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

AttentionGeometry grid(int frames, int height, int width, TokenOrder order = TokenOrder::raster(),
                       int text_tokens = 0) {
  AttentionGeometry geometry;
  geometry.frames = frames;
  geometry.height = height;
  geometry.width = width;
  geometry.order = order;
  geometry.text_tokens = text_tokens;
  return geometry;
}

// Frame, row and column extents of the tokens at positions [begin, end).
std::array<int, 3> extents(const AttentionGeometry& geometry, const std::vector<int32_t>& raster_of, int begin,
                           int end) {
  std::set<int> frames, rows, columns;
  for (int position = begin; position < end; ++position) {
    const int raster = raster_of[position];
    columns.insert(raster % geometry.width);
    rows.insert(raster / geometry.width % geometry.height);
    frames.insert(raster / geometry.width / geometry.height);
  }
  return {*frames.rbegin() - *frames.begin() + 1, *rows.rbegin() - *rows.begin() + 1,
          *columns.rbegin() - *columns.begin() + 1};
}

std::string refusal(const AttentionGeometry& geometry) {
  try {
    geometry.validate();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    return error.what();
  }
  return "";
}

TEST(TokenOrder, SpellingRoundTrips) {
  EXPECT_EQ(TokenOrder::parse("raster"), TokenOrder::raster());
  EXPECT_EQ(TokenOrder::parse("tiles:16x2x3"), TokenOrder::tiles(16, 2, 3));
  EXPECT_EQ(TokenOrder::tiles(16, 2, 3).to_string(), "tiles:16x2x3");
  EXPECT_EQ(TokenOrder::raster().to_string(), "raster");
}

TEST(TokenOrder, OtherSpellingsAreRefusedWithTheRemedy) {
  for (const char* text : {"", "tiles", "tiles:", "tiles:1x2", "tiles:1x2x3x4", "tiles:0x2x2", "tiles:-1x2x2",
                           "tiles:1x2x3 ", "tiles:99999999999x1x1", "Raster", "tiles:axbxc"}) {
    try {
      TokenOrder::parse(text);
      ADD_FAILURE() << "'" << text << "' was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      EXPECT_THAT(error.what(), HasSubstr("tiles:16x2x2"));
    }
  }
}

TEST(AttentionGeometry, RasterOrderIsTheIdentity) {
  const std::vector<int32_t> raster_of = grid(2, 3, 5, TokenOrder::raster(), 4).raster_of_position();
  std::vector<int32_t> identity(34);
  std::iota(identity.begin(), identity.end(), 0);
  EXPECT_EQ(raster_of, identity);
}

TEST(AttentionGeometry, TilesByHand) {
  // Two tiles of 1×2×2 side by side, in each of two frames.
  EXPECT_THAT(grid(2, 2, 4, TokenOrder::tiles(1, 2, 2)).raster_of_position(),
              ElementsAre(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
}

TEST(AttentionGeometry, EveryOrderOfEveryGridIsAPermutationThatLeavesTextInPlace) {
  const int grids[][3] = {{3, 5, 7}, {21, 30, 52}, {17, 16, 16}, {1, 1, 1},
                          {1, 9, 1}, {5, 1, 13},   {2, 3, 4},    {16, 16, 16}};
  const int tiles[][3] = {{16, 2, 2}, {1, 8, 8}, {4, 4, 4}, {2, 3, 5}, {1, 1, 1}, {100, 100, 100}, {3, 1, 7}};
  for (const auto& g : grids) {
    for (const auto& t : tiles) {
      const AttentionGeometry geometry = grid(g[0], g[1], g[2], TokenOrder::tiles(t[0], t[1], t[2]), 11);
      SCOPED_TRACE(geometry.to_string());
      std::vector<int32_t> raster_of = geometry.raster_of_position();
      ASSERT_EQ(static_cast<int>(raster_of.size()), geometry.num_tokens());
      for (int position = geometry.num_video_tokens(); position < geometry.num_tokens(); ++position) {
        ASSERT_EQ(raster_of[position], position);
      }
      std::sort(raster_of.begin(), raster_of.end());
      for (int i = 0; i < geometry.num_tokens(); ++i) ASSERT_EQ(raster_of[i], i);
    }
  }
}

TEST(AttentionGeometry, BlocksStayCompactWithARemainderFrame) {
  const AttentionGeometry geometry = grid(17, 16, 16, TokenOrder::tiles(16, 2, 2));
  const std::vector<int32_t> raster_of = geometry.raster_of_position();
  ASSERT_EQ(geometry.num_key_blocks(), 68);
  for (int block = 0; block < 64; ++block) {
    EXPECT_EQ(extents(geometry, raster_of, block * 64, block * 64 + 64), (std::array{16, 2, 2})) << "block " << block;
    EXPECT_GE(raster_of[block * 64], 256) << "whole tiles leave frame 0 alone";
  }
  for (int block = 64; block < 68; ++block) {
    EXPECT_EQ(extents(geometry, raster_of, block * 64, block * 64 + 64), (std::array{1, 8, 8})) << "block " << block;
    EXPECT_LT(raster_of[block * 64], 256) << "the leftover is frame 0";
  }
}

TEST(AttentionGeometry, LeftoverRowsAndColumnsAreTiledAlongTheirSlab) {
  // 5 rows of tiles 2: row 4 is left over, tiled 16×1×4; 5 columns: column 4 of the first four rows, tiled 16×4×1.
  const AttentionGeometry geometry = grid(16, 5, 5, TokenOrder::tiles(16, 2, 2));
  const std::vector<int32_t> raster_of = geometry.raster_of_position();
  EXPECT_EQ(extents(geometry, raster_of, 3 * 64, 4 * 64), (std::array{16, 2, 2}));
  EXPECT_EQ(extents(geometry, raster_of, 4 * 64, 5 * 64), (std::array{16, 1, 4}));
  EXPECT_EQ(raster_of[4 * 64], 20);
  EXPECT_EQ(extents(geometry, raster_of, 5 * 64, 5 * 64 + 16), (std::array{16, 1, 1}));
  EXPECT_EQ(extents(geometry, raster_of, 5 * 64 + 16, 6 * 64 + 16), (std::array{16, 4, 1}));
}

TEST(AttentionGeometry, BlockSizesCoverTheTokensExactly) {
  AttentionGeometry geometry = grid(3, 5, 7, TokenOrder::raster(), 2);  // 107 tokens
  geometry.block_q = 50;
  geometry.block_k = 107;
  EXPECT_EQ(geometry.num_query_blocks(), 3);
  EXPECT_EQ(geometry.query_block_size(0), 50);
  EXPECT_EQ(geometry.query_block_size(2), 7);
  EXPECT_EQ(geometry.num_key_blocks(), 1);
  EXPECT_EQ(geometry.key_block_size(0), 107);
  EXPECT_THROW(geometry.key_block_size(1), std::logic_error);
}

TEST(AttentionGeometry, NumbersOutOfRangeAreRefusedByName) {
  const AttentionGeometry good = grid(17, 16, 16, TokenOrder::tiles(16, 2, 2));
  EXPECT_EQ(refusal(good), "");
  const auto changed = [&](auto&& change) {
    AttentionGeometry geometry = good;
    change(geometry);
    return refusal(geometry);
  };
  EXPECT_THAT(changed([](auto& g) { g.frames = 0; }), HasSubstr("latent frames must be at least 1, not 0"));
  EXPECT_THAT(changed([](auto& g) { g.height = -3; }), HasSubstr("latent height"));
  EXPECT_THAT(changed([](auto& g) { g.width = 0; }), HasSubstr("latent width"));
  EXPECT_THAT(changed([](auto& g) { g.text_tokens = -1; }), HasSubstr("text tokens"));
  EXPECT_THAT(changed([](auto& g) { g.heads = 0; }), HasSubstr("heads"));
  EXPECT_THAT(changed([](auto& g) { g.head_dim = 0; }), HasSubstr("head dimension"));
  EXPECT_THAT(changed([](auto& g) { g.block_q = 0; }), HasSubstr("query block size"));
  EXPECT_THAT(changed([](auto& g) { g.block_k = 1 << 30; }), HasSubstr("limit"));
  EXPECT_THAT(changed([](auto& g) { g.order.tile_height = 0; }), HasSubstr("tile's height"));
  EXPECT_THAT(changed([](auto& g) { g.order.tile_frames = 1 << 30; }), HasSubstr("tile side"));
  EXPECT_THAT(changed([](auto& g) { g.frames = g.height = g.width = 2147483647; }), HasSubstr("number of tokens"));
  EXPECT_THAT(changed([](auto& g) { g.text_tokens = 2147483647; }), HasSubstr("number of tokens"));
}

TEST(AttentionGeometry, SaysWhatItIs) {
  AttentionGeometry geometry = grid(17, 16, 16, TokenOrder::tiles(16, 2, 2));
  geometry.heads = 4;
  EXPECT_EQ(geometry.to_string(), "17×16×16 tokens, 4 heads × 64, blocks 64×64, tiles:16x2x2");
}

TEST(AnchorRows, ByHandInRasterOrder) {
  // Rows 0…4 of one frame, two columns, k = 2: anchors are rows 1 and 3; row 2 is equally near to both and takes the
  // upper.
  const AnchorRows anchors = make_anchor_rows(grid(1, 5, 2), 2);
  EXPECT_THAT(anchors.query_tokens, ElementsAre(2, 3, 6, 7));
  EXPECT_THAT(anchors.source_of, ElementsAre(0, 1, 0, 1, 0, 1, 2, 3, 2, 3));
  EXPECT_EQ(anchors.rows_per_frame, 2);
  EXPECT_EQ(anchors.num_query_blocks(3), 2);
}

TEST(AnchorRows, EveryTokenCopiesFromTheNearestAnchorOfItsFrameAndColumn) {
  for (const TokenOrder& order : {TokenOrder::raster(), TokenOrder::tiles(2, 3, 2)}) {
    for (int k = 1; k <= 7; ++k) {
      const AttentionGeometry geometry = grid(3, 7, 5, order, 4);
      const AnchorRows anchors = make_anchor_rows(geometry, k);
      const std::vector<int32_t> raster_of = geometry.raster_of_position();
      ASSERT_EQ(static_cast<int>(anchors.query_tokens.size()), 3 * k * 5 + 4);
      ASSERT_TRUE(std::is_sorted(anchors.query_tokens.begin(), anchors.query_tokens.end()));
      std::set<int> rows;
      for (const int token : anchors.query_tokens) {
        if (raster_of[token] < geometry.num_video_tokens()) rows.insert(raster_of[token] / 5 % 7);
      }
      ASSERT_EQ(static_cast<int>(rows.size()), k);
      for (int token = 0; token < geometry.num_tokens(); ++token) {
        const int source = anchors.query_tokens.at(anchors.source_of.at(token));
        const int to = raster_of[token], from = raster_of[source];
        if (to >= geometry.num_video_tokens()) {
          EXPECT_EQ(source, token);
          continue;
        }
        EXPECT_EQ(to % 5, from % 5);
        EXPECT_EQ(to / 35, from / 35);
        const int row = to / 5 % 7, anchor = from / 5 % 7;
        for (const int other : rows) EXPECT_LE(std::abs(anchor - row), std::abs(other - row));
      }
    }
  }
}

TEST(AnchorRows, CountOutOfRangeIsRefused) {
  EXPECT_THROW(make_anchor_rows(grid(1, 5, 2), 0), Error);
  EXPECT_THROW(make_anchor_rows(grid(1, 5, 2), 6), Error);
}

}  // namespace
}  // namespace calibatt
