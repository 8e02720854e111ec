#include "backend/cuda/linear.h"

#include "backend/cuda/backend_pair.h"
#include "backend/cuda/gemm.h"
#include "backend/cuda/kernels/elementwise.h"
#include "backend/stored_linear.h"
#include "backend/streamed_weights.h"

namespace calibatt::cuda {
namespace {

struct Shape {
  int64_t rows, in, out;
};
std::ostream& operator<<(std::ostream& stream, const Shape& shape) {
  return stream << shape.rows << " x " << shape.in << " -> " << shape.out;
}

/// A layer whose outputs are about 1, on both backends, and inputs for it.
class CudaLinear : public BackendPair {
 protected:
  void make(const Shape& shape, DType dtype, DType stored = DType::kF32, bool with_bias = true) {
    Tensor weight = random({shape.out, shape.in}, DType::kF32, 2);
    const float scale = 1 / std::sqrt(static_cast<float>(shape.in));
    for (int64_t i = 0; i < weight.size(); ++i) weight.f32()[i] *= scale;
    weight = converted(weight, stored);
    const Tensor bias = with_bias ? random({shape.out}, DType::kF32, 3) : Tensor();
    if (dtype == DType::kF16) weight = for_cpu(converted(weight, dtype));
    cpu_layer = cpu->make_linear(weight, bias, cpu_type(dtype));
    gpu_layer = gpu->make_linear(weight, bias, dtype);
    EXPECT_EQ(gpu_layer->in_features(), shape.in);
    EXPECT_EQ(gpu_layer->out_features(), shape.out);
    EXPECT_EQ(gpu_layer->dtype(), dtype);
    const Tensor rounded = random({shape.rows, shape.in}, dtype);
    input = for_cpu(rounded);
    gpu_input = to_gpu(rounded);
    out_shape = {shape.rows, shape.out};
  }

  /// Sums in another order, and in tensor cores, which cut off rather than round. Else roundings to bf16 that the other
  /// backend makes elsewhere: the output's,
  /// the bias's copy, and a gated or activated product's before its last step; each is at most half a unit.
  static double bound(DType dtype, bool rounded) {
    return rounded ? 3 * rounding_of(dtype) : dtype == DType::kF32 ? 5e-6 : 3e-5;
  }

