#include "sparsity/text_extension.h"

#include <gtest/gtest.h>

#include <random>

#include "base/error.h"

namespace calibatt {
namespace {

BlockMask random_mask(std::mt19937& random, int rows, int columns) {
  BlockMask mask(rows, columns);
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < columns; ++c) mask.set(r, c, random() % 3 == 0);
    mask.set(r, static_cast<int>(random() % static_cast<unsigned>(columns)), true);
  }
  return mask;
}

// Token by token: which pairs must be computed, and the blocks that hold one of them.
BlockMask brute_force(const BlockMask& video, const VideoTokens& tokens, int text_tokens) {
  const int num_queries = tokens.num_queries + text_tokens, num_keys = tokens.num_keys + text_tokens;
  BlockMask mask((num_queries + tokens.block_q - 1) / tokens.block_q, (num_keys + tokens.block_k - 1) / tokens.block_k);
  for (int query = 0; query < num_queries; ++query) {
    for (int key = 0; key < num_keys; ++key) {
      const int r = query / tokens.block_q, c = key / tokens.block_k;
      if (query >= tokens.num_queries || key >= tokens.num_keys || video.kept(r, c)) mask.set(r, c, true);
    }
  }
  return mask;
}

TEST(TextExtension, EqualsTheMaskMadeTokenByToken) {
  std::mt19937 random(5);
  // No text, one token, part of a block, what fills the last block and no more, a block, several and a part.
  for (const int text_tokens : {0, 1, 3, 4, 7, 8, 29}) {
    // Video that fills its blocks and video that does not; as many queries as keys, and the fewer of anchors.
    for (const VideoTokens tokens :
         {VideoTokens{32, 32, 8, 8}, VideoTokens{36, 36, 8, 8}, VideoTokens{36, 36, 8, 16}, VideoTokens{37, 37, 16, 4},
          VideoTokens{5, 36, 8, 8}, VideoTokens{16, 35, 8, 8}, VideoTokens{3, 3, 8, 8}}) {
      for (int round = 0; round < 5; ++round) {
        const BlockMask video = random_mask(random, (tokens.num_queries + tokens.block_q - 1) / tokens.block_q,
                                            (tokens.num_keys + tokens.block_k - 1) / tokens.block_k);
        const BlockIntervals extended = extend_to_text(BlockIntervals::from_mask(video), tokens, text_tokens);
        ASSERT_EQ(extended, BlockIntervals::from_mask(brute_force(video, tokens, text_tokens)))
            << text_tokens << " text tokens behind " << tokens.num_queries << " queries and " << tokens.num_keys
            << " keys in blocks of " << tokens.block_q << "×" << tokens.block_k;
      }
    }
  }
}

TEST(TextExtension, WithoutTextNothingChanges) {
  std::mt19937 random(6);
  const auto video = BlockIntervals::from_mask(random_mask(random, 5, 5));
  EXPECT_EQ(extend_to_text(video, {36, 36, 8, 8}, 0), video);
}

TEST(TextExtension, IntervalsOfOtherTokensAreRefused) {
  const auto video = BlockIntervals::dense(5, 5);
  EXPECT_THROW(extend_to_text(video, {41, 40, 8, 8}, 4), Error);
  EXPECT_THROW(extend_to_text(video, {40, 41, 8, 8}, 4), Error);
  EXPECT_THROW(extend_to_text(video, {40, 40, 8, 8}, -1), Error);
  EXPECT_NO_THROW(extend_to_text(video, {40, 40, 8, 8}, 4));
}

}  // namespace
}  // namespace calibatt
