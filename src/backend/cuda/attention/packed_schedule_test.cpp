#include "backend/cuda/attention/packed_schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "base/error.h"

namespace calibatt::cuda {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

BlockIntervals random_intervals(int query_blocks, int key_blocks, uint32_t seed, double density) {
  std::mt19937 random(seed);
  std::bernoulli_distribution kept(density);
  BlockMask mask(query_blocks, key_blocks);
  for (int r = 0; r < query_blocks; ++r) {
    for (int c = 0; c < key_blocks; ++c) mask.set(r, c, kept(random));
    mask.set(r, static_cast<int>(random() % static_cast<uint32_t>(key_blocks)), true);
  }
  return BlockIntervals::from_mask(mask);
}

std::vector<std::pair<uint32_t, uint32_t>> ranges_of(const PackedSchedule& packed, const Tile& tile) {
  std::vector<std::pair<uint32_t, uint32_t>> ranges;
  for (uint32_t i = 0; i < tile.num_ranges; ++i) {
    const ChunkRange& range = packed.ranges.at(tile.first_range + i);
    ranges.emplace_back(range.begin, range.end);
  }
  return ranges;
}

const Tile& tile_of_row(const PackedSchedule& packed, uint32_t head, uint32_t row) {
  for (const Tile& tile : packed.tiles) {
    if (tile.head == head && tile.first_row <= row && row < tile.first_row + tile.num_rows) return tile;
  }
  throw std::out_of_range("no tile computes the row");
}

std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    return error.what();
  }
  return "nothing was thrown";
}

/// Everything the header promises, decoded again from the packed form and compared with the schedules.
class Represents {
 public:
  Represents(const PackedSchedule& packed, std::span<const HeadSchedule> heads, int num_queries, int num_keys,
             int block_q, int block_k)
      : packed_(packed),
        heads_(heads),
        num_queries_(static_cast<size_t>(num_queries)),
        num_chunks_(static_cast<uint32_t>((num_keys + kChunkKeys - 1) / kChunkKeys)),
        block_q_(static_cast<uint32_t>(block_q)),
        block_k_(static_cast<uint32_t>(block_k)) {}

  void expect() {
    uint32_t last_head = 0, last_length = ~0u;
    for (const Tile& tile : packed_.tiles) {
      ASSERT_LT(tile.head, heads_.size());
      ASSERT_GE(tile.head, last_head) << "tiles are ordered by head";
      if (tile.head != last_head) last_length = ~0u;
      ASSERT_LE(tile.num_chunks, last_length) << "longest first";
      last_head = tile.head;
      last_length = tile.num_chunks;
      ASSERT_NO_FATAL_FAILURE(expect_tile(tile));
    }
    for (uint32_t head = 0; head < heads_.size(); ++head) {
      const AnchorRows* anchors = heads_[head].anchors;
      EXPECT_EQ(rows_of_head_[head].size(), anchors ? anchors->query_tokens.size() : num_queries_) << "head " << head;
      if (anchors) {
        EXPECT_THAT(writes_of_head_[head], testing::Each(1)) << "head " << head;
      }
    }
    ASSERT_NO_FATAL_FAILURE(expect_wide_tiles());
  }

