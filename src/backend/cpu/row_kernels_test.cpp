#include "backend/cpu/row_kernels.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <functional>
#include <vector>

#include "base/random.h"

namespace calibatt::cpu {
namespace {

using Row = std::vector<float>;
using HalfRow = std::vector<bfloat16>;

/// Shorter than a vector, whole vectors, tails of all kinds.
constexpr int64_t kSizes[] = {1, 2, 6, 16, 40, 67, 256};

Row random_row(int64_t size, uint64_t seed) {
  Row row(static_cast<size_t>(size));
  TorchGenerator(seed).randn(row);
  return row;
}
HalfRow rounded(const Row& row) {
  HalfRow half;
  for (const float value : row) half.emplace_back(value);
  return half;
}
Row wide(const HalfRow& half) {
  Row row;
  for (const bfloat16 value : half) row.push_back(static_cast<float>(value));
  return row;
}

void expect_near(const Row& actual, const Row& expected, double relative) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    EXPECT_NEAR(actual[i], expected[i], relative * (std::abs(expected[i]) + 0.1)) << "element " << i;
  }
}
constexpr double kFloat = 1e-5;
const double kHalf = std::ldexp(1.0, -8);  // half a unit in the last of 8 bits, for values just above a power of two

/// Runs a check once with each instruction set that this processor and this build have.
void on_every_target(const std::function<void()>& check) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    check();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

Row expected_rms_norm(const Row& x, const Row& weight, double eps) {
  double square_sum = 0;
  for (const float v : x) square_sum += double{v} * v;
  const double inverse = 1 / std::sqrt(square_sum / static_cast<double>(x.size()) + eps);
  Row out;
  for (size_t i = 0; i < x.size(); ++i) out.push_back(static_cast<float>(x[i] * inverse * weight[i]));
  return out;
}

TEST(RowKernels, NarrowRoundsToNearestEvenAndWidenIsExact) {
  on_every_target([] {
    for (const int64_t size : kSizes) {
      Row x = random_row(size, 1);
      x[0] = 1.00390625f;  // exactly between two: the even one
      HalfRow half(x.size());
      narrow(x.data(), half.data(), size);
      for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(half[i].bits, bfloat16(x[i]).bits);
      Row back(x.size());
      widen(half.data(), back.data(), size);
      EXPECT_EQ(back, wide(half));
    }
  });
}

TEST(RowKernels, NarrowKeepsInfinityAndNan) {
  on_every_target([] {
    const Row x(20, INFINITY);
    Row y(20, NAN);
    HalfRow half(20);
    narrow(x.data(), half.data(), 20);
    for (const float value : wide(half)) EXPECT_EQ(value, INFINITY);
    narrow(y.data(), half.data(), 20);
    for (const float value : wide(half)) EXPECT_TRUE(std::isnan(value));
  });
}

TEST(RowKernels, LayerNorm) {
  on_every_target([] {
    for (const int64_t size : kSizes) {
      Row x = random_row(size, 2);
      for (float& value : x) value = 3 * value + 100;  // a mean far from zero: a one-pass variance would lose it
      const Row scale = random_row(size, 3), shift = random_row(size, 4);
      double mean = 0, variance = 0;
      for (const float v : x) mean += v / static_cast<double>(size);
      for (const float v : x) variance += (v - mean) * (v - mean) / static_cast<double>(size);
      Row plain, affine, adaptive;
      for (size_t i = 0; i < x.size(); ++i) {
        const double v = (x[i] - mean) / std::sqrt(variance + 1e-6);
        plain.push_back(static_cast<float>(v));
        affine.push_back(static_cast<float>(v * scale[i] + shift[i]));
        adaptive.push_back(static_cast<float>(v * (1 + scale[i]) + shift[i]));
      }
      Row out(x.size());
      layer_norm_row(x.data(), {.eps = 1e-6f}, out.data(), size);
      expect_near(out, plain, 1e-4);
      layer_norm_row(x.data(), {scale.data(), shift.data(), false, 1e-6f}, out.data(), size);
      expect_near(out, affine, 1e-4);
      HalfRow half(x.size());
      layer_norm_row(x.data(), {scale.data(), shift.data(), true, 1e-6f}, half.data(), size);
      expect_near(wide(half), adaptive, kHalf);
    }
  });
}

TEST(RowKernels, RmsNorm) {
  on_every_target([] {
    for (const int64_t size : kSizes) {
      const Row x = random_row(size, 5), weight = random_row(size, 6);
      Row out(x.size());
      rms_norm_row(x.data(), weight.data(), 1e-6f, out.data(), size);
      expect_near(out, expected_rms_norm(x, weight, 1e-6), kFloat);
      HalfRow half(x.size());
      rms_norm_row(x.data(), weight.data(), 1e-6f, half.data(), size);
      expect_near(wide(half), expected_rms_norm(x, weight, 1e-6), kHalf);
      half = rounded(x);
      const Row expected = expected_rms_norm(wide(half), weight, 1e-6);
      rms_norm_row(half.data(), weight.data(), 1e-6f, half.data(), size);  // in place
      expect_near(wide(half), expected, kHalf);
    }
  });
}

