// What of a call becomes a kernel's arguments; no GPU is needed.
#include "backend/cuda/attention/attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "base/error.h"

namespace calibatt::cuda {
namespace {

using ::testing::HasSubstr;

/// One head of 64 dims, 5 queries and 3 keys, at an address that nobody reads.
AttentionCall call_with(const std::vector<float>& key_bias) {
  static float somewhere[1];
  AttentionCall call;
  call.q = {somewhere, DType::kBF16, 5, 64, 64};
  call.k = call.v = {somewhere, DType::kBF16, 3, 64, 64};
  call.out = {somewhere, DType::kBF16, 5, 64, 64};
  call.key_bias = key_bias;
  return call;
}

TEST(CudaAttentionArgs, TheLastKeysBiasIsInLog2Units) {
  const std::vector<float> none, zeros(3, 0.0f), padding{0, 0, std::log(450.0f)}, less{0, 0, -1};
  EXPECT_EQ(make_args(call_with(none), {}).last_key_bias_log2, 0);
  EXPECT_EQ(make_args(call_with(zeros), {}).last_key_bias_log2, 0);
  EXPECT_FLOAT_EQ(make_args(call_with(padding), {}).last_key_bias_log2, std::log2(450.0f));
  EXPECT_FLOAT_EQ(make_args(call_with(less), {}).last_key_bias_log2, std::log2(std::exp(-1.0f)));
}

TEST(CudaAttentionArgs, OtherBiasesAreRefused) {
  for (const std::vector<float>& bias :
       {std::vector<float>{1, 0, 0}, {0, 1, 1}, {-INFINITY, 0, 1}, {0, 0, -INFINITY}}) {
    try {
      make_args(call_with(bias), {});
      ADD_FAILURE() << "not refused: " << testing::PrintToString(bias);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      EXPECT_THAT(error.what(), HasSubstr("only the last key's"));
      EXPECT_THAT(error.what(), HasSubstr("use the CPU backend"));
    }
  }
}

}  // namespace
}  // namespace calibatt::cuda
