// Attention in 8 bits as the backend gives it to models: queries and keys that are normalised in the pass that makes
// their bytes, and values that a sample of them does not show. The kernels themselves: tests/conformance.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

#include "backend/cuda/backend_pair.h"
#include "sparsity/block_intervals.h"

namespace calibatt::cuda {
namespace {

/// What 8 bits may err by on normal inputs (docs/decisions/0008-eight-bit-attention.md: .036), and a little more.
constexpr double kEightBitError = 0.045;

class CudaEightBitAttention : public BackendPair {
 protected:
  void SetUp() override {
    BackendPair::SetUp();
    if (IsSkipped()) return;
    try {
      gpu->attention_kernel(DType::kBF16, 128, true);
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
    ASSERT_TRUE(gpu->takes_norm());
  }

  struct Shape {
    int64_t tokens;
    int heads, head_dim;
    int64_t width() const { return int64_t{heads} * head_dim; }
  };
  static HeadsView part(Tensor& qkv, int index, const Shape& shape) {
    char* data = static_cast<char*>(qkv.raw()) + index * shape.width() * static_cast<int64_t>(dtype_size(qkv.dtype()));
    return {data, qkv.dtype(), shape.tokens, 3 * shape.width(), shape.head_dim};
  }
  static AttentionCall call_of(Tensor& qkv, Tensor& out, const Shape& shape) {
    AttentionCall call;
    call.q = as_const(part(qkv, 0, shape));
    call.k = as_const(part(qkv, 1, shape));
    call.v = as_const(part(qkv, 2, shape));
    call.out = {out.raw(), out.dtype(), shape.tokens, shape.width(), shape.head_dim};
    call.num_heads = shape.heads;
    call.head_dim = shape.head_dim;
    call.scale = 1 / std::sqrt(static_cast<float>(shape.head_dim));
    call.eight_bits = true;
    return call;
  }
  static void norm_and_rotate(Backend& backend, const QueryKeyNorm& norm, const Shape& shape) {
    backend.norm_and_rotate(norm.query, shape.heads, shape.head_dim, norm.query_weight, norm.eps, norm.rope);
    backend.norm_and_rotate(norm.key, shape.heads, shape.head_dim, norm.key_weight, norm.eps, norm.rope);
  }
  static Tensor weights_of(const Shape& shape, uint64_t seed) {
    Tensor weights = random({shape.width()}, DType::kF32, seed);
    for (int64_t i = 0; i < weights.size(); ++i) weights.f32()[i] = 1 + 0.2f * weights.f32()[i];
    return weights;
  }
  /// ‖found − expected‖ / ‖expected‖ of one channel of all tokens (−1: of all).
  double error(const Tensor& found, const Tensor& expected, int64_t channel = -1) const {
    const Tensor a = converted(from_gpu(found), DType::kF32), b = converted(expected, DType::kF32);
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < b.size(); ++i) {
      if (channel >= 0 && i % b.dim(1) != channel) continue;
      const double each = double{a.f32()[i]} - b.f32()[i];
      difference += each * each;
      norm += double{b.f32()[i]} * b.f32()[i];
    }
    return std::sqrt(difference / norm);
  }
};

TEST_F(CudaEightBitAttention, NormsAndRotatesInThePassThatMakesTheBytes) {
  // One block of threads for all heads, clusters of two, four and eight; tokens of whole chunks and not; a sample.
  for (const Shape& shape :
       {Shape{1, 2, 128}, {130, 3, 64}, {192, 12, 128}, {131, 24, 128}, {70, 40, 128}, {4200, 1, 128}}) {
    for (const DType dtype : {DType::kBF16, DType::kF16}) {
      for (const auto& [normed, rotated] : {std::pair{true, true}, {true, false}, {false, true}}) {
        SCOPED_TRACE(testing::Message() << shape.tokens << " tokens, " << shape.heads << " heads of " << shape.head_dim
                                        << " " << dtype_name(dtype) << (normed ? ", norm" : "")
                                        << (rotated ? ", rotation" : ""));
        const Tensor query_weight = weights_of(shape, 2), key_weight = weights_of(shape, 3);
        RopeTable rope{Tensor(DType::kF32, {shape.tokens, shape.head_dim}),
                       Tensor(DType::kF32, {shape.tokens, shape.head_dim})};
        for (int64_t i = 0; i < rope.cos.size(); ++i) {
          const float angle =
              static_cast<float>(i / shape.head_dim) * 0.1f + static_cast<float>(i % shape.head_dim / 2);
          rope.cos.f32()[i] = std::cos(angle);
          rope.signed_sin.f32()[i] = (i % 2 == 0 ? -1.0f : 1.0f) * std::sin(angle);
        }
        const Tensor gpu_query_weight = to_gpu(query_weight), gpu_key_weight = to_gpu(key_weight);
        const RopeTable gpu_rope{to_gpu(rope.cos), to_gpu(rope.signed_sin)};
        const Tensor x = random({shape.tokens, 3 * shape.width()}, dtype);
        const auto norm_of = [&](Tensor& qkv, const Tensor& of_query, const Tensor& of_key, const RopeTable& table) {
          return QueryKeyNorm{part(qkv, 0, shape),
                              part(qkv, 1, shape),
                              normed ? &of_query : nullptr,
                              normed ? &of_key : nullptr,
                              1e-6f,
                              rotated ? &table : nullptr};
        };

        Tensor on_cpu = for_cpu(x).clone(), expected(cpu_type(dtype), {shape.tokens, shape.width()});
        norm_and_rotate(*cpu, norm_of(on_cpu, query_weight, key_weight, rope), shape);
        AttentionCall exact = call_of(on_cpu, expected, shape);
        exact.eight_bits = false;
        cpu->attention(exact);

        Tensor fused = to_gpu(x), found = gpu->empty(dtype, {shape.tokens, shape.width()});
        const QueryKeyNorm norm = norm_of(fused, gpu_query_weight, gpu_key_weight, gpu_rope);
        AttentionCall call = call_of(fused, found, shape);
        call.norm = &norm;
        gpu->attention(call);
        EXPECT_LE(error(found, expected), kEightBitError);
        // It takes no second pass: what the projection left is still there.
        EXPECT_EQ(std::memcmp(from_gpu(fused).raw(), x.raw(), x.size_bytes()), 0);

        Tensor apart = to_gpu(x), by_steps = gpu->empty(dtype, {shape.tokens, shape.width()});
        norm_and_rotate(*gpu, norm_of(apart, gpu_query_weight, gpu_key_weight, gpu_rope), shape);
        gpu->attention(call_of(apart, by_steps, shape));
        // Neither is nearer to the other than to what is exact: numbers that are not rounded to 16 bits on the way,
        // less another mean, are rounded to other bytes (.039 at most on an H200).
        EXPECT_LE(error(found, from_gpu(by_steps)), kEightBitError);
      }
    }
  }
}

TEST_F(CudaEightBitAttention, SummariesAreThoseOfNormalisedKeys) {
  constexpr Shape kShape{500, 2, 128};
  BlockMask mask(4, 4);
  for (int block = 0; block < 4; ++block) mask.set(block, block, true);
  const BlockIntervals intervals = BlockIntervals::from_mask(mask);
  const HeadSchedule heads[] = {{.intervals = &intervals, .summarize_skipped = true}, {.intervals = &intervals}};
  const Tensor weight = weights_of(kShape, 2), gpu_weight = to_gpu(weight);
  const Tensor x = random({kShape.tokens, 3 * kShape.width()}, DType::kBF16);
  const auto call = [&](Tensor& qkv, Tensor& out) {
    AttentionCall planned = call_of(qkv, out, kShape);
    planned.block_q = planned.block_k = 128;
    planned.heads = heads;
    return planned;
  };
  const auto norm_of = [&](Tensor& qkv, const Tensor& by) {
    return QueryKeyNorm{part(qkv, 0, kShape), part(qkv, 1, kShape), &by, &by, 1e-6f, nullptr};
  };
  Tensor on_cpu = x.clone(), expected(DType::kBF16, {kShape.tokens, kShape.width()});
  norm_and_rotate(*cpu, norm_of(on_cpu, weight), kShape);
  AttentionCall exact = call(on_cpu, expected);
  exact.eight_bits = false;
  cpu->attention(exact);
  Tensor left = to_gpu(x), found = gpu->empty(DType::kBF16, {kShape.tokens, kShape.width()});
  const QueryKeyNorm norm = norm_of(left, gpu_weight);
  AttentionCall pending = call(left, found);
  pending.norm = &norm;
  gpu->attention(pending);
  EXPECT_LE(error(found, expected), kEightBitError);
}

TEST_F(CudaEightBitAttention, NormsBeforehandWhatIsTooWideForOnePass) {
  constexpr Shape kShape{70, 50, 64};
  const Tensor weight = to_gpu(weights_of(kShape, 2));
  const Tensor x = random({kShape.tokens, 3 * kShape.width()}, DType::kBF16);
  const auto norm_of = [&](Tensor& qkv) {
    return QueryKeyNorm{part(qkv, 0, kShape), part(qkv, 1, kShape), &weight, &weight, 1e-6f, nullptr};
  };
  Tensor left = to_gpu(x), ready = to_gpu(x), found = gpu->empty(DType::kBF16, {kShape.tokens, kShape.width()}),
         expected = gpu->empty(DType::kBF16, {kShape.tokens, kShape.width()});
  norm_and_rotate(*gpu, norm_of(ready), kShape);
  gpu->attention(call_of(ready, expected, kShape));
  const QueryKeyNorm norm = norm_of(left);
  AttentionCall pending = call_of(left, found, kShape);
  pending.norm = &norm;
  gpu->attention(pending);
  const Tensor a = from_gpu(found), b = from_gpu(expected);
  EXPECT_EQ(std::memcmp(a.raw(), b.raw(), a.size_bytes()), 0);
}

// Of more than 4,096 values one in eight is looked at beforehand: 2222 is, 2223 is not.
TEST_F(CudaEightBitAttention, ValuesThatTheSampleDoesNotShowAreNotCutOff) {
  constexpr Shape kShape{4500, 1, 128};
  constexpr int64_t kChannel = 77;
  struct Case {
    const char* name;
    std::function<float(int64_t)> value;
  };
  const Case cases[] = {
      {"one of a thousand is a thousand times as large", [](int64_t t) { return t % 1000 == 7 ? 1000.0f : 1.0f; }},
      {"one of all differs", [](int64_t t) { return t == 2223 ? 1e-3f : 0.0f; }},
      {"one of all differs, and is in the sample", [](int64_t t) { return t == 2222 ? 1e-3f : 0.0f; }},
      {"one is beyond what fits in units of the others", [](int64_t t) { return t == 2223 ? 1e30f : 0.0f; }},
      {"the same, and it is in the sample", [](int64_t t) { return t == 2222 ? 1e30f : 0.0f; }},
      {"eight behind each other", [](int64_t t) { return t >= 3000 && t < 3008 ? -5e3f : 0.1f; }},
      {"a constant", [](int64_t) { return 3.25f; }},
  };
  for (const Case& each : cases) {
    SCOPED_TRACE(each.name);
    Tensor x = random({kShape.tokens, 3 * kShape.width()});
    for (int64_t t = 0; t < kShape.tokens; ++t) {
      x.f32()[t * 3 * kShape.width() + 2 * kShape.width() + kChannel] = each.value(t);
    }
    const Tensor rounded = converted(x, DType::kBF16);
    Tensor on_cpu = converted(rounded, DType::kF32), expected(DType::kF32, {kShape.tokens, kShape.width()});
    AttentionCall exact = call_of(on_cpu, expected, kShape);
    exact.eight_bits = false;
    cpu->attention(exact);
    Tensor on_gpu = to_gpu(rounded), found = gpu->empty(DType::kF32, {kShape.tokens, kShape.width()});
    gpu->attention(call_of(on_gpu, found, kShape));
    EXPECT_LE(error(found, expected, kChannel), kEightBitError);
    EXPECT_LE(error(found, expected, kChannel + 1), 1.2 * kEightBitError);  // of one channel, not the mean of all
  }
}

}  // namespace
}  // namespace calibatt::cuda
