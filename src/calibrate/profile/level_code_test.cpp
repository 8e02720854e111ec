#include "calibrate/profile/level_code.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/random.h"
#include "calibrate/profile/inclusion.h"

namespace calibatt {
namespace {

std::vector<float> distribution(TorchGenerator& generator, int columns, double sharpness) {
  const Tensor noise = generator.randn({columns});
  std::vector<float> energy(static_cast<size_t>(columns));
  double sum = 0;
  for (int c = 0; c < columns; ++c) sum += energy[c] = static_cast<float>(std::exp(sharpness * noise.f32()[c]));
  for (float& value : energy) value = static_cast<float>(value / sum);
  return energy;
}

std::vector<int> encoded(const std::vector<float>& energy) {
  const int columns = static_cast<int>(energy.size());
  std::vector<uint8_t> packed(static_cast<size_t>(packed_row_bytes(columns))), codes(energy.size());
  EXPECT_TRUE(encode_row(energy, packed.data()));
  EXPECT_TRUE(all_rows_valid(packed.data(), 1, columns));
  decode_row(packed.data(), columns, codes.data());
  return {codes.begin(), codes.end()};
}

TEST(LevelCode, FollowsItsDefinitionExactly) {
  TorchGenerator generator(1);
  for (const int columns : {1, 2, 5, 64, 591}) {
    for (const double sharpness : {0.0, 0.5, 2.0, 6.0}) {
      const std::vector<float> energy = distribution(generator, columns, sharpness);
      const std::vector<int> codes = encoded(energy);
      std::vector<uint64_t> fixed(energy.size());
      uint64_t total = 0;
      for (size_t c = 0; c < energy.size(); ++c) total += fixed[c] = std::llrint(double{energy[c]} * (1 << 30));
      for (size_t c = 0; c < energy.size(); ++c) {
        uint64_t before = 0;
        for (size_t j = 0; j < energy.size(); ++j) {
          if (fixed[j] > fixed[c] || (fixed[j] == fixed[c] && j < c)) before += fixed[j];
        }
        int code = 0;
        for (const uint32_t level : code_ladder()) code += level * total <= before * 65536;
        ASSERT_EQ(codes[c], code) << columns << " columns, block " << c;
      }
    }
  }
}

TEST(LevelCode, MasksAtTheLadderAreThoseOfTheFullMap) {
  TorchGenerator generator(2);
  constexpr int kColumns = 591;
  int different = 0;
  for (int row = 0; row < 20; ++row) {
    const std::vector<float> energy = distribution(generator, kColumns, 1.0 + 0.2 * row);
    const std::vector<int> codes = encoded(energy);
    const InclusionLevels levels = energy_inclusion(energy, 1, kColumns);
    for (int i = 0; i < kNumCodeLevels; ++i) {
      const BlockMask mask = levels.mask(static_cast<double>(kCodeLevels[i]) / kLevelUnits);
      for (int c = 0; c < kColumns; ++c) different += mask.kept(0, c) != (codes[c] <= i);
    }
  }
  // Float sums of the full map are rounded: a block exactly at a level may fall to either side.
  EXPECT_LE(different, 2);
}

TEST(LevelCode, RowsThatAreNoDistributionAreRefused) {
  std::vector<uint8_t> packed(3);
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -0.1f, 1.5f}) {
    EXPECT_FALSE(encode_row(std::vector<float>{0.2f, bad, 0.3f, 0.1f, 0.1f}, packed.data())) << bad;
    EXPECT_FALSE(all_rows_valid(packed.data(), 1, 5));
  }
  EXPECT_FALSE(encode_row(std::vector<float>{0.9f, 0.9f, 0.9f, 0, 0}, packed.data())) << "the sum is far above 1";
  EXPECT_TRUE(encode_row(std::vector<float>{0, 0, 0, 0, 0}, packed.data()));
  EXPECT_TRUE(all_rows_valid(packed.data(), 1, 5));
}

TEST(LevelCode, AllRowsOnAllThreadsAreThoseOfOneRow) {
  TorchGenerator generator(3);
  constexpr int kHeads = 2, kRows = 90, kColumns = 7;
  Tensor energy(DType::kF32, {kHeads, kRows, kColumns});
  std::vector<uint8_t> expected;
  for (int row = 0; row < kHeads * kRows; ++row) {
    const std::vector<float> one = distribution(generator, kColumns, 2);
    std::copy(one.begin(), one.end(), energy.f32() + row * kColumns);
    expected.resize(expected.size() + 4);
    encode_row(one, expected.data() + expected.size() - 4);
  }
  std::vector<uint8_t> codes(expected.size(), 0x77);
  encode_levels(energy, codes.data());
  EXPECT_EQ(codes, expected);
}

TEST(SortByKey, IsStable) {
  SortScratch scratch;
  std::vector<uint32_t> order;
  scratch.keys = {7, 0xffffffff, 3, 7, 0x70000, 3, 0};
  sort_by_key(scratch, order);
  EXPECT_EQ(order, (std::vector<uint32_t>{6, 2, 5, 0, 3, 4, 1}));
  EXPECT_EQ(scratch.keys, (std::vector<uint32_t>{0, 3, 3, 7, 7, 0x70000, 0xffffffff}));
  scratch.keys.clear();
  sort_by_key(scratch, order);
  EXPECT_TRUE(order.empty());
}

}  // namespace
}  // namespace calibatt
