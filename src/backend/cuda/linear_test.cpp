#include "backend/cuda/linear.h"

#include "backend/cuda/backend_pair.h"
#include "backend/cuda/kernels/elementwise.h"

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
    cpu_layer = cpu->make_linear(weight, bias, dtype);
    gpu_layer = gpu->make_linear(weight, bias, dtype);
    EXPECT_EQ(gpu_layer->in_features(), shape.in);
    EXPECT_EQ(gpu_layer->out_features(), shape.out);
    EXPECT_EQ(gpu_layer->dtype(), dtype);
    input = random({shape.rows, shape.in}, dtype);
    gpu_input = to_gpu(input);
    out_shape = {shape.rows, shape.out};
  }

  /// Sums in another order, and in tensor cores, which cut off rather than round. Else roundings to bf16 that the other
  /// backend makes elsewhere: the output's,
  /// the bias's copy, and a gated or activated product's before its last step; each is at most half a unit.
  static double bound(DType dtype, bool rounded) {
    return rounded ? 3 * kHalfRounding : dtype == DType::kF32 ? 5e-6 : 3e-5;
  }

  std::shared_ptr<const LinearLayer> cpu_layer, gpu_layer;
  Tensor input, gpu_input;
  std::vector<int64_t> out_shape;
};

constexpr Shape kShapes[] = {{1, 256, 1536},   {1, 1536, 64},  {17, 64, 64},     {33, 72, 136},
                             {40, 1536, 4608}, {16, 5120, 64}, {130, 512, 5120}, {600, 1024, 2048}};
constexpr Shape kOddShapes[] = {{5, 37, 19}, {1, 3, 1}, {7, 12, 9}};
constexpr DType kTypes[] = {DType::kF32, DType::kBF16};

TEST_F(CudaLinear, EqualsTheCpu) {
  for (const auto& shapes : {std::span<const Shape>(kShapes), std::span<const Shape>(kOddShapes)}) {
    for (const Shape& shape : shapes) {
      for (const DType dtype : kTypes) {
        for (const bool with_bias : {true, false}) {
          SCOPED_TRACE(testing::Message() << shape << " " << dtype_name(dtype) << (with_bias ? "" : " without bias"));
          make(shape, dtype, DType::kF32, with_bias);
          for (const DType out_dtype : kTypes) {
            for (const Activation activation : {Activation::kNone, Activation::kSiLU, Activation::kGeluTanh}) {
              SCOPED_TRACE(testing::Message()
                           << "to " << dtype_name(out_dtype) << ", activation " << static_cast<int>(activation));
              Tensor expected(DType::kF32, out_shape), found = gpu->empty(out_dtype, out_shape);
              cpu->linear(*cpu_layer, input, expected, {.activation = activation});
              gpu->linear(*gpu_layer, gpu_input, found, {.activation = activation});
              expect_close(found, expected, bound(dtype, out_dtype == DType::kBF16));
            }
          }
        }
      }
    }
  }
}

TEST_F(CudaLinear, AccumulatesWithAndWithoutGate) {
  for (const Shape& shape : kShapes) {
    for (const DType dtype : kTypes) {
      SCOPED_TRACE(testing::Message() << shape << " " << dtype_name(dtype));
      make(shape, dtype);
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
                       bound(dtype, dtype == DType::kBF16 && (gated || activation != Activation::kNone)));
        }
      }
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
}

}  // namespace
}  // namespace calibatt::cuda