 private:
  /// Each half with rows is in one wide tile; those of a wide tile are of one head and follow one another.
  void expect_wide_tiles() {
    std::set<uint32_t> halves;
    uint32_t last_head = 0, last_length = ~0u;
    for (const WideTile& wide : packed_.wide_tiles) {
      uint32_t length = 0, next_row = ~0u;
      const uint32_t head = packed_.tiles.at(wide.halves[0] / 2).head;
      bool ended = false;
      for (const uint32_t half : wide.halves) {
        ended |= half == WideTile::kNone;
        if (ended) {
          ASSERT_EQ(half, WideTile::kNone) << "what is missing is missing at the end";
          continue;
        }
        const Tile& tile = packed_.tiles.at(half / 2);
        const uint32_t first = half % 2 * WideTile::kHalfRows;
        ASSERT_LT(first, tile.num_rows);
        ASSERT_TRUE(halves.insert(half).second) << "half computed twice";
        ASSERT_EQ(tile.head, head);
        ASSERT_TRUE(next_row == ~0u || tile.first_row + first == next_row) << "halves follow one another";
        next_row = tile.first_row + std::min<uint32_t>(tile.num_rows, first + WideTile::kHalfRows);
        length = std::max(length, tile.num_chunks);
      }
      ASSERT_GE(head, last_head) << "wide tiles are ordered by head";
      if (head != last_head) last_length = ~0u;
      ASSERT_LE(length, last_length) << "longest first";
      last_head = head;
      last_length = length;
    }
    size_t num_halves = 0;
    for (const Tile& tile : packed_.tiles) num_halves += tile.num_rows > WideTile::kHalfRows ? 2 : 1;
    EXPECT_EQ(halves.size(), num_halves);
  }

  void expect_tile(const Tile& tile) {
    const HeadSchedule& head = heads_[tile.head];
    ASSERT_GE(tile.num_rows, 1u);
    ASSERT_LE(tile.num_rows, static_cast<uint32_t>(kTileRows));
    uint32_t first_row = tile.first_row;
    ASSERT_EQ((tile.flags & Tile::kAnchors) != 0, head.anchors != nullptr);
    if (head.anchors) {
      while (packed_.anchor_tokens.at(first_row) != head.anchors->query_tokens[0]) --first_row;
      first_row = tile.first_row - first_row;  // now counted inside the head's anchors
      ASSERT_NO_FATAL_FAILURE(expect_anchors(tile, first_row));
    }
    for (uint32_t i = 0; i < tile.num_rows; ++i) {
      ASSERT_TRUE(rows_of_head_[tile.head].insert(first_row + i).second) << "row computed twice";
    }
    const uint32_t query_block = first_row / block_q_;
    if (head.intervals) {
      ASSERT_EQ((first_row + tile.num_rows - 1) / block_q_, query_block);
    }
    const BlockMask mask = head.intervals ? head.intervals->to_mask() : BlockMask();
    bool skips = false;
    ASSERT_NO_FATAL_FAILURE(expect_chunks(tile, head.intervals ? &mask : nullptr, query_block, skips));
    ASSERT_EQ((tile.flags & Tile::kSummaries) != 0, head.summarize_skipped && skips);
    if ((tile.flags & Tile::kSummaries) != 0) expect_kept_bits(tile, mask, query_block);
  }

  /// first_row: of the tile, among the head's anchors.
  void expect_anchors(const Tile& tile, uint32_t first_row) {
    const AnchorRows& anchors = *heads_[tile.head].anchors;
    auto& writes = writes_of_head_[tile.head];
    writes.resize(num_queries_);
    for (uint32_t i = 0; i < tile.num_rows; ++i) {
      const uint32_t row = tile.first_row + i;
      ASSERT_EQ(packed_.anchor_tokens.at(row), anchors.query_tokens.at(first_row + i));
      for (uint32_t d = packed_.destination_offsets.at(row); d < packed_.destination_offsets.at(row + 1); ++d) {
        const int32_t token = packed_.destinations.at(d);
        ++writes.at(static_cast<size_t>(token));
        ASSERT_EQ(anchors.source_of[static_cast<size_t>(token)], static_cast<int32_t>(first_row + i));
      }
    }
  }

  /// mask: null: every key block is kept.
  void expect_chunks(const Tile& tile, const BlockMask* mask, uint32_t query_block, bool& skips) {
    std::set<uint32_t> chunks;
    uint32_t last_end = 0;
    for (const auto& [begin, end] : ranges_of(packed_, tile)) {
      ASSERT_LT(begin, end);
      ASSERT_TRUE(chunks.empty() || begin > last_end) << "ranges rise and do not touch";
      for (uint32_t chunk = begin; chunk < end; ++chunk) chunks.insert(chunk);
      last_end = end;
    }
    ASSERT_EQ(chunks.size(), tile.num_chunks);
    for (uint32_t chunk = 0; chunk < num_chunks_; ++chunk) {
      const auto key_block = static_cast<int>(chunk * kChunkKeys / block_k_);
      const bool kept = mask == nullptr || mask->kept(static_cast<int>(query_block), key_block);
      skips |= !kept;
      ASSERT_EQ(chunks.contains(chunk), kept) << "chunk " << chunk;
    }
  }