  std::shared_ptr<const LinearLayer> cpu_layer, gpu_layer;
  Tensor input, gpu_input;
  std::vector<int64_t> out_shape;
};

constexpr Shape kShapes[] = {{1, 256, 1536},   {1, 1536, 64},  {17, 64, 64},     {33, 72, 136},
                             {40, 1536, 4608}, {16, 5120, 64}, {130, 512, 5120}, {600, 1024, 2048}};
/// At least as many rows as inputs: the gate scales the weight.
constexpr Shape kManyRows[] = {{256, 256, 1536}, {300, 72, 136}, {513, 512, 320}, {50, 37, 19}, {12, 12, 9}, {4, 3, 1}};
constexpr Shape kOddShapes[] = {{5, 37, 19}, {1, 3, 1}, {7, 12, 9}};
constexpr DType kTypes[] = {DType::kF32, DType::kBF16, DType::kF16};
bool can_be_output(DType out, DType dtype) {
  return out == DType::kF32 || dtype == DType::kF32 || out == dtype;
}

TEST_F(CudaLinear, EqualsTheCpu) {
  for (const auto& shapes : {std::span<const Shape>(kShapes), std::span<const Shape>(kOddShapes)}) {
    for (const Shape& shape : shapes) {
      for (const DType dtype : kTypes) {
        for (const bool with_bias : {true, false}) {
          SCOPED_TRACE(testing::Message() << shape << " " << dtype_name(dtype) << (with_bias ? "" : " without bias"));
          make(shape, dtype, DType::kF32, with_bias);
          for (const DType out_dtype : kTypes) {
            if (!can_be_output(out_dtype, dtype)) continue;
            for (const Activation activation : {Activation::kNone, Activation::kSiLU, Activation::kGeluTanh}) {
              SCOPED_TRACE(testing::Message()
                           << "to " << dtype_name(out_dtype) << ", activation " << static_cast<int>(activation));
              Tensor expected(DType::kF32, out_shape), found = gpu->empty(out_dtype, out_shape);
              cpu->linear(*cpu_layer, input, expected, {.activation = activation});
              gpu->linear(*gpu_layer, gpu_input, found, {.activation = activation});
              expect_close(found, expected,
                           bound(out_dtype == DType::kF32 ? dtype : out_dtype, out_dtype != DType::kF32));
            }
          }
        }
      }
    }
  }
}

TEST_F(CudaLinear, AccumulatesWithAndWithoutGate) {
  for (const auto& shapes : {std::span<const Shape>(kShapes), std::span<const Shape>(kManyRows)}) {
    for (const Shape& shape : shapes) {
      for (const DType dtype : kTypes) {
        for (const bool with_bias : {true, false}) {
          SCOPED_TRACE(testing::Message() << shape << " " << dtype_name(dtype) << (with_bias ? "" : " without bias"));
          make(shape, dtype, DType::kF32, with_bias);
          const Tensor gate = random({shape.out}, DType::kF32, 7), gpu_gate = to_gpu(gate);
          const Tensor residual = random(out_shape, DType::kF32, 8);
          for (const bool gated : {false, true}) {
            for (const Activation activation : {Activation::kNone, Activation::kGeluTanh}) {
              SCOPED_TRACE(testing::Message() << (gated ? "gated" : "plain") << static_cast<int>(activation));
              Tensor expected = residual.clone(), found = to_gpu(residual);
              cpu->linear(*cpu_layer, input, expected,
                          {.activation = activation, .accumulate = true, .gate = gated ? &gate : nullptr});
              gpu->linear(*gpu_layer, gpu_input, found,
                          {.activation = activation, .accumulate = true, .gate = gated ? &gpu_gate : nullptr});
              expect_close(found, expected,
                           bound(dtype, dtype != DType::kF32 && (gated || activation != Activation::kNone)));
            }
          }
        }
      }
    }
  }
}

/// Both ways of a gated sum against float64: rounding gate·w to bf16 errs no more than rounding the product does. Both
/// are independent relative errors of one size, those of a sum's terms adding up to that of the sum; a tenth is for
/// what is left of chance. Without a bias, which would be in favour of the weight: it is rounded with the product.
TEST_F(CudaLinear, ScalingTheWeightErrsNoMoreThanRoundingTheProduct) {
  constexpr Shape kShape{700, 512, 256};
  for (const DType dtype : kTypes) {
    SCOPED_TRACE(dtype_name(dtype));
    Tensor weight = random({kShape.out, kShape.in}, DType::kF32, 2);
    for (int64_t i = 0; i < weight.size(); ++i) weight.f32()[i] /= std::sqrt(static_cast<float>(kShape.in));
    weight = converted(weight, dtype);
    const Tensor gate = random({kShape.out}, DType::kF32, 7);
    const Tensor residual = random({kShape.rows, kShape.out}, DType::kF32, 8);
    const Tensor x = random({kShape.rows, kShape.in}, dtype);
    const auto layer = gpu->make_linear(weight, {}, dtype);

    Tensor product = gpu->empty(dtype, residual.shape()), sum = to_gpu(residual);
    gpu->linear(*layer, to_gpu(x), product);
    const Tensor gpu_gate = to_gpu(gate);
    gpu->linear(*layer, to_gpu(x), sum, {.accumulate = true, .gate = &gpu_gate});

    const Tensor found = from_gpu(sum), rounded = converted(from_gpu(product), DType::kF32);
    const Tensor wide_x = converted(x, DType::kF32), wide_weight = converted(weight, DType::kF32);
    double squares = 0, error = 0, error_of_rounded = 0;
    for (int64_t r = 0; r < kShape.rows; ++r) {
      for (int64_t c = 0; c < kShape.out; ++c) {
        double exact = 0;
        for (int64_t i = 0; i < kShape.in; ++i) {
          exact += double{wide_x.f32()[r * kShape.in + i]} * wide_weight.f32()[c * kShape.in + i];
        }
        const int64_t at = r * kShape.out + c;
        const double change = gate.f32()[c] * exact, expected = residual.f32()[at] + change;
        squares += change * change;
        error += std::pow(found.f32()[at] - expected, 2);
        error_of_rounded += std::pow(residual.f32()[at] + double{gate.f32()[c]} * rounded.f32()[at] - expected, 2);
      }
    }
    if (dtype != DType::kF32) {
      EXPECT_LE(std::sqrt(error), 1.1 * std::sqrt(error_of_rounded));
    } else {
      EXPECT_LE(std::sqrt(error), bound(dtype, false) * std::sqrt(squares));
    }
  }
}

TEST_F(CudaLinear, StreamedWeightsAreGatedLikeResidentOnes) {
  constexpr Shape kShape{257, 192, 320};
  StoredLinear stored{{{random({kShape.out, kShape.in}, DType::kBF16, 2), "weight"}},
                      {{random({kShape.out}, DType::kF32, 3), "bias"}},
                      DType::kBF16,
                      nullptr};
  const auto resident = gpu->load_linear(stored);
  const auto group = gpu->make_streamed_weights(Backend::streamed_bytes(kShape.out, kShape.in, DType::kBF16));
  stored.streamed = group;
  const auto streamed = gpu->load_linear(stored);
  group->seal();
  const Tensor x = to_gpu(random({kShape.rows, kShape.in}, DType::kBF16));
  const Tensor gate = to_gpu(random({kShape.out}, DType::kF32, 7));
  const Tensor residual = random({kShape.rows, kShape.out}, DType::kF32, 8);
  Tensor expected = to_gpu(residual), found = to_gpu(residual);
  gpu->linear(*resident, x, expected, {.accumulate = true, .gate = &gate});
  {
    const WeightsInUse in_use(group, nullptr);
    gpu->linear(*streamed, x, found, {.accumulate = true, .gate = &gate});
  }
  expect_same(found, from_gpu(expected));
}

TEST_F(CudaLinear, RowsAreScaled) {
  Context context;
  for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{1, 1}, {5, 19}, {6, 12}, {17, 1536}, {4, 8200}}) {
    for (const DType dtype : kTypes) {
      const Tensor x = random({rows, columns}, dtype), factor = random({rows}, DType::kF32, 2);
      Tensor product = converted(x, DType::kF32).clone();
      for (int64_t i = 0; i < product.size(); ++i) product.f32()[i] *= factor.f32()[i / columns];
      Tensor out = context.allocate(dtype, {rows, columns}), back(dtype, {rows, columns});
      scale_rows(upload(context, x, dtype).raw(), upload(context, factor, DType::kF32).f32(), 1, out.raw(), dtype, rows,
                 columns, context.stream());
      context.copy_to_host(back.raw(), out.raw(), out.size_bytes());
      const Tensor expected = converted(product, dtype);
      EXPECT_EQ(std::memcmp(back.raw(), expected.raw(), expected.size_bytes()), 0) << rows << " x " << columns;
    }
  }
}

