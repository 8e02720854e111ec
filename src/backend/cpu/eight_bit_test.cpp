#include "backend/cpu/eight_bit.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "base/eight_bits.h"
#include "base/random.h"
#include "base/thread_pool.h"

namespace calibatt::cpu {
namespace {

std::vector<double> values_of(const EightBitRows& rows) {
  const int64_t channels = rows.elements.dim(1);
  std::vector<double> values;
  with_eight_bits(rows.elements.dtype(), [&]<class Element>(Element) {
    for (int64_t i = 0; i < rows.elements.size(); ++i) {
      values.push_back(double{static_cast<float>(rows.elements.data<Element>()[i])} * rows.scales.f32()[i / channels]);
    }
  });
  return values;
}

struct CpuEightBit : testing::TestWithParam<DType> {
  std::unique_ptr<Backend> backend = make_cpu_backend();
  EightBitOps& ops = backend->eight_bit_ops();
  LinearFormat format = LinearFormat::eight_bits(GetParam());

  static EightBitRows room(int64_t rows, int64_t channels) {
    return {Tensor(GetParam(), {rows, channels}), Tensor(DType::kF32, {rows})};
  }
  /// What one rounding may be off by: half a unit of 3 bits of mantissa, or of the smallest numbers.
  static double rounding(double value, float scale) {
    return GetParam() == DType::kI8 ? scale * 0.5 : std::max(std::abs(value) / 16, scale * 0x1p-10);
  }
};

TEST_P(CpuEightBit, QuantisedRowsAreNear) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const Activation activation :
         {Activation::kNone, Activation::kGeluTanh, Activation::kSiLU, Activation::kTanh}) {
      const Tensor x = converted(TorchGenerator(1).randn({37, 100}), dtype), wide = converted(x, DType::kF32);
      Tensor expected(DType::kF32, x.shape());
      backend->activate(activation, wide, expected);
      EightBitRows rows = room(37, 100);
      ops.quantise(x, activation, rows);
      const std::vector<double> found = values_of(rows);
      for (int64_t i = 0; i < expected.size(); ++i) {
        const double value = expected.f32()[i];
        ASSERT_NEAR(found[i], value, 1.001 * rounding(value, rows.scales.f32()[i / 100])) << i;
      }
    }
  }
}

TEST_P(CpuEightBit, NormsAreThoseOfTheTransformerQuantised) {
  const Tensor x = TorchGenerator(1).randn({19, 96}), scale = TorchGenerator(2).randn({96}),
               shift = TorchGenerator(3).randn({96});
  for (const bool modulated : {true, false}) {
    const LayerNorm norm{modulated ? &scale : nullptr, modulated ? &shift : nullptr, modulated, 1e-6f};
    Tensor plain(DType::kF32, x.shape());
    backend->layer_norm(x, norm.scale, norm.shift, norm.one_plus_scale, norm.eps, plain);
    EightBitRows expected = room(19, 96), found = room(19, 96);
    ops.quantise(plain, Activation::kNone, expected);
    ops.layer_norm(x, norm, found);
    EXPECT_EQ(values_of(found), values_of(expected));
  }
}

TEST_P(CpuEightBit, RmsNormsAreThoseOfTheTransformerQuantised) {
  const Tensor x = TorchGenerator(1).randn({19, 96}), weight = TorchGenerator(2).randn({96}),
               next = TorchGenerator(3).randn({96}), before = TorchGenerator(4).randn({19, 96});
  Tensor normed(DType::kF32, x.shape());
  EightBitRows expected = room(19, 96), found = room(19, 96);
  backend->rms_norm(x, weight, 1e-6f, normed);
  ops.quantise(normed, Activation::kNone, expected);
  ops.rms_norm(x, weight, 1e-6f, found);
  EXPECT_EQ(values_of(found), values_of(expected));

  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Tensor change = converted(x, dtype);
    Tensor residual = before.clone(), again = before.clone();
    backend->add_rms_norm(change, weight, 1e-6f, residual);
    backend->rms_norm(residual, next, 1e-6f, normed);
    ops.quantise(normed, Activation::kNone, expected);
    ops.add_rms_norm(change, weight, 1e-6f, again, next, found);
    EXPECT_EQ(values_of(found), values_of(expected));
    EXPECT_EQ(std::memcmp(again.raw(), residual.raw(), residual.size_bytes()), 0);
  }
}