  void expect_kept_bits(const Tile& tile, const BlockMask& mask, uint32_t query_block) {
    const auto key_blocks = static_cast<uint32_t>(mask.num_key_blocks());
    const uint32_t whole_chunks = (key_blocks + kChunkKeys - 1) / kChunkKeys;
    for (uint32_t c = 0; c < whole_chunks * kChunkKeys; ++c) {
      const bool bit = packed_.kept_bits.at(tile.kept_bits + c / 32) >> (c % 32) & 1;
      if (c < key_blocks) {
        ASSERT_EQ(bit, mask.kept(static_cast<int>(query_block), static_cast<int>(c))) << "key block " << c;
      } else if (c < (key_blocks + 31) / 32 * 32) {
        ASSERT_TRUE(bit) << "behind the last key block";
      }
    }
  }

  const PackedSchedule& packed_;
  std::span<const HeadSchedule> heads_;
  size_t num_queries_;
  uint32_t num_chunks_, block_q_, block_k_;
  std::map<uint32_t, std::set<uint32_t>> rows_of_head_;
  std::map<uint32_t, std::vector<int>> writes_of_head_;
};

void expect_represents(const PackedSchedule& packed, std::span<const HeadSchedule> heads, int num_queries, int num_keys,
                       int block_q, int block_k) {
  Represents(packed, heads, num_queries, num_keys, block_q, block_k).expect();
}

AnchorRows every_third(int num_tokens) {
  AnchorRows anchors;
  for (int token = num_tokens - 1; token >= 0; token -= 3) anchors.query_tokens.push_back(token);
  for (int token = 0; token < num_tokens; ++token) {
    anchors.source_of.push_back(token * 7 % static_cast<int>(anchors.query_tokens.size()));
  }
  return anchors;
}

TEST(PackedSchedule, LongestTilesOfAHeadComeFirstAndEqualOnesKeepTheirOrder) {
  const BlockIntervals intervals(4, {0, 1, 3, 4, 5}, {{1, 2}, {0, 1}, {2, 4}, {0, 3}, {3, 4}});
  const HeadSchedule heads[] = {{.intervals = &intervals}, {.intervals = &intervals}};
  const PackedSchedule packed = pack_schedule(heads, 512, 512, 128, 128);
  std::vector<std::pair<uint32_t, uint32_t>> order;
  for (const Tile& tile : packed.tiles) order.emplace_back(tile.head, tile.first_row / 128);
  using Pair = std::pair<uint32_t, uint32_t>;
  EXPECT_THAT(order, ElementsAre(Pair(0, 1), Pair(0, 2), Pair(0, 0), Pair(0, 3), Pair(1, 1), Pair(1, 2), Pair(1, 0),
                                 Pair(1, 3)));
  EXPECT_THAT(ranges_of(packed, packed.tiles[0]), ElementsAre(Pair(0, 2), Pair(4, 8)));
  EXPECT_EQ(packed.tiles[0].num_chunks, 6u);
  EXPECT_EQ(packed.ranges.size(), 5u) << "two heads with the same intervals share their ranges";
}

TEST(PackedSchedule, NeighbouringBlocksAreOneRange) {
  BlockMask mask(1, 5);
  for (const int block : {0, 1, 3, 4}) mask.set(0, block, true);
  const BlockIntervals intervals = BlockIntervals::from_mask(mask);
  const HeadSchedule head{.intervals = &intervals};
  const PackedSchedule packed = pack_schedule({&head, 1}, 64, 5 * 192, 64, 192);
  using Pair = std::pair<uint32_t, uint32_t>;
  EXPECT_THAT(ranges_of(packed, packed.tiles[0]), ElementsAre(Pair(0, 6), Pair(9, 15)));
}

