#include "base/random.h"

#include <gtest/gtest.h>

#include <cmath>

// The values of torch itself are compared in src/io/random_golden_test.cpp: reading them takes the floor above.
namespace calibatt {
namespace {

TEST(MersenneTwister, GivesThePublishedSequence) {
  MersenneTwister engine(5489);  // the seed whose ten-thousandth number the C++ standard prescribes
  uint32_t value = 0;
  for (int i = 0; i < 10000; ++i) value = engine.next();
  EXPECT_EQ(value, 4123659995u);
}

TEST(TorchGenerator, OnlyTheLowHalfOfTheSeedCounts) {
  TorchGenerator a(42), b((uint64_t{7} << 32) + 42), c(43);
  const Tensor x = a.randn({20}), y = b.randn({20}), z = c.randn({20});
  EXPECT_EQ(x.f32()[19], y.f32()[19]);
  EXPECT_NE(x.f32()[19], z.f32()[19]);
}

TEST(TorchGenerator, IsNormal) {
  TorchGenerator generator(1);
  const Tensor values = generator.randn({1, 100'003});
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < values.size(); ++i) {
    ASSERT_TRUE(std::isfinite(values.f32()[i]));
    sum += values.f32()[i];
    squares += values.f32()[i] * values.f32()[i];
  }
  EXPECT_NEAR(sum / 100'003, 0, 0.02);
  EXPECT_NEAR(squares / 100'003, 1, 0.02);
}

}  // namespace
}  // namespace calibatt
