#include "backend/cuda/eight_bit.h"

#include <algorithm>
#include <limits>
#include <string>

#include "backend/cuda/backend_pair.h"
#include "backend/stored_linear.h"
#include "backend/streamed_weights.h"
#include "base/eight_bits.h"
#include "base/error.h"

namespace calibatt::cuda {
namespace {

struct Shape {
  int64_t rows, in, out;
};
std::ostream& operator<<(std::ostream& stream, const Shape& shape) {
  return stream << shape.rows << " x " << shape.in << " -> " << shape.out;
}

/// 8-bit rows on both backends. Bits are compared where both round the same numbers; where the numbers themselves are
/// made in another order, one near a tie may fall on its other side.
class CudaEightBit : public BackendPair, public testing::WithParamInterface<DType> {
 protected:
  void SetUp() override {
    BackendPair::SetUp();
    if (IsSkipped()) return;
    try {
      gpu->eight_bit_ops();
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
  }
  static EightBitRows room(Backend& backend, int64_t rows, int64_t channels) {
    return {backend.empty(GetParam(), {rows, channels}), backend.empty(DType::kF32, {rows})};
  }
  EightBitRows quantised(Backend& backend, const Tensor& x, Activation activation = Activation::kNone) {
    EightBitRows rows = room(backend, x.dim(0), x.dim(1));
    backend.eight_bit_ops().quantise(x, activation, rows);
    return rows;
  }
  /// Host F32: what the bits stand for.
  static Tensor values_of(const Tensor& elements, const Tensor& scales) {
    Tensor values(DType::kF32, elements.shape());
    const int64_t channels = elements.dim(1);
    with_eight_bits(elements.dtype(), [&]<class Element>(Element) {
      for (int64_t row = 0; row < elements.dim(0); ++row) {
        dequantise_row(elements.data<Element>() + row * channels, scales.f32()[row], values.f32() + row * channels,
                       channels);
      }
    });
    return values;
  }
  void expect_same_rows(const EightBitRows& found, const EightBitRows& expected) const {
    expect_same(found.elements, expected.elements);
    expect_same(found.scales, expected.scales);
  }
  /// But for a few that fell on the other side of a tie.
  void expect_rows_near(const EightBitRows& found, const EightBitRows& expected) const {
    const Tensor elements = from_gpu(found.elements), scales = from_gpu(found.scales);
    const Tensor a = values_of(elements, scales), b = values_of(expected.elements, expected.scales);
    int64_t others = 0;
    for (int64_t i = 0; i < b.size(); ++i) {
      const double value = b.f32()[i], scale = expected.scales.f32()[i / b.dim(1)], smallest = scale * 0x1p-9;
      const double step = GetParam() == DType::kI8 ? scale : std::max(std::abs(value) / 8, smallest);
      ASSERT_NEAR(a.f32()[i], value, 1.01 * step) << i;
      if (std::abs(a.f32()[i] - value) > 1e-4 * std::abs(value) + 1e-3 * smallest) ++others;
    }
    EXPECT_LE(others, b.size() / 500 + 1);
  }
};

TEST_P(CudaEightBit, RowsHaveTheSameBitsAsOnTheCpu) {
  for (const auto& [rows, channels] :
       {std::pair<int64_t, int64_t>{1, 16}, {5, 19}, {7, 1536}, {33, 5120}, {3, 13824}, {2, 16384}, {4, 4090}}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      SCOPED_TRACE(testing::Message() << rows << " x " << channels << " " << dtype_name(dtype));
      Tensor x = random({rows, channels}, DType::kF32, static_cast<uint64_t>(channels));
      for (int64_t i = 0; i < x.size(); ++i) x.f32()[i] *= std::ldexp(1.0f, static_cast<int>(i % 37) - 18);
      x = converted(x, dtype);
      expect_same_rows(quantised(*gpu, to_gpu(x)), quantised(*cpu, x));
    }
  }
}

TEST_P(CudaEightBit, ZerosTinyNumbersAndNaN) {
  Tensor x = Tensor::zeros(DType::kF32, {4, 64});
  x.f32()[64] = 1e-38f;
  x.f32()[128] = std::numeric_limits<float>::quiet_NaN();
  x.f32()[129] = 3;
  for (int64_t i = 192; i < 256; ++i) x.f32()[i] = static_cast<float>(i);
  const EightBitRows found = quantised(*gpu, to_gpu(x)), expected = quantised(*cpu, x);
  const Tensor values = values_of(from_gpu(found.elements), from_gpu(found.scales));
  EXPECT_EQ(values.f32()[0], 0);
  EXPECT_TRUE(std::isnan(values.f32()[128]));
  if (GetParam() == DType::kI8) {  // which has no NaN: none of the row is a number
    EXPECT_TRUE(std::isnan(from_gpu(found.scales).f32()[2]));
    EXPECT_TRUE(std::isnan(expected.scales.f32()[2]));
    EXPECT_EQ(from_gpu(found.scales).f32()[3], expected.scales.f32()[3]);
    return;
  }
  expect_same(found.scales, expected.scales);
  EXPECT_FLOAT_EQ(values.f32()[129], 3);
  EXPECT_EQ(values.f32()[130], 0);
}

TEST_P(CudaEightBit, ActivationsAreQuantised) {
  for (const Activation activation : {Activation::kGeluTanh, Activation::kSiLU, Activation::kTanh}) {
    for (const int64_t channels : {48, 1001, 8960, 13824}) {
      SCOPED_TRACE(testing::Message() << static_cast<int>(activation) << ", " << channels);
      const Tensor x = random({9, channels}, DType::kBF16, 3);
      expect_rows_near(quantised(*gpu, to_gpu(x), activation), quantised(*cpu, x, activation));
    }
  }
}

TEST_P(CudaEightBit, NormsAreQuantised) {
  for (const int64_t channels : {32, 99, 384, 1536, 5120}) {
    const Tensor x = random({11, channels}), scale = random({channels}, DType::kF32, 2),
                 shift = random({channels}, DType::kF32, 3);
    const Tensor gpu_scale = to_gpu(scale), gpu_shift = to_gpu(shift);
    for (const bool modulated : {true, false}) {
      SCOPED_TRACE(testing::Message() << channels << (modulated ? ", modulated" : ""));
      EightBitRows found = room(*gpu, 11, channels), expected = room(*cpu, 11, channels);
      gpu->eight_bit_ops().layer_norm(
          to_gpu(x), {modulated ? &gpu_scale : nullptr, modulated ? &gpu_shift : nullptr, modulated, 1e-6f}, found);
      cpu->eight_bit_ops().layer_norm(x, {modulated ? &scale : nullptr, modulated ? &shift : nullptr, modulated, 1e-6f},
                                      expected);
      expect_rows_near(found, expected);
    }
  }
}

/// More rows than a GPU has blocks for at a time: every block takes some, one after the other.
TEST_P(CudaEightBit, ManyRows) {
  struct Rows {
    int64_t count, channels;
  };
  for (const auto& [rows, channels] : {Rows{9000, 64}, {5001, 1536}, {1301, 5120}, {901, 8960}, {801, 13824}}) {
    SCOPED_TRACE(testing::Message() << rows << " x " << channels);
    Tensor x = random({rows, channels}, DType::kBF16);
    for (int64_t i = 0; i < x.size(); i += 7) x.data<bfloat16>()[i] = bfloat16(static_cast<float>(i % 97) / 16);
    const Tensor gpu_x = to_gpu(x);
    expect_same_rows(quantised(*gpu, gpu_x), quantised(*cpu, x));
    expect_rows_near(quantised(*gpu, gpu_x, Activation::kGeluTanh), quantised(*cpu, x, Activation::kGeluTanh));
    EightBitRows found = room(*gpu, rows / 2, channels), expected = room(*cpu, rows / 2, channels);
    gpu->eight_bit_ops().swiglu(Tensor(DType::kBF16, {rows / 2, 2 * channels}, gpu_x.storage()), found);
    cpu->eight_bit_ops().swiglu(Tensor(DType::kBF16, {rows / 2, 2 * channels}, x.storage()), expected);
    expect_rows_near(found, expected);
    if (channels > 5120) continue;
    const Tensor wide = converted(x, DType::kF32), scale = random({channels}, DType::kF32, 2);
    const Tensor gpu_scale = to_gpu(scale);
    found = room(*gpu, rows, channels), expected = room(*cpu, rows, channels);
    gpu->eight_bit_ops().layer_norm(to_gpu(wide), {&gpu_scale, &gpu_scale, true, 1e-6f}, found);
    cpu->eight_bit_ops().layer_norm(wide, {&scale, &scale, true, 1e-6f}, expected);
    expect_rows_near(found, expected);
  }
}

TEST_P(CudaEightBit, RmsNormsAreQuantised) {
  for (const int64_t channels : {32, 99, 384, 3072, 5120}) {
    const Tensor x = random({11, channels}), weight = random({channels}, DType::kF32, 2),
                 next = random({channels}, DType::kF32, 3), before = random({11, channels}, DType::kF32, 4);
    EightBitRows found = room(*gpu, 11, channels), expected = room(*cpu, 11, channels);
    SCOPED_TRACE(testing::Message() << channels);
    gpu->eight_bit_ops().rms_norm(to_gpu(x), to_gpu(weight), 1e-6f, found);
    cpu->eight_bit_ops().rms_norm(x, weight, 1e-6f, expected);
    expect_rows_near(found, expected);
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const Tensor change = random({11, channels}, dtype, 5);
      Tensor residual = to_gpu(before), plain = to_gpu(before), expected_residual = before.clone();
      gpu->eight_bit_ops().add_rms_norm(to_gpu(change), to_gpu(weight), 1e-6f, residual, to_gpu(next), found);
      cpu->eight_bit_ops().add_rms_norm(change, weight, 1e-6f, expected_residual, next, expected);
      expect_rows_near(found, expected);
      gpu->add_rms_norm(to_gpu(change), to_gpu(weight), 1e-6f, plain);
      expect_same(residual, from_gpu(plain));
    }
  }
}

/// Rows of one and of several units of a thread, of Mochi's feed-forward (8,192) and wider.
TEST_P(CudaEightBit, SwiGluIsQuantised) {
  for (const int64_t channels : {16, 99, 1024, 4096, 8192, 16384}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      SCOPED_TRACE(testing::Message() << channels << " " << dtype_name(dtype));
      const Tensor x = random({9, 2 * channels}, dtype, 3);
      EightBitRows found = room(*gpu, 9, channels), expected = room(*cpu, 9, channels);
      gpu->eight_bit_ops().swiglu(to_gpu(x), found);
      cpu->eight_bit_ops().swiglu(x, expected);
      expect_rows_near(found, expected);
    }
  }
}

