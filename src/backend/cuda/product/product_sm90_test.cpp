#include "backend/cuda/product/product_sm90.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "backend/cuda/device/device.h"
#include "base/dtype.h"
#include "base/error.h"

namespace calibatt::cuda::product {
namespace {

struct Shape {
  int64_t rows, out, in;
};

DeviceBuffer to_device(const void* host, size_t bytes) {
  DeviceBuffer buffer(bytes);
  Stream stream;
  buffer.copy_from_host(host, stream.get());
  stream.synchronize();
  return buffer;
}
template <class T>
DeviceBuffer to_device(const std::vector<T>& host) {
  return to_device(host.data(), host.size() * sizeof(T));
}

std::vector<int8_t> bytes(int64_t size, uint32_t seed) {
  std::vector<int8_t> result(static_cast<size_t>(size));
  std::mt19937 random(seed);
  for (int8_t& byte : result) byte = static_cast<int8_t>(static_cast<int>(random() % 255) - 127);
  return result;
}

std::vector<float> numbers(int64_t size, uint32_t seed) {
  std::vector<float> result(static_cast<size_t>(size));
  std::mt19937 random(seed);
  for (float& number : result) number = static_cast<float>(random() % 1000) / 1000 + 0.5f;
  return result;
}

struct CudaProduct : testing::Test {
  void SetUp() override {
    if (num_devices() == 0) GTEST_SKIP() << "no CUDA device";
    const int capability = current_device().compute_capability;
    if (capability != 90) GTEST_SKIP() << "compute capability " << capability;
  }

  /// Operands, their scales, and what the product in float64 is.
  struct Case {
    Shape shape;
    std::vector<int8_t> input, weight;
    std::vector<float> input_scales, weight_scales, bias, gate, before;

    explicit Case(const Shape& of)
        : shape(of),
          input(bytes(of.rows * of.in, 1)),
          weight(bytes(of.out * of.in, 2)),
          input_scales(numbers(of.rows, 3)),
          weight_scales(numbers(of.out, 4)),
          bias(numbers(of.out, 5)),
          gate(numbers(of.out, 6)),
          before(numbers(of.rows * of.out, 7)) {}

    double sum(int64_t row, int64_t column) const {
      int64_t sum = 0;
      for (int64_t k = 0; k < shape.in; ++k) {
        sum += int64_t{input[static_cast<size_t>(row * shape.in + k)]} *
               weight[static_cast<size_t>(column * shape.in + k)];
      }
      return static_cast<double>(sum) * input_scales[static_cast<size_t>(row)] *
             weight_scales[static_cast<size_t>(column)];
    }
  };

  struct Epilogue {
    DType out_dtype = DType::kF32;
    bool accumulate = false, with_bias = false, with_gate = false;
  };

  static std::vector<float> run_on_gpu(const Case& data, const Epilogue& epilogue) {
    const DeviceBuffer input = to_device(data.input), weight = to_device(data.weight),
                       input_scales = to_device(data.input_scales), weight_scales = to_device(data.weight_scales),
                       bias = to_device(data.bias), gate = to_device(data.gate);
    const size_t count = data.before.size(), width = dtype_size(epilogue.out_dtype);
    // What is not written is seen: NaN in all types.
    const std::vector<uint8_t> nothing(count * width, 0xff);
    const DeviceBuffer out = epilogue.accumulate ? to_device(data.before) : to_device(nothing);
    ProductCall call;
    call.input = input.data();
    call.weight = weight.data();
    call.out = out.data();
    call.out_dtype = epilogue.out_dtype;
    call.accumulate = epilogue.accumulate;
    call.rows = data.shape.rows;
    call.out_features = data.shape.out;
    call.in_features = data.shape.in;
    call.input_scales = input_scales.as<float>();
    call.weight_scales = weight_scales.as<float>();
    if (epilogue.with_bias) call.bias = bias.as<float>();
    if (epilogue.with_gate) call.gate = gate.as<float>();
    const DeviceBuffer workspace(workspace_bytes(call));
    call.workspace = workspace.data();
    EXPECT_EQ(refusal(call, current_device().compute_capability), "");
    Stream stream;
    run(call, stream.get());
    std::vector<uint8_t> bytes(count * width);
    out.copy_to_host(bytes.data(), stream.get());
    stream.synchronize();
    std::vector<float> found(count);
    for (size_t i = 0; i < count; ++i) {
      if (width == 4) {
        found[i] = reinterpret_cast<const float*>(bytes.data())[i];
      } else {
        const uint16_t bits = reinterpret_cast<const uint16_t*>(bytes.data())[i];
        found[i] = epilogue.out_dtype == DType::kF16 ? half_to_float(bits)
                                                     : std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
      }
    }
    return found;
  }