TEST(PackedSchedule, TheLastBlockEndsWithTheLastChunk) {
  // 130 keys in blocks of 128: the second block is one chunk of two tokens, not two chunks.
  const BlockIntervals intervals(2, {0, 1, 2}, {{1, 2}, {0, 2}});
  const HeadSchedule head{.intervals = &intervals};
  const PackedSchedule packed = pack_schedule({&head, 1}, 65, 130, 64, 128);
  using Pair = std::pair<uint32_t, uint32_t>;
  EXPECT_THAT(ranges_of(packed, tile_of_row(packed, 0, 0)), ElementsAre(Pair(2, 3)));
  EXPECT_THAT(ranges_of(packed, tile_of_row(packed, 0, 64)), ElementsAre(Pair(0, 3)));
  EXPECT_EQ(tile_of_row(packed, 0, 64).num_rows, 1u);
}

TEST(PackedSchedule, QueryBlocksLongerThanATileAreCut) {
  const BlockIntervals intervals(2, {0, 1, 2}, {{0, 1}, {1, 2}});
  const HeadSchedule head{.intervals = &intervals};
  const PackedSchedule packed = pack_schedule({&head, 1}, 256 + 130, 128, 256, 64);
  std::vector<std::pair<uint32_t, uint32_t>> rows;
  for (const Tile& tile : packed.tiles) rows.emplace_back(tile.first_row, tile.num_rows);
  using Pair = std::pair<uint32_t, uint32_t>;
  EXPECT_THAT(rows, ElementsAre(Pair(0, 128), Pair(128, 128), Pair(256, 128), Pair(384, 2)));
  EXPECT_EQ(packed.tiles[0].first_range, packed.tiles[1].first_range);
  EXPECT_NE(packed.tiles[1].first_range, packed.tiles[2].first_range);
}

TEST(PackedSchedule, DenseHeadsAmongPlannedOnesTakeAllKeysInWholeTiles) {
  const BlockIntervals intervals = random_intervals(10, 10, 1, 0.3);
  const HeadSchedule heads[] = {{}, {.intervals = &intervals}, {}};
  const PackedSchedule packed = pack_schedule(heads, 600, 610, 64, 64);
  expect_represents(packed, heads, 600, 610, 64, 64);
  const Tile& tile = tile_of_row(packed, 2, 599);
  EXPECT_EQ(tile.num_rows, 600u % 128);
  using Pair = std::pair<uint32_t, uint32_t>;
  EXPECT_THAT(ranges_of(packed, tile), ElementsAre(Pair(0, 10)));
}

TEST(PackedSchedule, WideTilesAreThreeNeighbouringHalves) {
  // Rows of 128, 128 and 44; the second block sees the most.
  const BlockIntervals intervals(3, {0, 1, 3, 4}, {{0, 1}, {0, 1}, {2, 3}, {0, 1}});
  const HeadSchedule heads[] = {{}, {.intervals = &intervals}};
  const PackedSchedule packed = pack_schedule(heads, 300, 384, 128, 128);
  std::vector<std::pair<uint32_t, uint32_t>> rows;  // of each half: head, first row
  for (const WideTile& wide : packed.wide_tiles) {
    for (const uint32_t half : wide.halves) {
      if (half == WideTile::kNone) continue;
      const Tile& tile = packed.tiles.at(half / 2);
      rows.emplace_back(tile.head, tile.first_row + half % 2 * WideTile::kHalfRows);
    }
  }
  using Pair = std::pair<uint32_t, uint32_t>;
  EXPECT_THAT(rows, ElementsAre(Pair(0, 0), Pair(0, 64), Pair(0, 128), Pair(0, 192), Pair(0, 256), Pair(1, 0),
                                Pair(1, 64), Pair(1, 128), Pair(1, 192), Pair(1, 256)));
  EXPECT_EQ(packed.wide_tiles.at(3).halves[2], WideTile::kNone);
  // Of the first of each head: 3 · 6 chunks, which are 6; 2, 2 and 4, which are 4.
  EXPECT_EQ(packed.half_chunks, 26);
  EXPECT_EQ(packed.wide_chunks, 10);
  EXPECT_FLOAT_EQ(packed.at(nullptr).sharing, 2.6f);
}