/// A gate that is far below zero makes zero, not NaN.
TEST_P(CudaEightBit, SwiGluOfLargeGates) {
  Tensor x(DType::kF32, {1, 64});
  for (int64_t i = 0; i < 32; ++i) x.f32()[i] = 1, x.f32()[32 + i] = static_cast<float>(i - 16) * 20;
  EightBitRows found = room(*gpu, 1, 32), expected = room(*cpu, 1, 32);
  gpu->eight_bit_ops().swiglu(to_gpu(x), found);
  cpu->eight_bit_ops().swiglu(x, expected);
  expect_rows_near(found, expected);
}

/// Hopper's tensor cores keep about 14 bits of an 8-bit sum: the bound is of them, relative to the sum's terms, which
/// is about 1 here. Else roundings to bf16 that the CPU does not make: the output's and the bias's.
constexpr double kSums = 0x1p-11;
constexpr Shape kShapes[] = {{1, 64, 32},       {17, 64, 64},    {33, 384, 1536}, {130, 512, 5120},
                             {600, 1024, 2048}, {16, 13824, 64}, {4095, 96, 96}};

TEST_P(CudaEightBit, LinearEqualsTheCpu) {
  for (const Shape& shape : kShapes) {
    for (const bool with_bias : {true, false}) {
      Tensor weight = random({shape.out, shape.in}, DType::kF32, 2);
      for (int64_t i = 0; i < weight.size(); ++i) weight.f32()[i] /= std::sqrt(static_cast<float>(shape.in));
      weight = converted(weight, DType::kBF16);
      const Tensor bias = with_bias ? random({shape.out}, DType::kF32, 3) : Tensor();
      const auto cpu_layer = cpu->make_linear(weight, bias, LinearFormat::eight_bits(GetParam()));
      const auto gpu_layer = gpu->make_linear(weight, bias, LinearFormat::eight_bits(GetParam()));
      const Tensor x = random({shape.rows, shape.in}, DType::kBF16);
      const EightBitRows input = quantised(*cpu, x), gpu_input = quantised(*gpu, to_gpu(x));
      const Tensor gate = random({shape.out}, DType::kF32, 7), gpu_gate = to_gpu(gate);
      const Tensor residual = random({shape.rows, shape.out}, DType::kF32, 8);
      for (const Activation activation : {Activation::kNone, Activation::kGeluTanh, Activation::kSiLU}) {
        SCOPED_TRACE(testing::Message() << shape << (with_bias ? "" : " without bias") << ", activation "
                                        << static_cast<int>(activation));
        for (const DType out_dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
          Tensor expected(DType::kF32, residual.shape()), found = gpu->empty(out_dtype, residual.shape());
          cpu->eight_bit_ops().linear(*cpu_layer, input, expected, {.activation = activation});
          gpu->eight_bit_ops().linear(*gpu_layer, gpu_input, found, {.activation = activation});
          expect_close(found, expected, kSums + 3 * kHalfRounding);
        }
        for (const bool gated : {false, true}) {
          Tensor expected = residual.clone(), found = to_gpu(residual);
          cpu->eight_bit_ops().linear(*cpu_layer, input, expected,
                                      {.activation = activation, .accumulate = true, .gate = gated ? &gate : nullptr});
          gpu->eight_bit_ops().linear(
              *gpu_layer, gpu_input, found,
              {.activation = activation, .accumulate = true, .gate = gated ? &gpu_gate : nullptr});
          expect_close(found, expected, kSums + 3 * kHalfRounding);
        }
      }
    }
  }
}

