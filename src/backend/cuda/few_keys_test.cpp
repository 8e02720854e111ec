#include "backend/cuda/kernels/few_keys.h"

#include "backend/cuda/backend_pair.h"
#include "base/eight_bits.h"
#include "base/error.h"

namespace calibatt::cuda {
namespace {

constexpr int kHeads = 3;
constexpr DType kTypes[] = {DType::kBF16, DType::kF16};

struct Sizes {
  int head_dim;
  int64_t rows, keys;
};
constexpr Sizes kSizes[] = {{128, 1, 1},    {128, 16, 16}, {128, 130, 17}, {128, 257, 61}, {128, 100, 90},
                            {128, 40, 112}, {64, 130, 1},  {64, 333, 31},  {64, 15, 48},   {128, 12000, 61}};

/// Queries that are a third of q, k, v, and keys beside values, as a transformer has them.
class CudaFewKeysOn : public BackendPair {
 protected:
  void make(const Sizes& sizes, DType dtype) {
    const int64_t dim = int64_t{kHeads} * sizes.head_dim;
    qkv = random({sizes.rows, 3 * dim}, dtype, 1);
    keys_values = random({sizes.keys, 2 * dim}, dtype, 2);
    device_qkv = to_gpu(qkv);
    device_keys_values = to_gpu(keys_values);
    call = {};
    call.num_heads = kHeads;
    call.head_dim = sizes.head_dim;
    call.scale = 1 / std::sqrt(static_cast<float>(sizes.head_dim));
    call.q = view(device_qkv, 0, sizes.head_dim);
    call.k = view(device_keys_values, 0, sizes.head_dim);
    call.v = view(device_keys_values, dim, sizes.head_dim);
    bias.assign(static_cast<size_t>(sizes.keys), 0.0f);
    bias.back() = std::log(450.0f);
  }
  static ConstHeadsView view(const Tensor& tensor, int64_t first, int head_dim) {
    return {static_cast<const char*>(tensor.raw()) + static_cast<size_t>(first) * dtype_size(tensor.dtype()),
            tensor.dtype(), tensor.dim(0), tensor.dim(1), head_dim};
  }
  Tensor weights_on_gpu() {
    const int slots = gpu->attention_weight_slots(call.q.dtype, call.head_dim, call.k.num_tokens);
    Tensor weights = gpu->empty(call.q.dtype, {call.q.num_tokens, int64_t{kHeads} * slots});
    gpu->attention_weights(call, weights);
    return weights;
  }

