#include "sparsity/block_intervals.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "base/error.h"

namespace calibatt {
namespace {

using ::testing::HasSubstr;

BlockMask random_mask(std::mt19937& random, int num_query_blocks, int num_key_blocks, double density) {
  BlockMask mask(num_query_blocks, num_key_blocks);
  std::bernoulli_distribution keep(density);
  for (int r = 0; r < num_query_blocks; ++r) {
    for (int c = 0; c < num_key_blocks; ++c) mask.set(r, c, keep(random));
    mask.set(r, static_cast<int>(random() % static_cast<unsigned>(num_key_blocks)), true);
  }
  return mask;
}

std::string refusal(int num_key_blocks, std::vector<uint32_t> offsets, std::vector<BlockInterval> intervals) {
  try {
    BlockIntervals(num_key_blocks, std::move(offsets), std::move(intervals));
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kFormat);
    return error.what();
  }
  return "";
}

TEST(BlockMask, CountsAndCompares) {
  BlockMask a(2, 3), b(2, 3);
  EXPECT_EQ(a.count(), 0);
  EXPECT_EQ(intersection_over_union(a, b), 1.0);
  a.set(0, 0, true);
  a.set(1, 2, true);
  b.set(1, 2, true);
  b.set(1, 1, true);
  EXPECT_EQ(a.count(), 2);
  EXPECT_DOUBLE_EQ(a.density(), 1.0 / 3);
  EXPECT_DOUBLE_EQ(intersection_over_union(a, b), 1.0 / 3);
  const BlockMask both = union_of(a, b);
  EXPECT_EQ(both.count(), 3);
  EXPECT_TRUE(both.kept(0, 0) && both.kept(1, 1) && both.kept(1, 2));
  EXPECT_EQ(BlockMask(2, 3, true).count(), 6);
  EXPECT_THROW(intersection_over_union(a, BlockMask(3, 2)), std::logic_error);
}

TEST(BlockIntervals, RandomMasksRoundTrip) {
  std::mt19937 random(1);
  for (int round = 0; round < 300; ++round) {
    const int rows = 1 + static_cast<int>(random() % 20), columns = 1 + static_cast<int>(random() % 70);
    const BlockMask mask = random_mask(random, rows, columns, (round % 11) / 10.0);
    const BlockIntervals intervals = BlockIntervals::from_mask(mask);
    ASSERT_EQ(intervals.to_mask(), mask);
    ASSERT_EQ(intervals.num_kept(), mask.count());
    ASSERT_DOUBLE_EQ(intervals.density(), mask.density());
    const BlockIntervals rebuilt(columns, {intervals.offsets().begin(), intervals.offsets().end()},
                                 {intervals.intervals().begin(), intervals.intervals().end()});
    ASSERT_EQ(rebuilt, intervals);
  }
}

TEST(BlockIntervals, MergingFillsExactlyTheShortGaps) {
  std::mt19937 random(2);
  for (int round = 0; round < 200; ++round) {
    const int merge_gap = round % 5;
    const BlockMask mask = random_mask(random, 4, 40, 0.3);
    const BlockMask merged = BlockIntervals::from_mask(mask, merge_gap).to_mask();
    for (int r = 0; r < 4; ++r) {
      for (int c = 0; c < 40; ++c) {
        int left = c, right = c;  // nearest kept block on each side, or off the end
        while (left >= 0 && !mask.kept(r, left)) --left;
        while (right < 40 && !mask.kept(r, right)) ++right;
        const bool in_short_gap = left >= 0 && right < 40 && right - left - 1 <= merge_gap;
        ASSERT_EQ(merged.kept(r, c), mask.kept(r, c) || in_short_gap) << "query block " << r << ", key block " << c;
      }
    }
  }
}

TEST(BlockIntervals, DenseKeepsAll) {
  const BlockIntervals dense = BlockIntervals::dense(3, 9);
  EXPECT_EQ(dense.to_mask(), BlockMask(3, 9, true));
  EXPECT_EQ(dense.density(), 1.0);
  EXPECT_EQ(dense, BlockIntervals::from_mask(BlockMask(3, 9, true)));
}

TEST(BlockIntervals, WhatCannotBeIsRefusedWithTheQueryBlock) {
  EXPECT_EQ(refusal(9, {0, 1, 3}, {{0, 9}, {0, 2}, {3, 4}}), "");
  EXPECT_THAT(refusal(0, {0}, {}), HasSubstr("at least one key block"));
  EXPECT_THAT(refusal(9, {}, {}), HasSubstr("first offset"));
  EXPECT_THAT(refusal(9, {1, 1}, {{0, 1}}), HasSubstr("first offset"));
  EXPECT_THAT(refusal(9, {0, 2}, {{0, 1}}), HasSubstr("last offset is 2"));
  EXPECT_THAT(refusal(9, {0, 4000000000u, 1}, {{0, 1}}), HasSubstr("query block 0 has offsets that do not rise"));
  EXPECT_THAT(refusal(9, {0, 2, 1, 2}, {{0, 1}, {3, 4}}), HasSubstr("query block 1 has offsets"));
  EXPECT_THAT(refusal(9, {0, 1, 1}, {{0, 1}}), HasSubstr("query block 1 keeps no key block"));
  EXPECT_THAT(refusal(9, {0, 1}, {{4, 4}}), HasSubstr("empty interval [4, 4)"));
  EXPECT_THAT(refusal(9, {0, 1}, {{5, 4}}), HasSubstr("empty interval"));
  EXPECT_THAT(refusal(9, {0, 1}, {{4, 10}}), HasSubstr("beyond its 9 key blocks"));
  EXPECT_THAT(refusal(9, {0, 1}, {{0, 4294967295u}}), HasSubstr("beyond"));
  EXPECT_THAT(refusal(9, {0, 2}, {{4, 6}, {1, 2}}), HasSubstr("out of order"));
  EXPECT_THAT(refusal(9, {0, 2}, {{1, 4}, {3, 6}}), HasSubstr("out of order"));
  EXPECT_THAT(refusal(9, {0, 2}, {{1, 4}, {4, 6}}), HasSubstr("touching"));
}

TEST(BlockIntervals, AMaskWithAnEmptyRowIsRefused) {
  BlockMask mask(2, 4);
  mask.set(0, 1, true);
  try {
    BlockIntervals::from_mask(mask);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    EXPECT_THAT(error.what(), HasSubstr("query block 1"));
  }
  EXPECT_THROW(BlockIntervals::from_mask(BlockMask(1, 4, true), -1), Error);
}

TEST(BlockIntervals, TokenPairsCountPartialBlocks) {
  std::mt19937 random(3);
  for (int round = 0; round < 100; ++round) {
    const int queries = 1 + static_cast<int>(random() % 50), keys = 1 + static_cast<int>(random() % 50);
    const int block_q = 1 + static_cast<int>(random() % 16), block_k = 1 + static_cast<int>(random() % 16);
    const BlockMask mask = random_mask(random, (queries + block_q - 1) / block_q, (keys + block_k - 1) / block_k, 0.4);
    int64_t pairs = 0;
    for (int q = 0; q < queries; ++q) {
      for (int k = 0; k < keys; ++k) pairs += mask.kept(q / block_q, k / block_k);
    }
    ASSERT_EQ(kept_token_pairs(BlockIntervals::from_mask(mask), queries, block_q, keys, block_k), pairs);
  }
}

}  // namespace
}  // namespace calibatt
