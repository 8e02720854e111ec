#include "calibrate/compile/run_cost.h"

#include <gtest/gtest.h>

#include "calibrate/compile/compile.h"

namespace calibatt {
namespace {

constexpr const char *kWan = "WanTransformer3DModel", *kMochi = "MochiTransformer3DModel";

TEST(EightBitGains, AreThoseThatWereMeasuredAndLieBetweenThem) {
  const EightBitGains hopper = eight_bit_gains("cuda", kWan, DType::kE4M3);
  EXPECT_DOUBLE_EQ(hopper.of_attention(75'600, 1), 1.44);
  EXPECT_DOUBLE_EQ(hopper.of_attention(75'600, 0.376), 1.27);
  EXPECT_NEAR(hopper.of_attention(75'600, 0.688), (1.44 + 1.27) / 2, 1e-9);
  EXPECT_DOUBLE_EQ(hopper.of_attention(75'600, 0.1), 1.21) << "constant outside";
  EXPECT_DOUBLE_EQ(hopper.of_attention(200'000, 1), 1.44);
  EXPECT_DOUBLE_EQ(hopper.of_attention(32'760, 1), 1.45);
  EXPECT_DOUBLE_EQ(hopper.of_attention(1'000, 0.2), 1);
  const double between = hopper.of_attention(16'384, 1), half = (1 + 1.45) / 2;  // by the logarithm of 8,192 to 32,760
  EXPECT_NEAR(between, half, 1e-4);
}

TEST(EightBitGains, AttentionOfFewTokensAndACpuGainNothing) {
  const EightBitGains hopper = eight_bit_gains("cuda", kWan, DType::kE4M3);
  EXPECT_EQ(hopper.parts(75'600), (EightBitParts{.attention = true, .layers = true}));
  EXPECT_EQ(hopper.parts(32'760), (EightBitParts{.attention = true, .layers = true}));
  EXPECT_EQ(hopper.parts(4'352), (EightBitParts{.attention = false, .layers = true}));
  EXPECT_LT(eight_bit_gains("cuda", kMochi, DType::kE4M3).layers, hopper.layers);
  EXPECT_FALSE(eight_bit_gains("cpu", kWan, DType::kI8).parts(75'600).any());
  EXPECT_EQ(eight_bit_gains("cpu", kWan, DType::kI8).of_attention(75'600, 1), 1);
}

// They were measured on Hopper, which has the kernels.
TEST(EightBitGains, OtherGpusGainNothing) {
  const EightBitGains hopper = eight_bit_gains(90, kWan, DType::kI8);
  EXPECT_EQ(hopper.parts(75'600), (EightBitParts{.attention = true, .layers = true}));
  EXPECT_EQ(hopper.layers, eight_bit_gains("cuda", kWan, DType::kI8).layers);
  for (const int other : {80, 86, 89, 100, 120}) {
    EXPECT_FALSE(eight_bit_gains(other, kWan, DType::kI8).parts(75'600).any()) << other;
  }
}

// Of the same forward: seconds outside self-attention in bf16 over those in 8 bits.
TEST(EightBitGains, LayersGainByTheirType) {
  const auto of_layers = [](const char* transformer, DType type) {
    return eight_bit_gains("cuda", transformer, type).layers;
  };
  EXPECT_NEAR(of_layers(kWan, DType::kE4M3), 2.705 / 1.362, 0.005);
  EXPECT_NEAR(of_layers(kWan, DType::kI8), 2.711 / (1.287 + 40 * 0.001018), 0.005)
      << "attention did the norm and rotation of queries and keys in this run";
  EXPECT_EQ(of_layers(kMochi, DType::kI8), of_layers(kMochi, DType::kE4M3)) << "not measured";
  EXPECT_EQ(eight_bit_gains("cuda", kWan, DType::kI8).of_attention(75'600, 1), 1.44) << "whatever layers are in";
}

class RunCosts : public ::testing::Test {
 protected:
  RunCosts() {
    header.geometry.frames = 6, header.geometry.height = 8, header.geometry.width = 8;
    header.geometry.block_k = 16;
    options.attention_share = 0.6;
    options.gains = {2, {{384, 0.2, 0.9}, {384, 1, 1.3}}};
  }
  ProfileHeader header;
  CompileOptions options;
};

TEST_F(RunCosts, WithoutEightBitsAreAsEver) {
  const RunCost cost(options, header);
  const Forwards all{.all = 7};
  EXPECT_DOUBLE_EQ(cost.of(all, 1), 1);
  EXPECT_DOUBLE_EQ(cost.of(all, 0.4), forward_cost(0.4, 1.0 / 16, 0.6));
  EXPECT_EQ(cost.density_at(all, 1), 1);
  EXPECT_EQ(cost.density_at(all, 0.75), density_of_cost(0.75, 1.0 / 16, 0.6)) << "to the bit: plans are the same";
  EXPECT_LT(cost.density_at(all, 0.4), 0) << "everything but attention takes that";
}

TEST_F(RunCosts, CountWhatEightBitsSave) {
  const RunCost cost(options, header);
  EXPECT_DOUBLE_EQ(cost.of({.all = 4, .layers = 4}, 1), 0.4 / 2 + 0.6);
  EXPECT_DOUBLE_EQ(cost.of({.all = 4, .layers = 1}, 1), 0.4 * (3 + 0.5) / 4 + 0.6);
  EXPECT_DOUBLE_EQ(cost.of({.all = 4, .attention = 4}, 1), 0.4 + 0.6 / 1.3);
  EXPECT_GT(cost.of({.all = 4, .attention = 4}, 0.2), cost.of({.all = 4}, 0.2)) << "sparse attention is slower so";
  EXPECT_LT(cost.saved_by_attention(0.2), 0);
  EXPECT_GT(cost.saved_by_attention(0.9), 0);
}

TEST_F(RunCosts, LeaveTheDensityThatCostsTheRest) {
  const RunCost cost(options, header);
  for (const Forwards& forwards :
       {Forwards{.all = 5}, {.all = 5, .layers = 3}, {.all = 5, .attention = 2}, {5, 4, 5}}) {
    for (const double density : {0.15, 0.4, 0.7}) {
      EXPECT_NEAR(cost.density_at(forwards, cost.of(forwards, density)), density, 1e-6);
    }
    EXPECT_EQ(cost.density_at(forwards, 1), 1);
    EXPECT_LT(cost.density_at(forwards, 0.1), 0);
  }
}

}  // namespace
}  // namespace calibatt