TEST(PackedSchedule, AnchorsNameTheirTokensAndDestinations) {
  const AnchorRows first{{4, 1}, {1, 1, 0, 0, 0}, 0}, second{{2}, {0, 0, 0, 0, 0}, 0};
  const HeadSchedule heads[] = {{.anchors = &first}, {.anchors = &second}, {.anchors = &first}};
  const PackedSchedule packed = pack_schedule(heads, 5, 100, 64, 64);
  EXPECT_THAT(packed.anchor_tokens, ElementsAre(4, 1, 2));
  EXPECT_THAT(packed.destination_offsets, ElementsAre(0, 3, 5, 10));
  EXPECT_THAT(packed.destinations, ElementsAre(2, 3, 4, 0, 1, 0, 1, 2, 3, 4));
  ASSERT_EQ(packed.tiles.size(), 3u);
  EXPECT_EQ(packed.tiles[1].first_row, 2u);
  EXPECT_EQ(packed.tiles[2].first_row, 0u) << "heads with the same anchors share them";
  EXPECT_EQ(packed.tiles[2].num_rows, 2u);
}

TEST(PackedSchedule, AnAnchorNobodyCopiesHasNoDestination) {
  const AnchorRows anchors{{0, 1, 2}, {0, 2, 2}, 0};
  const HeadSchedule head{.anchors = &anchors};
  EXPECT_THAT(pack_schedule({&head, 1}, 3, 3, 64, 64).destination_offsets, ElementsAre(0, 1, 1, 3));
}

TEST(PackedSchedule, KeptBitsBelongToQueryBlocksThatSkip) {
  // 33 key blocks: two words per query block. The second query block keeps everything.
  const BlockIntervals intervals(33, {0, 2, 3}, {{0, 1}, {31, 33}, {0, 33}});
  const HeadSchedule heads[] = {{.intervals = &intervals}, {.intervals = &intervals, .summarize_skipped = true}};
  const PackedSchedule packed = pack_schedule(heads, 128, 33 * 64, 64, 64);
  EXPECT_TRUE(packed.has_summaries());
  EXPECT_EQ(tile_of_row(packed, 0, 0).flags, 0u);
  EXPECT_EQ(tile_of_row(packed, 1, 64).flags, 0u);
  const Tile& tile = tile_of_row(packed, 1, 0);
  EXPECT_EQ(tile.flags, Tile::kSummaries);
  EXPECT_EQ(packed.kept_bits.at(tile.kept_bits), 0x80000001u);
  EXPECT_EQ(packed.kept_bits.at(tile.kept_bits + 1), 0xffffffffu);
  EXPECT_EQ(packed.kept_bits.size(), 4u + kChunkKeys / 32) << "a chunk of ones ends the array";
  EXPECT_EQ(packed.kept_bits.back(), 0xffffffffu);
  EXPECT_FALSE(pack_schedule({heads, 1}, 128, 33 * 64, 64, 64).has_summaries());
}