TEST_P(CpuEightBit, SwiGluIsThatOfTheTransformerQuantised) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Tensor x = converted(TorchGenerator(1).randn({21, 2 * 80}), dtype);
    Tensor wide(DType::kF32, {21, 80});
    EightBitRows expected = room(21, 80), found = room(21, 80);
    backend->swiglu(converted(x, DType::kF32), wide);
    ops.quantise(wide, Activation::kNone, expected);
    ops.swiglu(x, found);
    EXPECT_EQ(values_of(found), values_of(expected));
  }
}

/// The product of exactly what the 8 bits stand for.
TEST_P(CpuEightBit, LinearMultipliesWhatTheBitsStandFor) {
  constexpr int64_t kRows = 1100, kIn = 48, kOut = 33;
  const Tensor weight = TorchGenerator(1).randn({kOut, kIn}), bias = TorchGenerator(2).randn({kOut}),
               gate = TorchGenerator(3).randn({kOut}), x = TorchGenerator(4).randn({kRows, kIn}),
               before = TorchGenerator(5).randn({kRows, kOut});
  EightBitRows input = room(kRows, kIn), weights = room(kOut, kIn);
  ops.quantise(x, Activation::kNone, input);
  ops.quantise(weight, Activation::kNone, weights);
  const std::vector<double> a = values_of(input), b = values_of(weights);
  const auto layer = backend->make_linear(weight, bias, format);
  EXPECT_EQ(layer->dtype(), GetParam());
  EXPECT_EQ(layer->in_features(), kIn);
  EXPECT_EQ(layer->out_features(), kOut);
  for (const bool adds : {false, true}) {
    for (const DType out_dtype : {DType::kF32, DType::kBF16}) {
      if (adds && out_dtype != DType::kF32) continue;
      Tensor out = converted(before, out_dtype).clone();
      ops.linear(*layer, input, out, {.accumulate = adds, .gate = adds ? &gate : nullptr});
      const Tensor found = converted(out, DType::kF32);
      const double tolerance = out_dtype == DType::kF32 ? 2e-5 : 0x1p-8;
      for (int64_t i = 0; i < found.size(); i += 7) {
        const int64_t row = i / kOut, column = i % kOut;
        double sum = bias.f32()[column];
        for (int64_t k = 0; k < kIn; ++k) sum += a[row * kIn + k] * b[column * kIn + k];
        if (adds) sum = before.f32()[i] + gate.f32()[column] * sum;
        ASSERT_NEAR(found.f32()[i], sum, tolerance * (1 + std::abs(sum))) << i;
      }
    }
  }
}

TEST_P(CpuEightBit, ResultsDoNotDependOnTheNumberOfThreads) {
  const Tensor x = TorchGenerator(4).randn({300, 64});
  const auto layer = backend->make_linear(TorchGenerator(1).randn({40, 64}), {}, format);
  Tensor first(DType::kF32, {300, 40}), again(DType::kF32, {300, 40});
  for (Tensor* out : {&first, &again}) {
    set_num_threads(out == &first ? 1 : 5);
    EightBitRows rows = room(300, 64);
    ops.quantise(x, Activation::kGeluTanh, rows);
    ops.linear(*layer, rows, *out);
  }
  set_num_threads(0);
  EXPECT_EQ(std::memcmp(first.raw(), again.raw(), first.size_bytes()), 0);
}

TEST_P(CpuEightBit, StackedMatricesHaveScalesOfTheirOwnRows) {
  const Tensor small = TorchGenerator(1).randn({4, 32});
  Tensor large = TorchGenerator(2).randn({4, 32});
  for (int64_t i = 0; i < large.size(); ++i) large.f32()[i] *= 1000;
  const auto stacked =
      backend->load_linear({{{converted(small, DType::kBF16), "small"}, {large, "large"}}, {}, format, {}});
  const auto alone = backend->make_linear(converted(small, DType::kBF16), {}, format);
  EightBitRows rows = room(5, 32);
  ops.quantise(TorchGenerator(3).randn({5, 32}), Activation::kNone, rows);
  Tensor all(DType::kF32, {5, 8}), first(DType::kF32, {5, 4});
  ops.linear(*stacked, rows, all);
  ops.linear(*alone, rows, first);
  for (int64_t row = 0; row < 5; ++row) {
    for (int64_t i = 0; i < 4; ++i) EXPECT_NEAR(all.f32()[row * 8 + i], first.f32()[row * 4 + i], 1e-5);
  }
}

INSTANTIATE_TEST_SUITE_P(Types, CpuEightBit, testing::Values(DType::kE4M3, DType::kI8),
                         [](const auto& info) { return info.param == DType::kI8 ? "int8" : "e4m3"; });

}  // namespace
}  // namespace calibatt::cpu
