#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/device/device.h"
#include "base/random.h"

namespace calibatt::cuda {

/// Half a unit in the last place of bfloat16, relative: what one rounding may be off by.
inline const double kHalfRounding = std::ldexp(1.0, -9);

/// What one rounding to dtype may be off by.
inline double rounding_of(DType dtype) {
  return dtype == DType::kF16 ? kHalfRounding / 8 : dtype == DType::kBF16 ? kHalfRounding : kHalfRounding / (1 << 15);
}

/// A test of the CUDA backend against the CPU's, on the same inputs.
class BackendPair : public testing::Test {
 protected:
  void SetUp() override {
    if (num_devices() == 0) GTEST_SKIP() << "no CUDA device";
    gpu = make_cuda_backend();
  }

  /// Standard normal numbers, rounded to dtype; on the host.
  static Tensor random(std::vector<int64_t> shape, DType dtype = DType::kF32, uint64_t seed = 1) {
    return converted(TorchGenerator(seed).randn(std::move(shape)), dtype);
  }
  /// Halves are floats on the CPU, which has no arithmetic on them: the same values in F32.
  static DType cpu_type(DType dtype) { return dtype == DType::kF16 ? DType::kF32 : dtype; }
  static Tensor for_cpu(const Tensor& tensor) { return converted(tensor, cpu_type(tensor.dtype())); }
  Tensor to_gpu(const Tensor& host) const { return gpu->from_host(host); }
  Tensor from_gpu(const Tensor& device) const { return gpu->to_host(device); }

  /// ‖actual − expected‖ / ‖expected‖ ≤ bound, with `actual` on the GPU; no element may be far off either.
  void expect_close(const Tensor& actual, const Tensor& expected, double bound) const {
    const Tensor found = converted(from_gpu(actual), DType::kF32), wanted = converted(expected, DType::kF32);
    ASSERT_EQ(found.size(), wanted.size());
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < wanted.size(); ++i) {
      const double each = double{found.f32()[i]} - wanted.f32()[i];
      ASSERT_TRUE(std::isfinite(each)) << "element " << i << ": " << found.f32()[i];
      difference += each * each;
      norm += double{wanted.f32()[i]} * wanted.f32()[i];
    }
    EXPECT_LE(std::sqrt(difference), bound * std::sqrt(norm));
    // No single element hides behind the others. One near a tie may be rounded the other way: a unit of its own.
    const double scale = std::sqrt(norm / static_cast<double>(wanted.size()));
    for (int64_t i = 0; i < wanted.size(); ++i) {
      const double value = wanted.f32()[i], each = found.f32()[i] - value;
      ASSERT_LE(std::abs(each), bound * (16 * scale + 4 * std::abs(value))) << "element " << i << ": " << value;
    }
  }
  void expect_same(const Tensor& actual, const Tensor& expected) const {
    const Tensor found = from_gpu(actual);
    ASSERT_EQ(found.size_bytes(), expected.size_bytes());
    EXPECT_EQ(std::memcmp(found.raw(), expected.raw(), expected.size_bytes()), 0);
  }

  std::unique_ptr<Backend> cpu = cpu::make_cpu_backend();
  std::unique_ptr<Backend> gpu;
};

}  // namespace calibatt::cuda
