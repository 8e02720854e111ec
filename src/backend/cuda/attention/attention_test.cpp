// What of a call becomes a kernel's arguments; no GPU is needed.
#include "backend/cuda/attention/attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <tuple>
#include <utility>
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

TEST(CudaAttentionArgs, TypesAreThoseOfTheCall) {
  for (const auto& [dtype, out] : {std::pair{DType::kBF16, DType::kBF16},
                                   {DType::kF16, DType::kF16},
                                   {DType::kBF16, DType::kF32},
                                   {DType::kF32, DType::kF32}}) {
    AttentionCall call = call_with({});
    call.q.dtype = call.k.dtype = call.v.dtype = dtype;
    call.out.dtype = out;
    const AttentionArgs args = make_args(call, {});
    EXPECT_EQ(args.dtype, dtype);
    EXPECT_EQ(args.out_dtype(), out);
  }
  const auto expect_refused = [](DType dtype, const std::string& message) {
    AttentionArgs args = make_args(call_with({}), {});
    args.dtype = dtype;
    try {
      validate(args);
      ADD_FAILURE() << "not refused: " << dtype_name(dtype);
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(message));
    }
  };
  expect_refused(DType::kI8, "q, k and v are I8");
  expect_refused(DType::kF32, "out_f32");
}

// Which kernel a GPU of this compute capability computes a call with.
std::string_view chosen(int capability, const AttentionCall& call) {
  DeviceInfo device;
  device.name = "some GPU";
  device.compute_capability = capability;
  return choose_attention_kernel(make_args(call, {}), device).name;
}

TEST(CudaKernelTable, TheFastestThatTakesTheCallIsChosen) {
  alignas(16) static float aligned[4];
  AttentionCall usual = call_with({});
  usual.q.data = usual.k.data = usual.v.data = usual.out.data = aligned;
  AttentionCall odd_energy = usual, odd_dim = usual, floats = usual;
  odd_energy.block_energy = aligned;  // the kernel for Hopper has no energy of blocks of 192 keys
  odd_energy.block_k = 192;
  odd_dim.head_dim = 40;
  floats.q.dtype = floats.k.dtype = floats.v.dtype = floats.out.dtype = DType::kF32;
  for (const auto& [capability, names] :
       std::vector<std::pair<int, std::vector<std::string_view>>>{{75, {"generic", "generic", "generic", "generic"}},
                                                                  {80, {"sm80", "sm80", "generic", "generic"}},
                                                                  {90, {"sm90", "sm80", "generic", "generic"}},
                                                                  {100, {"sm80", "sm80", "generic", "generic"}}}) {
    EXPECT_EQ(chosen(capability, usual), names[0]) << capability;
    EXPECT_EQ(chosen(capability, odd_energy), names[1]) << capability;
    EXPECT_EQ(chosen(capability, odd_dim), names[2]) << capability;
    EXPECT_EQ(chosen(capability, floats), names[3]) << capability;
  }
}

TEST(CudaKernelTable, EightBitsAreComputedWhereAskedForOrRefused) {
  alignas(16) static float aligned[4];
  AttentionCall call = call_with({});
  call.q.data = call.k.data = call.v.data = call.out.data = aligned;
  call.eight_bits = true;
  EXPECT_EQ(chosen(90, call), "sm90_fp8");
  AttentionCall wide = call;
  wide.head_dim = 128;
  wide.q.token_stride = wide.k.token_stride = wide.v.token_stride = wide.out.token_stride = 128;
  EXPECT_EQ(chosen(90, wide), "sm90_fp8_wide");
  AttentionCall measured = call;
  measured.block_energy = aligned;
  EXPECT_EQ(chosen(90, measured), "sm90");  // what calibration sees is in 16 bits

  AttentionCall floats = call, other_dim = call;
  floats.q.dtype = floats.k.dtype = floats.v.dtype = floats.out.dtype = DType::kF32;
  other_dim.head_dim = 40;
  for (const auto& [capability, refused, message] :
       {std::tuple{80, &call, "sm90_fp8 refuses: it is for GPUs of compute capability 9.0, this one has 8.0"},
        {90, &floats, "it takes 16-bit floats"},
        {90, &other_dim, "head_dim is neither 64 nor 128"}}) {
    try {
      ADD_FAILURE() << chosen(capability, *refused);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      EXPECT_THAT(error.what(), HasSubstr(message));
    }
  }
}

TEST(CudaKernelTable, WideTilesAreTakenWhereTheirHalvesSeeMuchInCommon) {
  alignas(16) static float aligned[4];
  AttentionCall call = call_with({});
  call.q.data = call.k.data = call.v.data = call.out.data = aligned;
  call.q.token_stride = call.k.token_stride = call.v.token_stride = call.out.token_stride = call.head_dim = 128;
  call.eight_bits = true;
  AttentionArgs args = make_args(call, {});
  const Tile tile;
  args.schedule.tiles = &tile;
  DeviceInfo device;
  device.name = "some GPU";
  device.compute_capability = 90;
  args.schedule.sharing = 3;
  EXPECT_EQ(choose_attention_kernel(args, device).name, "sm90_fp8_wide");
  args.schedule.sharing = 1.5;
  EXPECT_EQ(choose_attention_kernel(args, device).name, "sm90_fp8");
  EXPECT_EQ(choose_attention_kernel(args, device, "sm90_fp8_wide").name, "sm90_fp8_wide") << "named, it is not asked";
}

TEST(CudaKernelTable, ANamedKernelIsChosenOrSaysWhyNot) {
  AttentionCall call = call_with({});
  const AttentionArgs args = make_args(call, {});
  DeviceInfo device;
  device.name = "some GPU";
  device.compute_capability = 86;
  EXPECT_EQ(choose_attention_kernel(args, device, "generic").name, "generic");
  for (const auto& [name, message] :
       {std::pair{"fast", "no CUDA kernel is named fast"}, {"sm90", "compute capability 9.0, this one has 8.6"}}) {
    try {
      choose_attention_kernel(args, device, name);
      ADD_FAILURE() << name;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      EXPECT_THAT(error.what(), HasSubstr(message));
    }
  }
}

}  // namespace
}  // namespace calibatt::cuda
