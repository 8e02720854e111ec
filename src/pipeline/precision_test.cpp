#include "pipeline/precision.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "pipeline/no_int8.h"

namespace calibatt {
namespace {

// A run has its type by this function alone, before the model is loaded.
TEST(EightBitLayers, ATypeThatTheDeviceLacksIsRefused) {
  const NoInt8 ops;
  EXPECT_EQ(eight_bit_type(WeightsPrecision::kFP8, ops), DType::kE4M3);
  try {
    eight_bit_type(WeightsPrecision::kINT8, ops);
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    EXPECT_STREQ(error.what(), "no int8 here");
  }
}

// The call of Wan 14B at 720p: bytes of queries, keys and values and the queries' scales, which was all that was
// counted, and keys' scales, what rounding took of values, means, and with summaries sums of chunks.
TEST(EightBitAttention, TakesTheWorkspaceOfItsKernels) {
  ModelDescription model;
  model.num_heads = 40;
  model.head_dim = 128;
  const VideoSize size{81, 720, 1280};
  const auto counted = [](double heads) { return 75'600 * heads * (3 * 128 + 4); };
  const auto bytes = [&](bool planned, int num_ranks) {
    return static_cast<double>(eight_bit_attention_bytes(model, size, planned, num_ranks));
  };
  EXPECT_NEAR(bytes(false, 1) / counted(40), 1.028, 0.003);
  EXPECT_NEAR(bytes(true, 1) / counted(40), 1.081, 0.003);
  EXPECT_NEAR(bytes(true, 2) / counted(25), 1.081, 0.003) << "of the most heads that one of two ranks may have";
  const double chunk_sums = 2.0 * 40 * 1182 * 128 * 4, summary_chunks = 2.0 * 40 * 20 * 64 * 128;
  EXPECT_NEAR(bytes(true, 1) - bytes(false, 1), chunk_sums + summary_chunks, 2e4) << "as many summaries as chunks";
}

}  // namespace
}  // namespace calibatt