  /// Sums are exact: what is left are the roundings of a float, and of the result.
  static void expect_product(const Case& data, const Epilogue& epilogue) {
    SCOPED_TRACE(testing::Message() << data.shape.rows << " x " << data.shape.in << " -> " << data.shape.out << " "
                                    << dtype_name(epilogue.out_dtype) << (epilogue.accumulate ? ", added" : ""));
    const std::vector<float> found = run_on_gpu(data, epilogue);
    const double rounding = epilogue.out_dtype == DType::kF32   ? 0x1p-22
                            : epilogue.out_dtype == DType::kF16 ? 0x1p-11
                                                                : 0x1p-8;
    const int64_t step = std::max<int64_t>(1, data.shape.rows * data.shape.out * data.shape.in / 20'000'000);
    for (int64_t i = 0; i < data.shape.rows * data.shape.out; ++i) {
      const auto at = static_cast<size_t>(i), column = static_cast<size_t>(i % data.shape.out);
      ASSERT_TRUE(std::isfinite(found[at])) << i;
      if (i % step != 0) continue;
      double expected = data.sum(i / data.shape.out, i % data.shape.out);
      if (epilogue.with_gate) expected *= data.gate[column];
      if (epilogue.with_bias) expected += double{data.bias[column]} * (epilogue.with_gate ? data.gate[column] : 1);
      if (epilogue.accumulate) expected += data.before[at];
      ASSERT_NEAR(found[at], expected, rounding * (std::abs(expected) + 4)) << i;
    }
  }
};

/// Rows and columns that fill no tile, a contraction that fills no stage, fewer steps than stages, several tiles for
/// each block.
TEST_F(CudaProduct, OfEveryShape) {
  for (const Shape& shape : {Shape{1, 8, 16},
                             {1, 16, 128},
                             {64, 256, 640},
                             {129, 264, 144},
                             {257, 1032, 272},
                             {300, 520, 1536},
                             {1000, 72, 48},
                             {4096, 5120, 64},
                             {9001, 2048, 16}}) {
    const Case data(shape);
    expect_product(data, {DType::kF32, true, true, true});
    expect_product(data, {DType::kBF16, false, true, false});
  }
}

TEST_F(CudaProduct, OfEveryResult) {
  const Case data({200, 328, 400});
  for (const bool with_bias : {false, true}) {
    for (const bool with_gate : {false, true}) {
      expect_product(data, {DType::kF32, true, with_bias, with_gate});
      expect_product(data, {DType::kF32, false, with_bias, with_gate});
      expect_product(data, {DType::kBF16, false, with_bias, with_gate});
    }
  }
}

TEST_F(CudaProduct, IsTheSameAgain) {
  const Case data({3000, 1536, 1024});
  EXPECT_EQ(run_on_gpu(data, {DType::kF32, true, true, true}), run_on_gpu(data, {DType::kF32, true, true, true}));
}

TEST(CudaProductRefusal, SaysWhatItDoesNotTake) {
  ProductCall call;
  call.rows = 4, call.in_features = 64, call.out_features = 32;
  EXPECT_EQ(refusal(call, 90), "");
  EXPECT_EQ(refusal(call, 80), "the GPU is no Hopper");
  call.in_features = 72;
  EXPECT_EQ(refusal(call, 90), "its inputs are no multiple of 16");
  call.in_features = 64, call.out_features = 36;
  EXPECT_EQ(refusal(call, 90), "its outputs are no multiple of 8");
  call.out_features = 32, call.out = reinterpret_cast<void*>(uintptr_t{8});
  EXPECT_EQ(refusal(call, 90), "a matrix does not start at a multiple of 16 bytes");
}

// Before a model is loaded: GPUs that have products of e4m3, which is all that was asked once, may lack these.
TEST(CudaProductRefusal, NamesADeviceThatHasNone) {
  DeviceInfo device;
  device.name = "some GPU";
  device.compute_capability = 90;
  EXPECT_NO_THROW(require_device(device));
  for (const auto& [capability, version] : {std::pair{80, "8.0"}, {89, "8.9"}, {100, "10.0"}, {120, "12.0"}}) {
    device.compute_capability = capability;
    try {
      require_device(device);
      ADD_FAILURE() << capability;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      for (const char* part : {"--weights-dtype int8", "9.0", "some GPU has", version, "--weights-dtype fp8 or bf16"}) {
        EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
      }
    }
  }
}

}  // namespace
}  // namespace calibatt::cuda::product