TEST_F(CudaLinear, TakesWeightsOfEveryFloatTypeAtAnyAddress) {
  make({17, 64, 64}, DType::kBF16, DType::kBF16);
  Tensor expected(DType::kF32, out_shape), found = gpu->empty(DType::kF32, out_shape);
  cpu->linear(*cpu_layer, input, expected);
  gpu->linear(*gpu_layer, gpu_input, found);
  expect_close(found, expected, bound(DType::kBF16, false));

  // 1 + i/64 in half precision, as a mapped file may hold them: at an odd address.
  std::vector<unsigned char> storage(64 * 2 + 1);
  for (int i = 0; i < 64; ++i) {
    const uint16_t half = static_cast<uint16_t>(0x3c00 + 0x10 * i);
    std::memcpy(storage.data() + 1 + 2 * i, &half, 2);
  }
  const Tensor weight(DType::kF16, {1, 64}, {storage.data() + 1, [](void*) {}});
  const auto layer = gpu->make_linear(weight, {}, DType::kF32);
  Tensor ones(DType::kF32, {1, 64});
  std::fill_n(ones.f32(), 64, 1.0f);
  Tensor sum = gpu->empty(DType::kF32, {1, 1});
  gpu->linear(*layer, to_gpu(ones), sum);
  EXPECT_FLOAT_EQ(from_gpu(sum).f32()[0], 64 + 63.0f / 2);
}

/// What follows a product where cuBLASLt does not fuse the bias.
TEST_F(CudaLinear, BiasOfItsOwn) {
  Context context;
  for (const auto& [rows, channels] : {std::pair<int64_t, int64_t>{1, 1}, {5, 19}, {17, 1536}}) {
    for (const DType dtype : kTypes) {
      const Tensor y = random({rows, channels}, dtype), bias = random({channels}, DType::kF32, 2);
      const Tensor wide = converted(y, DType::kF32);
      Tensor sum(DType::kF32, {rows, channels}), found = upload(context, y, dtype), back(dtype, {rows, channels});
      cpu->add(wide, bias, sum);
      add_bias(found.raw(), dtype, upload(context, bias, DType::kF32).f32(), rows, channels, context.stream());
      context.copy_to_host(back.raw(), found.raw(), found.size_bytes());
      const Tensor expected = converted(sum, dtype);
      EXPECT_EQ(std::memcmp(back.raw(), expected.raw(), expected.size_bytes()), 0);
    }
  }
}

