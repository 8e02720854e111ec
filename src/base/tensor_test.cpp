#include "base/tensor.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

namespace calibatt {
namespace {

TEST(Tensor, KnowsItsShape) {
  const Tensor tensor = Tensor::zeros(DType::kF32, {2, 3, 4});
  EXPECT_EQ(tensor.size(), 24);
  EXPECT_EQ(tensor.size_bytes(), 96u);
  EXPECT_EQ(tensor.dim(0), 2);
  EXPECT_EQ(tensor.dim(-1), 4);
  EXPECT_EQ(tensor.describe(), "F32 [2, 3, 4]");
  EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.raw()) % 64, 0u);
  EXPECT_THROW(tensor.dim(3), std::logic_error);
  EXPECT_THROW(tensor.dim(-4), std::logic_error);
  EXPECT_THROW(tensor.data<double>(), std::logic_error);
}

TEST(Tensor, CopiesShareStorageAndClonesDoNot) {
  Tensor tensor = Tensor::zeros(DType::kF32, {2, 2});
  Tensor shared = tensor.reshaped({4});
  Tensor copy = tensor.clone();
  tensor.f32()[3] = 7;
  EXPECT_EQ(shared.f32()[3], 7);
  EXPECT_EQ(copy.f32()[3], 0);
  EXPECT_THROW(tensor.reshaped({5}), std::logic_error);
}

TEST(Tensor, WithoutElementsIsNotEmpty) {
  EXPECT_TRUE(Tensor().empty());
  EXPECT_EQ(Tensor().size(), 0);
  const Tensor none(DType::kF32, {0, 3});
  EXPECT_FALSE(none.empty());
  EXPECT_EQ(none.size(), 0);
}

TEST(Tensor, ConvertsBetweenFloatingPointTypes) {
  Tensor doubles(DType::kF64, {3});
  doubles.data<double>()[0] = 1.0;
  doubles.data<double>()[1] = -0.3;
  doubles.data<double>()[2] = 1e300;
  const Tensor floats = converted(doubles, DType::kF32);
  EXPECT_EQ(floats.f32()[0], 1.0f);
  EXPECT_EQ(floats.f32()[1], -0.3f);
  EXPECT_TRUE(std::isinf(floats.f32()[2]));
  const Tensor brain = converted(floats, DType::kBF16);
  EXPECT_EQ(brain.data<bfloat16>()[1].bits, 0xbe9au);  // -0.3 rounded to 8 bits of mantissa
  EXPECT_EQ(converted(brain, DType::kF32).f32()[1], -0.30078125f);
  const Tensor half = converted(floats, DType::kF16);
  EXPECT_EQ(half.data<uint16_t>()[0], 0x3c00u);
  EXPECT_EQ(half.data<uint16_t>()[1], 0xb4cdu);  // -0.3 rounded to 11 bits of mantissa
  EXPECT_EQ(half.data<uint16_t>()[2], 0x7c00u);  // infinity: too large
  EXPECT_EQ(converted(half, DType::kF32).f32()[1], -0.300048828125f);
}

TEST(Tensor, ConvertsUnalignedStorage) {
  auto bytes = std::make_shared<std::vector<unsigned char>>(9);
  const float value = 2.5f;
  std::memcpy(bytes->data() + 1, &value, 4);
  std::memcpy(bytes->data() + 5, &value, 4);
  const Tensor unaligned(DType::kF32, {2}, std::shared_ptr<void>(bytes, bytes->data() + 1));
  EXPECT_EQ(static_cast<float>(converted(unaligned, DType::kBF16).data<bfloat16>()[1]), 2.5f);
}

TEST(DType, BfloatRoundsToNearestEven) {
  EXPECT_EQ(bfloat16(1.0f).bits, 0x3f80u);
  EXPECT_EQ(bfloat16(std::bit_cast<float>(0x3f808000u)).bits, 0x3f80u);  // halfway, even below
  EXPECT_EQ(bfloat16(std::bit_cast<float>(0x3f818000u)).bits, 0x3f82u);  // halfway, even above
  EXPECT_EQ(bfloat16(std::bit_cast<float>(0x3f808001u)).bits, 0x3f81u);
  EXPECT_TRUE(std::isnan(static_cast<float>(bfloat16(std::bit_cast<float>(0x7f800001u)))));
  EXPECT_TRUE(std::isinf(static_cast<float>(bfloat16(std::numeric_limits<float>::max()))));
}

TEST(DType, HalfIsExact) {
  EXPECT_EQ(half_to_float(0x3c00), 1.0f);
  EXPECT_EQ(half_to_float(0xc000), -2.0f);
  EXPECT_EQ(half_to_float(0x7bff), 65504.0f);
  EXPECT_EQ(half_to_float(0x0001), 0x1p-24f);
  EXPECT_EQ(half_to_float(0x03ff), 1023 * 0x1p-24f);
  EXPECT_EQ(half_to_float(0x0400), 0x1p-14f);
  EXPECT_TRUE(std::signbit(half_to_float(0x8000)));
  EXPECT_TRUE(std::isinf(half_to_float(0x7c00)));
  EXPECT_TRUE(std::isnan(half_to_float(0x7e01)));
}

TEST(DType, NamesAndSizes) {
  EXPECT_EQ(dtype_name(DType::kBF16), "BF16");
  EXPECT_EQ(dtype_size(DType::kBF16), 2u);
  EXPECT_EQ(dtype_size(DType::kF64), 8u);
  EXPECT_EQ(dtype_size(DType::kBool), 1u);
}

}  // namespace
}  // namespace calibatt
