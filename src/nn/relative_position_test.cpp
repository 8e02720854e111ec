#include "nn/relative_position.h"

#include <gtest/gtest.h>

#include <numeric>

#include "nn/timestep_embedding.h"

namespace calibatt {
namespace {

TEST(RelativePosition, BucketsOfT5) {
  const auto bucket = [](int distance) { return relative_position_bucket(distance, 32, 128); };
  EXPECT_EQ(bucket(0), 0);
  EXPECT_EQ(bucket(-7), 7);
  EXPECT_EQ(bucket(7), 16 + 7);
  EXPECT_EQ(bucket(-8), 8);  // exact up to a quarter of the buckets, then √2 apart: 8, 12, 16, 23, 32, 46, 64, 91
  EXPECT_EQ(bucket(-11), 8);
  EXPECT_EQ(bucket(-12), 9);
  EXPECT_EQ(bucket(-16), 10);
  EXPECT_EQ(bucket(32), 16 + 12);
  EXPECT_EQ(bucket(64), 16 + 14);
  EXPECT_EQ(bucket(-128), 15);
  EXPECT_EQ(bucket(5000), 31);
}

TEST(RelativePosition, BiasIsLookedUpByKeyMinusQuery) {
  Tensor table(DType::kF32, {8, 2});
  std::iota(table.f32(), table.f32() + table.size(), 0.0f);
  const Tensor bias = relative_position_bias(table, 16, 5);
  EXPECT_EQ(bias.shape(), (std::vector<int64_t>{2, 5, 5}));
  for (int head = 0; head < 2; ++head) {
    for (int query = 0; query < 5; ++query) {
      for (int key = 0; key < 5; ++key) {
        const int bucket = relative_position_bucket(key - query, 8, 16);
        EXPECT_EQ(bias.f32()[(head * 5 + query) * 5 + key], static_cast<float>(2 * bucket + head));
      }
    }
  }
}

TEST(TimestepEmbedding, CosinesFirst) {
  const Tensor embedding = timestep_embedding(500, 256);
  EXPECT_FLOAT_EQ(embedding.f32()[0], -0.88384927f);   // cos 500
  EXPECT_FLOAT_EQ(embedding.f32()[128], -0.4677718f);  // sin 500
  EXPECT_NEAR(embedding.f32()[64], 0.2836622, 1e-5);   // cos(500 / 100)
  EXPECT_NEAR(embedding.f32()[192], -0.9589243, 1e-5);
  const Tensor zero = timestep_embedding(0, 8);
  for (int i = 0; i < 8; ++i) EXPECT_EQ(zero.f32()[i], i < 4 ? 1 : 0);
}

}  // namespace
}  // namespace calibatt
