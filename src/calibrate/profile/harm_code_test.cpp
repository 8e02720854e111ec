#include "calibrate/profile/harm_code.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>
#include <vector>

#include "base/random.h"
#include "calibrate/profile/inclusion.h"
#include "calibrate/profile/level_code.h"

namespace calibatt {
namespace {

std::vector<bfloat16> random_harm(int rows, int columns, uint64_t seed) {
  const Tensor noise = TorchGenerator(seed).randn({rows, columns});
  std::vector<bfloat16> harm;
  for (int64_t i = 0; i < noise.size(); ++i) harm.emplace_back(std::exp(3 * noise.f32()[i]) * 1e-6f);
  return harm;
}

// harm_code.h, word for word.
int expected_code(const std::vector<bfloat16>& harm, size_t block) {
  double before = 0;
  for (const bfloat16 other : harm) before += static_cast<float>(other) > static_cast<float>(harm[block]) ? 1 : 0;
  int code = 0;
  for (int i = 0; i + 1 < kNumHarmRungs; ++i) code += kDensityLevels[i] * 100 * harm.size() <= before * 100 + 1e-6;
  return code;
}

int code_at(const std::vector<uint8_t>& packed, int columns, size_t block) {
  const size_t r = block / columns, c = block % columns;
  return packed[r * packed_row_bytes(columns) + c / 2] >> (c % 2 * 4) & 0xf;
}

TEST(HarmCode, EqualsTheDefinition) {
  for (const auto& [rows, columns] : {std::pair{1, 1}, {1, 7}, {5, 4}, {20, 33}}) {
    std::vector<bfloat16> harm = random_harm(rows, columns, 1);
    if (harm.size() > 10) harm[3] = harm[7] = harm[8], harm[1] = harm[9] = bfloat16(0.0f);  // ties, and no harm
    std::vector<uint8_t> codes(static_cast<size_t>(rows * packed_row_bytes(columns)));
    std::vector<float> rung_harm(kNumHarmRungs, -1.0f), sum(kNumHarmRungs), count(kNumHarmRungs);
    ASSERT_TRUE(encode_harm(harm, columns, codes.data(), rung_harm.data()));
    for (size_t block = 0; block < harm.size(); ++block) {
      const int code = expected_code(harm, block);
      EXPECT_EQ(code_at(codes, columns, block), code) << block << " of " << harm.size();
      sum[code] += static_cast<float>(harm[block]);
      ++count[code];
    }
    for (int rung = 0; rung < kNumHarmRungs; ++rung) {
      const float mean = count[rung] > 0 ? sum[rung] / count[rung] : 0.0f;
      EXPECT_NEAR(rung_harm[rung], mean, 1e-5f * mean) << rung;
    }
    if (columns % 2 != 0) {
      EXPECT_EQ(codes[packed_row_bytes(columns) - 1] >> 4, 15) << "the half byte left over";
    }
  }
}

TEST(HarmCode, RefusesWhatIsNoHarm) {
  for (const float wrong : {-1e-9f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<bfloat16> harm = random_harm(3, 4, 2);
    harm[5] = bfloat16(wrong);
    std::vector<uint8_t> codes(6, 0x77);
    std::vector<float> rung_harm(kNumHarmRungs, 3.0f);
    EXPECT_FALSE(encode_harm(harm, 4, codes.data(), rung_harm.data())) << wrong;
    EXPECT_EQ(codes, std::vector<uint8_t>(6, 0x77));
    EXPECT_EQ(rung_harm, std::vector<float>(kNumHarmRungs, 3.0f));
  }
}

// Masks of rising densities as harm_inclusion gives them, but for blocks of equal harm.
TEST(HarmCode, RungsAreThoseOfTheInclusion) {
  AttentionGeometry g;
  g.frames = 2, g.height = 9, g.width = 10, g.heads = 1, g.head_dim = 8;
  g.block_q = 16, g.block_k = 24;  // 12 × 8 blocks
  const std::vector<bfloat16> harm = random_harm(g.num_query_blocks(), g.num_key_blocks(), 5);
  std::vector<uint8_t> rungs(harm.size());
  ASSERT_TRUE(harm_rungs(harm, g, rungs.data()));
  InclusionLevels levels =
      harm_inclusion(std::vector<float>(harm.begin(), harm.end()), g.num_query_blocks(), g.num_key_blocks());
  keep_own_blocks(levels, g, nullptr);
  std::set<uint16_t> seen;
  for (const bfloat16 value : harm) seen.insert(value.bits);
  size_t different = 0;
  for (size_t block = 0; block < harm.size(); ++block) {
    const float at = levels.all()[block];
    int expected = 0;
    while (expected + 1 < kNumHarmRungs && kDensityLevels[expected] <= at) ++expected;
    different += rungs[block] != expected;
  }
  EXPECT_LE(different, harm.size() - seen.size()) << "only of equal values";
}

TEST(HarmCode, RestoredHarmIsTheRungsMeanOverPromptsAndNeighbours) {
  ProfileHeader header;
  header.geometry.frames = 2, header.geometry.height = 4, header.geometry.width = 7;  // 56 tokens: 7 blocks of 8
  header.geometry.heads = 2, header.geometry.head_dim = 8;
  header.geometry.block_q = header.geometry.block_k = 8;
  header.num_layers = 2;
  header.sigmas = {1.0, 0.6, 0.3};
  header.measured = Measured::kLevels, header.code_ranking = Ranking::kHarm;
  header.recorded_steps = {0, 1, 2};
  header.anchor_rows.clear();
  header.provenance.num_prompts = 2;
  constexpr int kBlocks = 7;
  std::vector<PromptProfile> prompts;
  for (int prompt = 0; prompt < 2; ++prompt) {
    prompts.push_back(PromptProfile::allocate(header, prompt));
    for (size_t site_head = 0; site_head < 3 * 2 * 2; ++site_head) {
      ASSERT_TRUE(encode_harm(random_harm(kBlocks, kBlocks, 100 * prompt + site_head), kBlocks,
                              prompts[prompt].levels.data<uint8_t>() + site_head * kBlocks * packed_row_bytes(kBlocks),
                              prompts[prompt].rung_harm.f32() + site_head * kNumHarmRungs));
    }
  }
  const PromptProfile* pointers[] = {&prompts[0], &prompts[1]};
  const size_t site_head = 1 * 4 + 1 * 2 + 1;  // the second step, layer and head
  const std::vector<float> found = restored_harm(header, pointers, site_head);
  for (size_t block = 0; block < found.size(); ++block) {
    double expected = 0;
    for (const PromptProfile& prompt : prompts) {
      for (const auto& [neighbour, share] : {std::pair{site_head - 4, 0.25}, {site_head, 0.5}, {site_head + 4, 0.25}}) {
        const auto* packed = prompt.levels.data<uint8_t>() + neighbour * kBlocks * packed_row_bytes(kBlocks);
        const std::vector<uint8_t> codes(packed, packed + kBlocks * packed_row_bytes(kBlocks));
        expected += share / 2 * prompt.rung_harm.f32()[neighbour * kNumHarmRungs + code_at(codes, kBlocks, block)];
      }
    }
    EXPECT_NEAR(found[block], expected, 1e-5 * expected);
  }
}

}  // namespace
}  // namespace calibatt