TEST(PackedSchedule, RepresentsMixedSchedulesOfManySizes) {
  for (const auto& [num_queries, num_keys, block_q, block_k] :
       {std::tuple{1, 1, 128, 128}, std::tuple{127, 129, 128, 64}, std::tuple{1000, 1000, 64, 64},
        std::tuple{1000, 3000, 128, 128}, std::tuple{700, 450, 256, 64}, std::tuple{500, 5000, 100, 192},
        std::tuple{300, 70, 50, 64}}) {
    SCOPED_TRACE(testing::Message() << num_queries << " x " << num_keys << ", blocks " << block_q << " x " << block_k);
    const AnchorRows anchors = every_third(num_queries);
    const int key_blocks = (num_keys + block_k - 1) / block_k;
    const int query_blocks = (num_queries + block_q - 1) / block_q;
    const BlockIntervals planned = random_intervals(query_blocks, key_blocks, 2, 0.3);
    const BlockIntervals anchored = random_intervals(anchors.num_query_blocks(block_q), key_blocks, 3, 0.6);
    const HeadSchedule heads[] = {{},
                                  {.intervals = &planned},
                                  {.intervals = &planned, .summarize_skipped = true},
                                  {.anchors = &anchors},
                                  {.intervals = &anchored, .summarize_skipped = true, .anchors = &anchors}};
    EXPECT_TRUE(needs_schedule(heads));
    const PackedSchedule packed = pack_schedule(heads, num_queries, num_keys, block_q, block_k);
    expect_represents(packed, heads, num_queries, num_keys, block_q, block_k);

    // The image that goes to the device says the same as the vectors.
    std::vector<Tile> storage(packed.size_bytes() / sizeof(Tile) + 1);
    const auto image = std::as_writable_bytes(std::span(storage)).first(packed.size_bytes());
    packed.write_image(image);
    const DeviceSchedule device = packed.at(image.data());
    ASSERT_EQ(device.num_tiles, packed.tiles.size());
    EXPECT_TRUE(std::ranges::equal(std::as_bytes(std::span(device.tiles, device.num_tiles)),
                                   std::as_bytes(std::span(packed.tiles))));
    ASSERT_EQ(device.num_wide_tiles, packed.wide_tiles.size());
    EXPECT_EQ(device.wide_tiles[0].halves[0], packed.wide_tiles[0].halves[0]);
    EXPECT_EQ(device.ranges[packed.ranges.size() - 1].end, packed.ranges.back().end);
    EXPECT_EQ(device.kept_bits != nullptr, packed.has_summaries());
    EXPECT_TRUE(std::equal(packed.anchor_tokens.begin(), packed.anchor_tokens.end(), device.anchor_tokens));
    EXPECT_TRUE(
        std::equal(packed.destination_offsets.begin(), packed.destination_offsets.end(), device.destination_offsets));
    EXPECT_TRUE(std::equal(packed.destinations.begin(), packed.destinations.end(), device.destinations));
    EXPECT_LE(reinterpret_cast<const std::byte*>(device.destinations + packed.destinations.size()),
              image.data() + image.size());
  }
}

TEST(PackedSchedule, DenseCallsNeedNone) {
  const HeadSchedule heads[2] = {};
  EXPECT_FALSE(needs_schedule(heads));
  EXPECT_FALSE(needs_schedule({}));
}

TEST(PackedSchedule, RefusesWhatItCannotExpress) {
  const BlockIntervals intervals = BlockIntervals::dense(2, 3);
  const HeadSchedule heads[] = {{}, {.intervals = &intervals}};
  EXPECT_THAT(message_of([&] { pack_schedule(heads, 100, 300, 64, 100); }),
              testing::AllOf(HasSubstr("head 1"), HasSubstr("key blocks of 100 tokens"), HasSubstr("multiples of 64")));
  EXPECT_THAT(message_of([&] { pack_schedule(heads, 100, 300, 64, 64); }),
              HasSubstr("head 1: intervals are for 2 x 3 blocks, the call has 2 x 5"));
  EXPECT_THAT(message_of([&] { pack_schedule(heads, 0, 300, 64, 64); }), HasSubstr("at least one query"));
  const AnchorRows wild{{9}, std::vector<int32_t>(9, 0), 0};
  const HeadSchedule anchored{.anchors = &wild};
  EXPECT_THAT(message_of([&] { pack_schedule({&anchored, 1}, 9, 9, 64, 64); }), HasSubstr("query token 9"));
  const HeadSchedule summarized{.summarize_skipped = true};
  EXPECT_THAT(message_of([&] { pack_schedule({&summarized, 1}, 9, 9, 64, 64); }), HasSubstr("needs intervals"));
}

}  // namespace
}  // namespace calibatt::cuda