TEST_P(CudaEightBit, LargeProductsAreTunedAndStayTheSame) {
  constexpr Shape kShape{2048, 2048, 16384};
  const Tensor weight = random({kShape.out, kShape.in}, DType::kBF16, 2), x = random({kShape.rows, kShape.in});
  const auto layer = gpu->make_linear(weight, {}, LinearFormat::eight_bits(GetParam()));
  const EightBitRows input = quantised(*gpu, to_gpu(x));
  Tensor first = to_gpu(Tensor::zeros(DType::kF32, {kShape.rows, kShape.out})), second = to_gpu(from_gpu(first));
  gpu->eight_bit_ops().linear(*layer, input, first, {.accumulate = true});
  gpu->eight_bit_ops().linear(*layer, input, second, {.accumulate = true});
  expect_same(second, from_gpu(first));  // a trial that added to the sum would be seen
}

TEST_P(CudaEightBit, LoadedAndStreamedWeightsAreThoseMadeOnTheHost) {
  const Tensor first = random({64, 96}, DType::kBF16, 1), second = random({32, 96}, DType::kF32, 2),
               bias = random({96}, DType::kF32, 3);
  StoredLinear stored{
      {{first, "first"}, {second, "second"}}, {{bias, "bias"}}, LinearFormat::eight_bits(GetParam()), nullptr};
  const auto resident = gpu->load_linear(stored);
  const auto group = gpu->make_streamed_weights(Backend::streamed_bytes(96, 96, GetParam()));
  stored.streamed = group;
  const auto streamed = gpu->load_linear(stored);
  group->seal();
  EXPECT_EQ(resident->dtype(), GetParam());

  const EightBitRows weights = quantised(*cpu, stack_rows({{first, "first"}, {second, "second"}}, DType::kF32));
  const Tensor expected = converted(values_of(weights.elements, weights.scales), DType::kBF16);
  expect_same(gpu->weight_of(*resident, {}), expected);
  const EightBitRows input = quantised(*gpu, to_gpu(random({40, 96})));
  Tensor a = gpu->empty(DType::kBF16, {40, 96}), b = gpu->empty(DType::kBF16, {40, 96});
  gpu->eight_bit_ops().linear(*resident, input, a);
  {
    const WeightsInUse in_use(group, nullptr);
    expect_same(gpu->weight_of(*streamed, {}), expected);
    gpu->eight_bit_ops().linear(*streamed, input, b);
  }
  expect_same(b, from_gpu(a));
}

TEST_P(CudaEightBit, WidthsThatTensorCoresDoNotTakeAreRefused) {
  try {
    gpu->make_linear(random({32, 40}), {}, LinearFormat::eight_bits(GetParam()));
    FAIL() << "made";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("40 inputs and 32 outputs in 8 bits"), std::string::npos) << error.what();
  }
}

INSTANTIATE_TEST_SUITE_P(Types, CudaEightBit, testing::Values(DType::kE4M3, DType::kI8),
                         [](const auto& info) { return info.param == DType::kI8 ? "int8" : "e4m3"; });

}  // namespace
}  // namespace calibatt::cuda
