#include "calibrate/profile/inclusion.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>

namespace calibatt {
namespace {

std::vector<float> random_energy(int rows, int columns, unsigned seed) {
  std::mt19937 engine(seed);
  std::exponential_distribution<float> spread(1.0f);
  std::vector<float> energy(static_cast<size_t>(rows) * columns);
  for (int r = 0; r < rows; ++r) {
    float sum = 0;
    for (int c = 0; c < columns; ++c) sum += energy[r * columns + c] = std::pow(spread(engine), 3.0f);
    for (int c = 0; c < columns; ++c) energy[r * columns + c] /= sum;
  }
  return energy;
}

TEST(EnergyInclusion, KeepsTheSmallestSetThatReachesTheEnergy) {
  const int rows = 9, columns = 31;
  const auto energy = random_energy(rows, columns, 1);
  const InclusionLevels levels = energy_inclusion(energy, rows, columns);
  for (const double target : {0.1, 0.5, 0.84, 0.99}) {
    const BlockMask mask = levels.mask(target);
    for (int r = 0; r < rows; ++r) {
      double kept = 0, least_kept = 1, most_skipped = 0;
      for (int c = 0; c < columns; ++c) {
        const double e = energy[r * columns + c];
        if (mask.kept(r, c)) {
          kept += e;
          least_kept = std::min(least_kept, e);
        } else {
          most_skipped = std::max(most_skipped, e);
        }
      }
      EXPECT_GE(kept, target - 1e-5);
      EXPECT_LT(kept - least_kept, target) << "one block fewer would have been enough";
      EXPECT_LE(most_skipped, least_kept) << "the set is not made of the greatest energies";
    }
  }
}

TEST(EnergyInclusion, LevelOneKeepsEverything) {
  std::vector<float> energy{1, 0, 0, 0, 0.25, 0.25, 0.25, 0.25};
  const InclusionLevels levels = energy_inclusion(energy, 2, 4);
  EXPECT_EQ(levels.mask(1.0).count(), 8);
  EXPECT_EQ(levels.mask(0.99).count(), 5) << "one block holds all the energy of the first row";
}

TEST(EnergyInclusion, ARowWithoutEnergyStillKeepsABlock) {
  const std::vector<float> energy(4, 0.0f);
  EXPECT_EQ(energy_inclusion(energy, 1, 4).mask(1e-6).count(), 1);
}

TEST(EnergyInclusion, MasksOfRisingLevelsAreNestedAndDensityCountsThem) {
  const auto energy = random_energy(5, 40, 2);
  const InclusionLevels levels = energy_inclusion(energy, 5, 40);
  BlockMask last = levels.mask(0.01);
  for (double level = 0.05; level <= 1; level += 0.05) {
    const BlockMask mask = levels.mask(level);
    EXPECT_EQ(union_of(mask, last), mask);
    EXPECT_DOUBLE_EQ(levels.density(level), mask.density());
    last = mask;
  }
}

TEST(HarmInclusion, LevelIsTheDensityAndTheWorstBlocksComeFirst) {
  const int rows = 10, columns = 20;
  const auto harm = random_energy(rows, columns, 3);
  const InclusionLevels levels = harm_inclusion(harm, rows, columns);
  for (const double level : {0.2, 0.5, 0.9}) {
    const BlockMask mask = levels.mask(level);
    EXPECT_NEAR(mask.density(), level, 0.051);  // every row's first block is kept whatever its rank
    float least_kept = 1, most_skipped = 0;
    for (int r = 0; r < rows; ++r) {
      float best = 0;
      for (int c = 0; c < columns; ++c) best = std::max(best, harm[r * columns + c]);
      for (int c = 0; c < columns; ++c) {
        const float value = harm[r * columns + c];
        if (mask.kept(r, c) && value != best) least_kept = std::min(least_kept, value);
        if (!mask.kept(r, c)) most_skipped = std::max(most_skipped, value);
      }
    }
    EXPECT_LE(most_skipped, least_kept);
  }
  EXPECT_EQ(levels.mask(1.0).count(), rows * columns);
}

TEST(HarmInclusion, EveryRowKeepsItsWorstBlock) {
  // All of the head's harm is in row 0; row 1 must not end empty.
  const std::vector<float> harm{9, 8, 7, 6, 1, 2, 3, 2};
  const BlockMask mask = harm_inclusion(harm, 2, 4).mask(0.01);
  EXPECT_TRUE(mask.kept(0, 0));
  EXPECT_TRUE(mask.kept(1, 2));
  EXPECT_EQ(mask.count(), 2);
}

TEST(AgreedInclusion, EqualsTheVoteOverMasks) {
  const int rows = 6, columns = 17;
  std::vector<InclusionLevels> prompts;
  for (unsigned p = 0; p < 5; ++p)
    prompts.push_back(energy_inclusion(random_energy(rows, columns, 10 + p), rows, columns));
  for (const double agreement : {0.2, 0.5, 0.6, 1.0}) {
    const InclusionLevels agreed = agreed_inclusion(prompts, agreement);
    for (const double level : {0.3, 0.8, 0.95}) {
      const BlockMask mask = agreed.mask(level);
      for (int r = 0; r < rows; ++r) {
        int voted = 0, kept = 0;
        for (int c = 0; c < columns; ++c) {
          int votes = 0;
          for (const auto& prompt : prompts) votes += prompt.mask(level).kept(r, c);
          const bool elected = votes / 5.0 >= agreement - 1e-9;
          voted += elected;
          kept += mask.kept(r, c);
          if (elected) {
            EXPECT_TRUE(mask.kept(r, c));
          }
        }
        EXPECT_LE(kept, std::max(voted + 1, 1)) << "only the guard may add a block";
        EXPECT_GE(kept, 1);
      }
    }
  }
}

TEST(AgreedInclusion, VoteAndMeanEnergyDiffer) {
  // Two prompts of three love block 1, each only a little more than block 0; the third has nothing but block 2.
  const std::vector<std::vector<float>> energies{{.48f, .52f, 0}, {.48f, .52f, 0}, {0, 0, 1}};
  std::vector<InclusionLevels> prompts;
  std::vector<float> mean(3, 0.0f);
  for (const auto& energy : energies) {
    prompts.push_back(energy_inclusion(energy, 1, 3));
    for (int c = 0; c < 3; ++c) mean[c] += energy[c] / 3;
  }
  const BlockMask vote = agreed_inclusion(prompts, 0.5).mask(0.5), by_mean = energy_inclusion(mean, 1, 3).mask(0.5);
  EXPECT_TRUE(vote.kept(0, 1));
  EXPECT_FALSE(vote.kept(0, 2)) << "one of three prompts is no majority";
  EXPECT_TRUE(by_mean.kept(0, 1));
  EXPECT_TRUE(by_mean.kept(0, 2)) << "a third of the mean energy is in block 2";
}

TEST(ScheduledEnergy, HasThePublishedValues) {
  EXPECT_DOUBLE_EQ(scheduled_energy(0.84, 0.99, 16, 0, 50), 0.99);
  EXPECT_NEAR(scheduled_energy(0.84, 0.99, 16, 10, 50), 0.84 + 0.15 * std::exp(-3.2), 1e-12);
  EXPECT_NEAR(scheduled_energy(0.84, 0.99, 16, 49, 50), 0.84, 1e-6);
  // LightX2V, 4 steps (method.md).
  EXPECT_NEAR(scheduled_energy(0.763, 0.863, 5.64, 2, 4), 0.763 + 0.1 * std::exp(-2.82), 1e-12);
}

TEST(KeepOwnBlocks, CoversEveryQueryTokenAlsoInTheTailAndWhenPacked) {
  AttentionGeometry geometry;
  geometry.frames = 3, geometry.height = 5, geometry.width = 7;  // 105 tokens: 7 query blocks of 16, 5 key blocks of 24
  geometry.block_q = 16, geometry.block_k = 24;
  InclusionLevels levels(geometry.num_query_blocks(), geometry.num_key_blocks());
  for (int r = 0; r < levels.num_query_blocks(); ++r) {
    for (int c = 0; c < levels.num_key_blocks(); ++c) levels.at(r, c) = 0.5f;
  }
  InclusionLevels packed_levels = levels;
  keep_own_blocks(levels, geometry, nullptr);
  const BlockMask mask = levels.mask(0.1);
  for (int token = 0; token < 105; ++token) EXPECT_TRUE(mask.kept(token / 16, token / 24));
  EXPECT_TRUE(mask.kept(1, 0)) << "tokens 16…31 lie in key blocks 0 and 1";
  EXPECT_TRUE(mask.kept(1, 1));
  EXPECT_FALSE(mask.kept(1, 2));
  const AnchorRows anchors = make_anchor_rows(geometry, 2);
  keep_own_blocks(packed_levels, geometry, &anchors);
  const BlockMask packed = packed_levels.mask(0.1);
  for (size_t i = 0; i < anchors.query_tokens.size(); ++i)
    EXPECT_TRUE(packed.kept(static_cast<int>(i) / 16, anchors.query_tokens[i] / 24));
}

TEST(PackedRows, AveragesTheRowsOfTheTokensSourceBlocks) {
  AttentionGeometry geometry;
  geometry.frames = 2, geometry.height = 4, geometry.width = 3;
  geometry.block_q = 6, geometry.block_k = 12;               // 4 query blocks, 2 key blocks
  const AnchorRows anchors = make_anchor_rows(geometry, 1);  // one row of three tokens per frame
  ASSERT_EQ(anchors.query_tokens.size(), 6u);
  const std::vector<float> matrix{0, 1, 10, 11, 20, 21, 30, 31};
  const std::vector<float> packed = packed_rows(geometry, anchors, matrix);
  ASSERT_EQ(packed.size(), 2u);
  float expected = 0;
  for (const int token : anchors.query_tokens) expected += 10.0f * (token / 6) / 6;
  EXPECT_NEAR(packed[0], expected, 1e-4);
  EXPECT_NEAR(packed[1], expected + 1, 1e-4);
}

}  // namespace
}  // namespace calibatt
