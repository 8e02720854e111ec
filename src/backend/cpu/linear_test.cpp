#include "backend/cpu/linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "backend/cpu/cpu_backend.h"
#include "base/error.h"
#include "base/random.h"
#include "base/thread_pool.h"

namespace calibatt::cpu {
namespace {

double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kSiLU:
      return x / (1 + std::exp(-x));
    case Activation::kGeluTanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kTanh:
      return std::tanh(x);
  }
  return x;
}

/// A layer of random weights whose outputs are about 1, and an input for it.
struct Problem {
  Tensor weight, bias, input;
  Tensor exact_weight, exact_input;  // what the layer sees, in float32

  Problem(int64_t rows, int64_t in, int64_t out, DType dtype) {
    TorchGenerator random(static_cast<uint64_t>(rows * 31 + in * 7 + out));
    weight = random.randn({out, in});
    bias = random.randn({out});
    input = random.randn({rows, in});
    for (int64_t i = 0; i < weight.size(); ++i) weight.f32()[i] /= std::sqrt(static_cast<float>(in));
    weight = converted(weight, dtype);
    input = converted(input, dtype);
    exact_weight = converted(weight, DType::kF32);
    exact_input = converted(input, DType::kF32);
  }

  double expected(int64_t row, int64_t column, const LinearEpilogue& epilogue, double before) const {
    const int64_t in = weight.dim(1);
    const float* w = exact_weight.f32() + column * in;
    const float* x = exact_input.f32() + row * in;
    double sum = bias.f32()[column];
    for (int64_t i = 0; i < in; ++i) sum += double{x[i]} * w[i];
    const double y = activated(epilogue.activation, sum);
    if (!epilogue.accumulate) return y;
    return before + y * (epilogue.gate ? epilogue.gate->f32()[column] : 1.0);
  }
};

struct Shape {
  int64_t rows, in, out;
};
constexpr Shape kShapes[] = {{1, 256, 1536}, {5, 40, 7}, {33, 1, 64}, {130, 64, 100}, {300, 96, 33}};

void check(const Shape& shape, DType dtype, DType out_dtype, const LinearEpilogue& epilogue) {
  SCOPED_TRACE(testing::Message() << shape.rows << "x" << shape.in << "->" << shape.out << " " << dtype_name(dtype)
                                  << " to " << dtype_name(out_dtype));
  const Problem problem(shape.rows, shape.in, shape.out, dtype);
  const auto layer = make_linear(problem.weight, problem.bias, dtype);
  EXPECT_EQ(layer->in_features(), shape.in);
  EXPECT_EQ(layer->out_features(), shape.out);
  const Tensor before = TorchGenerator(99).randn({shape.rows, shape.out});
  Tensor out = converted(before, out_dtype).clone();
  linear(*layer, problem.input, out, epilogue);
  const Tensor result = converted(out, DType::kF32);
  const double tolerance = out_dtype == DType::kF32 ? 2e-5 : std::ldexp(1.0, -8);
  const int64_t step = std::max<int64_t>(1, result.size() / 997);  // a prime number of samples over rows and columns
  for (int64_t i = 0; i < result.size(); i += step) {
    const double expected = problem.expected(i / shape.out, i % shape.out, epilogue, before.f32()[i]);
    ASSERT_NEAR(result.f32()[i], expected, tolerance * (1 + std::abs(expected))) << "element " << i;
  }
}

TEST(Linear, MatchesADoublePrecisionSum) {
  for (const Shape& shape : kShapes) {
    for (const Activation activation : {Activation::kNone, Activation::kGeluTanh, Activation::kSiLU}) {
      check(shape, DType::kF32, DType::kF32, {.activation = activation});
      check(shape, DType::kBF16, DType::kF32, {.activation = activation});
      check(shape, DType::kBF16, DType::kBF16, {.activation = activation});
    }
  }
}

TEST(Linear, AddsToTheOutputThroughAGate) {
  for (const Shape& shape : kShapes) {
    const Tensor gate = TorchGenerator(5).randn({shape.out});
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      check(shape, dtype, DType::kF32, {.accumulate = true});
      check(shape, dtype, DType::kF32, {.accumulate = true, .gate = &gate});
    }
  }
}

TEST(Linear, WithoutBias) {
  Problem problem(9, 12, 10, DType::kF32);
  const auto layer = make_linear(problem.weight, {}, DType::kF32);
  problem.bias = Tensor::zeros(DType::kF32, {10});
  Tensor out(DType::kF32, {9, 10});
  linear(*layer, problem.input, out, {});
  for (int64_t i = 0; i < out.size(); ++i) EXPECT_NEAR(out.f32()[i], problem.expected(i / 10, i % 10, {}, 0), 1e-5);
}

TEST(Linear, ResultDoesNotDependOnTheNumberOfThreads) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Problem problem(333, 256, 192, dtype);
    const auto layer = make_linear(problem.weight, problem.bias, dtype);
    Tensor first(DType::kF32, {333, 192}), again(DType::kF32, {333, 192});
    set_num_threads(1);
    linear(*layer, problem.input, first, {});
    set_num_threads(5);
    linear(*layer, problem.input, again, {});
    set_num_threads(0);
    EXPECT_EQ(std::memcmp(first.raw(), again.raw(), first.size_bytes()), 0) << dtype_name(dtype);
  }
}

TEST(CpuLinear, ScalesAreRefusedAndNotDropped) {
  const auto backend = make_cpu_backend();
  const Tensor weight = Tensor::zeros(DType::kF32, {4, 8});
  const auto expect_refused = [](ErrorKind kind, const std::string& message, const auto& make) {
    try {
      make();
      ADD_FAILURE() << "not refused: " << message;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind);
      EXPECT_NE(std::string(error.what()).find(message), std::string::npos) << error.what();
    }
  };
  EXPECT_EQ(backend->make_linear(weight, {}, DType::kBF16)->dtype(), DType::kBF16);
  expect_refused(ErrorKind::kUsage, "the backend cpu has no linear layers of BF16 with these scales", [&] {
    backend->make_linear(weight, {}, {DType::kBF16, Scales::kPerTensor});
  });
  expect_refused(ErrorKind::kUsage, "with these scales", [&] {
    backend->make_linear(weight, {}, {DType::kBF16, Scales::kNone, Scales::kPerRow});
  });
  expect_refused(ErrorKind::kUsage, "F8_E4M3 with these scales", [&] {
    backend->make_linear(weight, {}, {DType::kE4M3, Scales::kPerTensor, Scales::kPerRow});
  });
  StoredLinear stored{{{weight, "a file: tensor \"w\"", Tensor::zeros(DType::kF32, {4})}}, {}, DType::kF32, nullptr};
  expect_refused(ErrorKind::kFormat, "tensor \"w\" has scales", [&] { backend->load_linear(stored); });
}

}  // namespace
}  // namespace calibatt::cpu
