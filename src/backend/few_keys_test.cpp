#include "backend/few_keys.h"

#include <gtest/gtest.h>

namespace calibatt {
namespace {

TEST(FewKeys, SlotsWhereTwoProductsAreCheaper) {
  EXPECT_EQ(few_keys_slots(DType::kBF16, 128, 1), 16);
  EXPECT_EQ(few_keys_slots(DType::kF16, 128, 61), 64);
  EXPECT_EQ(few_keys_slots(DType::kBF16, 128, 112), 112);
  EXPECT_EQ(few_keys_slots(DType::kBF16, 128, 113), 0);  // 128 slots: as many as channels
  EXPECT_EQ(few_keys_slots(DType::kBF16, 64, 48), 48);
  EXPECT_EQ(few_keys_slots(DType::kBF16, 64, 49), 0);
  EXPECT_EQ(few_keys_slots(DType::kBF16, 96, 16), 0);
  EXPECT_EQ(few_keys_slots(DType::kF32, 128, 16), 0);
}

}  // namespace
}  // namespace calibatt