TEST_F(CudaLinear, PartsOfTensorsAreComputedInPlace) {
  make({64, 72, 136}, DType::kBF16);
  const Tensor residual = random(out_shape, DType::kF32, 8), gate = random({136}, DType::kF32, 7);
  const Tensor gpu_gate = to_gpu(gate);
  Tensor expected = residual.clone(), found = to_gpu(residual);
  for (Tensor* each : {&expected, &found}) {
    const bool on_gpu = each == &found;
    const Tensor& from = on_gpu ? gpu_input : input;
    for (const auto& [begin, count] : {std::pair<int64_t, int64_t>{0, 31}, {31, 33}}) {
      const auto rows = [&, first = begin, number = count](const Tensor& all) {
        char* data = static_cast<char*>(all.storage().get()) + first * all.dim(1) * dtype_size(all.dtype());
        return Tensor(all.dtype(), {number, all.dim(1)}, std::shared_ptr<void>(all.storage(), data));
      };
      Tensor out = rows(*each);
      (on_gpu ? *gpu : *cpu)
          .linear(on_gpu ? *gpu_layer : *cpu_layer, rows(from), out,
                  {.accumulate = true, .gate = on_gpu ? &gpu_gate : &gate});
    }
  }
  expect_close(found, expected, 3 * kHalfRounding);
}

/// Large enough that algorithms are compared with each other first; the result must not show it, nor change.
TEST_F(CudaLinear, LargeProductsAreTunedAndStayTheSame) {
  make({2048, 2048, 16384}, DType::kBF16);
  Tensor first = gpu->empty(DType::kBF16, out_shape), second = gpu->empty(DType::kBF16, out_shape);
  gpu->linear(*gpu_layer, gpu_input, first, {.activation = Activation::kGeluTanh});
  gpu->linear(*gpu_layer, gpu_input, second, {.activation = Activation::kGeluTanh});
  expect_same(second, from_gpu(first));
  // Some rows are enough to compare with.
  const auto some_rows = [](const Tensor& all) { return Tensor(all.dtype(), {3, all.dim(1)}, all.storage()); };
  Tensor expected(DType::kF32, {3, 16384});
  cpu->linear(*cpu_layer, some_rows(input), expected, {.activation = Activation::kGeluTanh});
  expect_close(some_rows(first), expected, 3 * kHalfRounding);

  // Sums: a trial that added to `out` would be seen.
  const Tensor gate = random({16384}, DType::kF32, 7), gpu_gate = to_gpu(gate);
  const Tensor residual = Tensor::zeros(DType::kF32, out_shape);
  for (const bool gated : {false, true}) {
    SCOPED_TRACE(gated ? "gated" : "plain");
    Tensor sum = to_gpu(residual), again = to_gpu(residual);
    for (Tensor* each : {&sum, &again}) {
      gpu->linear(*gpu_layer, gpu_input, *each, {.accumulate = true, .gate = gated ? &gpu_gate : nullptr});
    }
    expect_same(again, from_gpu(sum));
    expected = Tensor::zeros(DType::kF32, {3, 16384});
    cpu->linear(*cpu_layer, some_rows(input), expected, {.accumulate = true, .gate = gated ? &gate : nullptr});
    expect_close(some_rows(sum), expected, bound(DType::kBF16, gated));
  }
}

TEST_F(CudaLinear, CandidatesAreTriedWithoutTouchingASum) {
  Context context;
  Gemm gemm(context);
  const Tensor x = random({512, 256}, DType::kBF16), weight = random({768, 256}, DType::kBF16, 2),
               sum = random({512, 768}, DType::kF32, 3);
  const Tensor gpu_x = upload(context, x, DType::kBF16), gpu_weight = upload(context, weight, DType::kBF16);
  Tensor out = upload(context, sum, DType::kF32), back(DType::kF32, sum.shape());
  GemmCall call{.input = gpu_x.raw(), .weight = gpu_weight.raw(), .out = out.raw(), .accumulate = true};
  call.rows = 512, call.out_features = 768, call.in_features = 256;
  const std::vector<GemmCandidate> candidates = gemm.tried_candidates(call, 1);
  ASSERT_FALSE(candidates.empty());
  EXPECT_TRUE(candidates.front().finalist);
  EXPECT_GT(candidates.front().milliseconds, 0);
  EXPECT_NE(candidates.front().describe(), "");
  context.copy_to_host(back.raw(), out.raw(), out.size_bytes());
  EXPECT_EQ(std::memcmp(back.raw(), sum.raw(), sum.size_bytes()), 0);
}

TEST_F(CudaLinear, MemoryThatIsShortCanBeAskedFor) {
  Context context;
  EXPECT_EQ(context.try_allocate_bytes(size_t{1} << 46), nullptr);
  EXPECT_NE(context.try_allocate_bytes(1 << 20), nullptr);
}

}  // namespace
}  // namespace calibatt::cuda
