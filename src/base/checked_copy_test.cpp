#include "base/checked_copy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "base/random.h"

namespace calibatt {
namespace {

constexpr int64_t kCount = (int64_t{1} << 18) * 2 + 77;  // more than two parts of the parallel loop

TEST(CheckedCopy, EqualsAConversionFromAnyAddress) {
  const Tensor wide = TorchGenerator(3).randn({kCount});
  for (const DType from : {DType::kF32, DType::kBF16}) {
    const Tensor stored = converted(wide, from);
    std::vector<unsigned char> shifted(stored.size_bytes() + 1);
    std::memcpy(shifted.data() + 1, stored.raw(), stored.size_bytes());
    for (const DType to : {DType::kF32, DType::kBF16, DType::kF16}) {
      const Tensor expected = converted(stored, to);
      Tensor found(to, {kCount});
      EXPECT_TRUE(checked_copy(shifted.data() + 1, from, found.raw(), to, kCount).finite);
      EXPECT_EQ(std::memcmp(found.raw(), expected.raw(), expected.size_bytes()), 0);
    }
  }
}

TEST(CheckedCopy, HalvesAndDoubles) {
  const std::vector<uint16_t> halves{0x3c00, 0xc000, 0x7bff, 0x0001};  // 1, -2, the largest, the smallest
  std::vector<float> found(halves.size());
  EXPECT_TRUE(checked_copy(halves.data(), DType::kF16, found.data(), DType::kF32, 4).finite);
  EXPECT_EQ(found, (std::vector<float>{1, -2, 65504, 0x1p-24f}));
  const std::vector<double> doubles{1.5, -3};
  EXPECT_TRUE(checked_copy(doubles.data(), DType::kF64, found.data(), DType::kF32, 2).finite);
  EXPECT_EQ(found[1], -3);
}

TEST(CheckedCopy, FindsWhatIsNotFiniteWhereverItIs) {
  Tensor target(DType::kF32, {kCount}), narrow(DType::kBF16, {kCount});
  for (const int64_t place : {int64_t{0}, kCount / 2, kCount - 1}) {
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      Tensor tensor = Tensor::zeros(DType::kF32, {kCount});
      tensor.f32()[place] = bad;
      EXPECT_FALSE(checked_copy(tensor.raw(), DType::kF32, target.raw(), DType::kF32, kCount).finite);
      EXPECT_FALSE(checked_copy(tensor.raw(), DType::kF32, narrow.raw(), DType::kBF16, kCount).finite);
      const Tensor stored = converted(tensor, DType::kBF16);
      EXPECT_FALSE(checked_copy(stored.raw(), DType::kBF16, narrow.raw(), DType::kBF16, kCount).finite);
      EXPECT_FALSE(all_finite(stored));
      EXPECT_TRUE(std::isnan(target.f32()[place]) == std::isnan(bad)) << "what is bad is copied, too";
    }
  }
}

TEST(CheckedCopy, FindsWhatIsConstant) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kF64}) {
    Tensor wide = Tensor::zeros(DType::kF32, {kCount});
    const auto check = [&] {
      Tensor stored(dtype, {kCount});
      if (dtype == DType::kF64) {
        std::copy_n(wide.f32(), kCount, stored.data<double>());
      } else {
        convert_elements(wide.raw(), DType::kF32, stored.raw(), dtype, kCount);
      }
      Tensor copy(DType::kF32, {kCount});
      const bool copied = checked_copy(stored.raw(), dtype, copy.raw(), DType::kF32, kCount).constant;
      EXPECT_EQ(copied, check_values(stored).constant);
      return copied;
    };
    EXPECT_TRUE(check()) << dtype_name(dtype);
    std::fill_n(wide.f32(), kCount, 0.75f);
    EXPECT_TRUE(check()) << dtype_name(dtype);
    for (const int64_t place : {int64_t{0}, kCount / 2, kCount - 1}) {
      wide.f32()[place] = 0.5f;
      EXPECT_FALSE(check()) << dtype_name(dtype) << " " << place;
      wide.f32()[place] = 0.75f;
    }
    std::fill_n(wide.f32(), int64_t{1} << 18, 0.5f);  // each part of the loop is constant, in itself
    EXPECT_FALSE(check()) << dtype_name(dtype);
  }
}

}  // namespace
}  // namespace calibatt