  Tensor qkv, keys_values, device_qkv, device_keys_values;
  std::vector<float> bias;
  AttentionCall call;
};

TEST_F(CudaFewKeysOn, WeightsAreTheSoftmaxAndZeroBehindTheLastKey) {
  for (const DType dtype : kTypes) {
    for (const Sizes& sizes : kSizes) {
      for (const bool biased : {false, true}) {
        SCOPED_TRACE(testing::Message() << dtype_name(dtype) << " " << sizes.head_dim << ", " << sizes.rows << " x "
                                        << sizes.keys << (biased ? " biased" : ""));
        make(sizes, dtype);
        if (biased) call.key_bias = bias;
        const Tensor found = converted(from_gpu(weights_on_gpu()), DType::kF32);
        const Tensor q = converted(qkv, DType::kF32), k = converted(keys_values, DType::kF32);
        const int64_t slots = found.dim(1) / kHeads;
        for (int64_t row = 0; row < sizes.rows; ++row) {
          for (int head = 0; head < kHeads; ++head) {
            std::vector<double> expected(static_cast<size_t>(slots), 0.0);
            double sum = 0;
            for (int64_t s = 0; s < sizes.keys; ++s) {
              double product = 0;
              for (int c = 0; c < sizes.head_dim; ++c) {
                const int64_t channel = int64_t{head} * sizes.head_dim + c;
                product += double{q.f32()[row * q.dim(1) + channel]} * k.f32()[s * k.dim(1) + channel];
              }
              const double weight =
                  std::exp(product * call.scale + (biased ? double{bias[static_cast<size_t>(s)]} : 0.0));
              expected[static_cast<size_t>(s)] = weight;
              sum += weight;
            }
            for (int64_t s = 0; s < slots; ++s) {
              const double wanted = expected[static_cast<size_t>(s)] / sum;
              const double each = found.f32()[row * found.dim(1) + head * slots + s];
              // One rounding (at worst twice kHalfRounding: the last place of 1.0), and for halves the spacing of the
              // smallest.
              ASSERT_LE(std::abs(each - wanted), 2.1 * rounding_of(dtype) * wanted + (s < sizes.keys ? 3e-7 : 0.0))
                  << "row " << row << ", head " << head << ", key " << s << " of " << wanted;
            }
          }
        }
      }
    }
  }
}

/// Σ (attention, then the projection) against (weights, then the projected values), both from the same inputs: the
/// second rounds W_o·v where the first rounds what is attended, and errs no more.
TEST_F(CudaFewKeysOn, ProjectedValuesGiveWhatAttentionAndProjectionGive) {
  constexpr int64_t kOut = 200;
  for (const DType dtype : kTypes) {
    for (const Sizes& sizes : kSizes) {
      SCOPED_TRACE(testing::Message() << dtype_name(dtype) << " " << sizes.head_dim << ", " << sizes.rows << " x "
                                      << sizes.keys);
      make(sizes, dtype);
      call.key_bias = bias;
      const int64_t dim = int64_t{kHeads} * sizes.head_dim;
      Tensor matrix = random({kOut, dim}, DType::kF32, 3);
      for (int64_t i = 0; i < matrix.size(); ++i) matrix.f32()[i] /= std::sqrt(static_cast<float>(dim));
      matrix = converted(matrix, dtype);
      const Tensor output_bias = random({kOut}, DType::kF32, 4), residual = random({sizes.rows, kOut}, DType::kF32, 5);
      const auto output = gpu->make_linear(matrix, output_bias, dtype);

      const auto projected = gpu->project_values(*output, call.v, kHeads, sizes.head_dim);
      Tensor found = to_gpu(residual);
      gpu->linear(*projected, weights_on_gpu(), found, {.accumulate = true});

      // On the CPU in float32.
      const Tensor q = converted(qkv, DType::kF32), kv = converted(keys_values, DType::kF32);
      Tensor attended(DType::kF32, {sizes.rows, dim}), expected = residual.clone();
      AttentionCall wide = call;
      wide.q = view(q, 0, sizes.head_dim);
      wide.k = view(kv, 0, sizes.head_dim);
      wide.v = view(kv, dim, sizes.head_dim);
      wide.out = {attended.raw(), DType::kF32, sizes.rows, dim, sizes.head_dim};
      cpu->attention(wide);
      cpu->linear(*cpu->make_linear(converted(matrix, DType::kF32), output_bias, DType::kF32), attended, expected,
                  {.accumulate = true});
      expect_close(found, expected, 2 * rounding_of(dtype));
    }
  }
}

class CudaFewKeysInEightBits : public CudaFewKeysOn {
 protected:
  void SetUp() override {
    CudaFewKeysOn::SetUp();
    if (IsSkipped()) return;
    try {
      gpu->eight_bit_ops();
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
  }
  EightBitRows rows_on_gpu() {
    const int slots = gpu->attention_weight_slots(call.q.dtype, call.head_dim, call.k.num_tokens);
    EightBitRows rows{gpu->empty(DType::kE4M3, {call.q.num_tokens, int64_t{kHeads} * slots}),
                      gpu->empty(DType::kF32, {call.q.num_tokens})};
    gpu->eight_bit_ops().attention_weights(call, rows);
    return rows;
  }
};

/// A number of 8 bits is the nearest to the weight: half a step of three bits of mantissa, or of the smallest numbers.
TEST_F(CudaFewKeysInEightBits, WeightsAreThoseOf16Bits) {
  for (const DType dtype : kTypes) {
    for (const Sizes& sizes : kSizes) {
      SCOPED_TRACE(testing::Message() << dtype_name(dtype) << " " << sizes.head_dim << ", " << sizes.rows << " x "
                                      << sizes.keys);
      make(sizes, dtype);
      call.key_bias = bias;
      const Tensor expected = converted(from_gpu(weights_on_gpu()), DType::kF32);
      const EightBitRows found = rows_on_gpu();
      const Tensor elements = from_gpu(found.elements), scales = from_gpu(found.scales);
      ASSERT_EQ(elements.shape(), expected.shape());
      std::vector<float> row(static_cast<size_t>(elements.dim(1)));
      for (int64_t i = 0; i < elements.size(); ++i) {
        const int64_t channel = i % elements.dim(1);
        if (channel == 0) {
          const float scale = scales.f32()[i / elements.dim(1)];
          ASSERT_FLOAT_EQ(scale, 1 / kE4M3Max);
          dequantise_row(elements.data<e4m3>() + i, scale, row.data(), elements.dim(1));
        }
        const double wanted = expected.f32()[i], smallest = 0x1p-9 / kE4M3Max;
        ASSERT_LE(std::abs(row[static_cast<size_t>(channel)] - wanted), 1.07 * std::max(wanted / 16, smallest / 2))
            << i << ": " << wanted;
      }
    }
  }
}

/// With an output projection in 8 bits the projected values are, too, and their sum errs as any product of two e4m3
/// factors does: .037 of itself, more where few terms cancel each other.
TEST_F(CudaFewKeysInEightBits, ProjectedValuesErrAsProductsIn8BitsDo) {
  constexpr int64_t kOut = 208;
  for (const Sizes& sizes : kSizes) {
    SCOPED_TRACE(testing::Message() << sizes.head_dim << ", " << sizes.rows << " x " << sizes.keys);
    make(sizes, DType::kBF16);
    call.key_bias = bias;
    const int64_t dim = int64_t{kHeads} * sizes.head_dim;
    const Tensor matrix = random({kOut, dim}, DType::kBF16, 3), output_bias = random({kOut}, DType::kF32, 4),
                 residual = random({sizes.rows, kOut}, DType::kF32, 5);
    const auto sum_with = [&](const LinearFormat& format) {
      const auto projected =
          gpu->project_values(*gpu->make_linear(matrix, output_bias, format), call.v, kHeads, sizes.head_dim);
      EXPECT_EQ(projected->dtype(), format.dtype == DType::kI8 ? DType::kE4M3 : format.dtype);
      Tensor sum = to_gpu(residual);
      if (projected->dtype() == DType::kE4M3) {
        gpu->eight_bit_ops().linear(*projected, rows_on_gpu(), sum, {.accumulate = true});
      } else {
        gpu->linear(*projected, weights_on_gpu(), sum, {.accumulate = true});
      }
      return from_gpu(sum);
    };
    const Tensor expected = sum_with({DType::kBF16});
    const auto error_with = [&](const LinearFormat& format) {
      const Tensor found = sum_with(format);
      double difference = 0, change = 0;
      for (int64_t i = 0; i < expected.size(); ++i) {
        difference += std::pow(double{found.f32()[i]} - expected.f32()[i], 2);
        change += std::pow(double{expected.f32()[i]} - residual.f32()[i], 2);
      }
      return std::sqrt(difference / change);
    };
    const double error = error_with(LinearFormat::e4m3()), of_int8 = error_with(LinearFormat::int8());
    EXPECT_LT(error, 0.075);  // the matrix, what it makes of the values, and the weights: three roundings of .026
    EXPECT_GT(error, 0.005) << "not in 8 bits";
    EXPECT_LT(of_int8, 0.95 * error);  // the matrix errs by .008
    EXPECT_GT(of_int8, 0.005) << "not in 8 bits";
  }
}

}  // namespace
}  // namespace calibatt::cuda