TEST(RowKernels, NormAndRotate) {
  on_every_target([] {
    for (const int64_t head_dim : {2, 16, 24, 40, 64, 128}) {
      for (const bool norm : {false, true}) {
        constexpr int64_t kHeads = 3;
        const Row x = wide(rounded(random_row(kHeads * head_dim, 7))), weight = random_row(kHeads * head_dim, 8);
        const Row angle = random_row(head_dim / 2, 9);
        Row cos, signed_sin, expected = norm ? expected_rms_norm(x, weight, 1e-6) : x;
        for (const float a : angle) {
          cos.insert(cos.end(), 2, std::cos(a));
          signed_sin.push_back(-std::sin(a));
          signed_sin.push_back(std::sin(a));
        }
        const Row unrotated = expected;
        for (int64_t i = 0; i < kHeads * head_dim; i += 2) {
          const int64_t pair = i % head_dim / 2;
          const double a = expected[i], b = expected[i + 1], c = std::cos(angle[pair]), s = std::sin(angle[pair]);
          expected[i] = static_cast<float>(a * c - b * s);
          expected[i + 1] = static_cast<float>(a * s + b * c);
        }
        const float* factors = norm ? weight.data() : nullptr;
        Row out = x;
        norm_and_rotate_row(out.data(), factors, 1e-6f, cos.data(), signed_sin.data(), kHeads, head_dim);
        expect_near(out, expected, kFloat);
        HalfRow half = rounded(x);
        norm_and_rotate_row(half.data(), factors, 1e-6f, cos.data(), signed_sin.data(), kHeads, head_dim);
        expect_near(wide(half), expected, kHalf);
        out = x;
        norm_and_rotate_row(out.data(), factors, 1e-6f, nullptr, nullptr, kHeads, head_dim);
        expect_near(out, unrotated, kFloat);
      }
    }
  });
}

TEST(RowKernels, Arithmetic) {
  on_every_target([] {
    for (const int64_t size : kSizes) {
      const Row a = random_row(size, 10), b = random_row(size, 11), c = random_row(size, 12);
      Row product, sum, fused, scaled;
      double square_sum = 0, inner = 0, magnitude = 0;
      for (size_t i = 0; i < a.size(); ++i) {
        product.push_back(a[i] * b[i]);
        sum.push_back(a[i] + b[i]);
        fused.push_back(c[i] + a[i] * b[i]);
        scaled.push_back(c[i] + 0.75f * a[i]);
        square_sum += double{a[i]} * a[i];
        inner += double{a[i]} * b[i];
        magnitude += std::abs(double{a[i]} * b[i]);
      }
      Row out(a.size());
      multiply(a.data(), b.data(), out.data(), size);
      expect_near(out, product, kFloat);
      add(a.data(), b.data(), out.data(), size);
      expect_near(out, sum, kFloat);
      out = c;
      multiply_add(a.data(), b.data(), out.data(), size);
      expect_near(out, fused, kFloat);
      out = c;
      add_scaled(a.data(), 0.75f, out.data(), size);
      expect_near(out, scaled, kFloat);
      EXPECT_NEAR(sum_of_squares(a.data(), size), square_sum, 1e-6 * square_sum);
      EXPECT_NEAR(dot(a.data(), b.data(), size), inner, 1e-6 * magnitude);
      HalfRow half(a.size());
      multiply(rounded(a).data(), rounded(b).data(), half.data(), size);
      const Row half_a = wide(rounded(a)), half_b = wide(rounded(b));
      for (size_t i = 0; i < a.size(); ++i) EXPECT_EQ(half[i].bits, bfloat16(half_a[i] * half_b[i]).bits);
    }
  });
}

TEST(RowKernels, GeluOfSmallAndLargeNumbers) {
  on_every_target([] {
    for (const int64_t size : kSizes) {
      Row x = random_row(size, 13);
      for (size_t i = 0; i < x.size(); ++i) x[i] *= i % 3 == 0 ? 100.0f : 1.0f;
      Row out = x, expected = x;
      gelu_tanh(out.data(), size);
      for (float& v : expected) {
        const double u = std::sqrt(2 / M_PI) * (v + 0.044715 * std::pow(double{v}, 3));
        v = static_cast<float>(0.5 * v * (1 + std::tanh(u)));
      }
      expect_near(out, expected, kFloat);
    }
  });
}

TEST(RowKernels, SoftmaxOfLargeLogitsDoesNotOverflow) {
  on_every_target([] {
    for (const int64_t size : kSizes) {
      Row logits = random_row(size, 13);
      for (float& value : logits) value = 10 * value + 500;
      const Row before = logits;
      const double largest = *std::max_element(before.begin(), before.end());
      double expected_sum = 0;
      for (const float value : before) expected_sum += std::exp(value - largest);
      EXPECT_NEAR(softmax_row(logits.data(), size), expected_sum, 1e-5 * expected_sum);
      for (size_t i = 0; i < before.size(); ++i) EXPECT_NEAR(logits[i], std::exp(before[i] - largest), 1e-6);
    }
  });
}

}  // namespace
}  // namespace calibatt::cpu
