#include "backend/cuda/cudnn/conv_plan.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace calibatt::cuda::cudnn {
namespace {

constexpr int64_t kMaxWorkspaceBytes = int64_t{8} << 30;

/// cuDNN chooses engines for a GPU that it is told about: none need be here.
Descriptor gpu(int compute_capability, int num_sms, int shared_memory_bytes, const std::string& name) {
  const auto number = [](const char* key, int64_t value) {
    return std::string(",\"") + key + "\":" + std::to_string(value);
  };
  return device_properties(
      "{\"deviceName\":\"" + name + "\"" + number("deviceVer", compute_capability * 10) +
      number("multiProcessorCount", num_sms) + number("maxSharedMemoryPerBlockOptin", shared_memory_bytes) +
      ",\"maxGridSize\":[2147483647,65535,65535],\"maxBlockSize\":[1024,1024,64],\"cudaDeviceId\":0,"
      "\"driverVer\":13000,\"totalGlobalMem\":24000000000,\"regsPerBlock\":65536,\"warpSize\":32,"
      "\"maxSharedMemoryPerBlock\":49152,\"reservedSharedMemoryPerBlock\":1024,"
      "\"maxRegistersPerSM\":65536,\"maxCtasPerSM\":24,\"maxThreadsPerBlock\":1024,"
      "\"maxThreadsPerSM\":1536,\"pciDeviceId\":0,\"isTccDriver\":0,\"supportCoopLaunch\":1,"
      "\"smClockRateKHz\":1700000,\"memClockRateKHz\":2000000,\"l2CacheSize\":41943040}");
}

ConvolutionShape shape(int64_t in, int64_t out, std::array<int64_t, 3> kernel, std::array<int64_t, 3> stride,
                       int64_t padding, int64_t height_out, int64_t frames_out, int64_t width_out, DType dtype) {
  ConvolutionShape result;
  result.spec = {in, out, kernel, stride, padding, padding};
  result.compute = result.out = dtype;
  result.height_in = (height_out - 1) * stride[0] + kernel[0];
  result.frames_in = (frames_out - 1) * stride[1] + kernel[1];
  result.width_in = (width_out - 1) * stride[2] + kernel[2] - 2 * padding;
  return result;
}

/// Every convolution of Wan 2.1's autoencoder at 720 × 1280, and what small models have (channels padded to 8).
std::vector<ConvolutionShape> wan_shapes(DType dtype) {
  constexpr std::array<int64_t, 3> k3 = {3, 3, 3}, k1 = {1, 1, 1}, k_space = {3, 1, 3}, k_time = {1, 3, 1};
  constexpr std::array<int64_t, 3> s1 = {1, 1, 1}, s_space = {2, 1, 2}, s_time = {1, 2, 1};
  std::vector<ConvolutionShape> shapes;
  for (const int64_t group : {1, 4}) {  // frames at full rate: of the first group, of all others
    const int64_t half = (group + 1) / 2;
    shapes.push_back(shape(16, 16, k1, s1, 0, 90, 1, 160, dtype));
    shapes.push_back(shape(16, 384, k3, s1, 1, 90, 1, 160, dtype));
    shapes.push_back(shape(384, 384, k3, s1, 1, 90, 1, 160, dtype));
    shapes.push_back(shape(384, 1152, k1, s1, 0, 90, 1, 160, dtype));
    shapes.push_back(shape(384, 384, k1, s1, 0, 90, 1, 160, dtype));
    shapes.push_back(shape(384, 768, k_time, s1, 0, 90, 1, 160, dtype));
    shapes.push_back(shape(384, 192, k_space, s1, 1, 180, half, 320, dtype));
    shapes.push_back(shape(192, 384, k3, s1, 1, 180, half, 320, dtype));
    shapes.push_back(shape(192, 384, k1, s1, 0, 180, half, 320, dtype));
    shapes.push_back(shape(384, 768, k_time, s1, 0, 180, half, 320, dtype));
    shapes.push_back(shape(384, 192, k_space, s1, 1, 360, group, 640, dtype));
    shapes.push_back(shape(192, 192, k3, s1, 1, 360, group, 640, dtype));
    shapes.push_back(shape(192, 96, k_space, s1, 1, 720, group, 1280, dtype));
    shapes.push_back(shape(96, 96, k3, s1, 1, 720, group, 1280, dtype));
    shapes.push_back(shape(96, 8, k3, s1, 1, 720, group, 1280, dtype));
    shapes.push_back(shape(8, 96, k3, s1, 1, 720, group, 1280, dtype));
    shapes.push_back(shape(96, 96, k_space, s_space, 0, 360, group, 640, dtype));
    shapes.push_back(shape(96, 192, k3, s1, 1, 360, group, 640, dtype));
    shapes.push_back(shape(192, 192, k_time, s_time, 0, 180, half, 320, dtype));
    shapes.push_back(shape(384, 32, k3, s1, 1, 90, 1, 160, dtype));
    shapes.push_back(shape(32, 32, k1, s1, 0, 90, 1, 160, dtype));
  }
  for (const int64_t channels : {8, 16, 24}) {
    shapes.push_back(shape(channels, channels, k3, s1, 1, 5, 1, 7, dtype));
    shapes.push_back(shape(channels, 2 * channels, k_time, s1, 0, 3, 2, 5, dtype));
    shapes.push_back(shape(channels, channels, k_space, s_space, 0, 2, 1, 3, dtype));
    shapes.push_back(shape(channels, 8, k1, s1, 0, 1, 1, 1, dtype));
  }
  return shapes;
}

/// Every convolution of Mochi 1's decoder at 480 × 848, whose border is part of the input, and of Wan 2.2's (5B) at
/// 704 × 1280 in patches of two.
std::vector<ConvolutionShape> wider_shapes(DType dtype) {
  constexpr std::array<int64_t, 3> k3 = {3, 3, 3}, k1 = {1, 1, 1}, k_space = {3, 1, 3}, k_time = {1, 3, 1}, s1 = k1;
  std::vector<ConvolutionShape> shapes = {
      shape(16, 768, k1, s1, 0, 60, 1, 106, dtype),  // 12 channels, padded
      shape(768, 768, k3, s1, 0, 60, 1, 106, dtype),     shape(768, 6144, k1, s1, 0, 60, 1, 106, dtype),
      shape(512, 512, k3, s1, 0, 120, 3, 212, dtype),    shape(512, 2048, k1, s1, 0, 120, 3, 212, dtype),
      shape(256, 256, k3, s1, 0, 240, 6, 424, dtype),    shape(256, 512, k1, s1, 0, 240, 6, 424, dtype),
      shape(128, 128, k3, s1, 0, 480, 6, 848, dtype),    shape(128, 8, k1, s1, 0, 480, 6, 848, dtype),
      shape(48, 48, k1, s1, 0, 44, 1, 80, dtype),        shape(48, 1024, k3, s1, 1, 44, 1, 80, dtype),
      shape(1024, 3072, k1, s1, 0, 44, 1, 80, dtype),    shape(1024, 1024, k3, s1, 1, 44, 1, 80, dtype),
      shape(1024, 2048, k_time, s1, 0, 44, 1, 80, dtype)};
  for (const int64_t group : {1, 4}) {
    const int64_t half = (group + 1) / 2;
    shapes.push_back(shape(1024, 1024, k_space, s1, 1, 88, half, 160, dtype));
    shapes.push_back(shape(1024, 1024, k3, s1, 1, 88, half, 160, dtype));
    shapes.push_back(shape(1024, 2048, k_time, s1, 0, 88, half, 160, dtype));
    shapes.push_back(shape(1024, 1024, k_space, s1, 1, 176, group, 320, dtype));
    shapes.push_back(shape(1024, 512, k3, s1, 1, 176, group, 320, dtype));
    shapes.push_back(shape(1024, 512, k1, s1, 0, 176, group, 320, dtype));
    shapes.push_back(shape(512, 512, k3, s1, 1, 176, group, 320, dtype));
    shapes.push_back(shape(512, 512, k_space, s1, 1, 352, group, 640, dtype));
    shapes.push_back(shape(512, 256, k3, s1, 1, 352, group, 640, dtype));
    shapes.push_back(shape(512, 256, k1, s1, 0, 352, group, 640, dtype));
    shapes.push_back(shape(256, 256, k3, s1, 1, 352, group, 640, dtype));
    shapes.push_back(shape(256, 16, k3, s1, 1, 352, group, 640, dtype));
  }
  return shapes;
}

class ConvolutionPlans : public testing::Test {
 protected:
  const Descriptor h100 = gpu(90, 132, 232448, "NVIDIA H100 80GB HBM3");
};

TEST_F(ConvolutionPlans, ExistForTheAutoencoderOnEveryGpu) {
  const Descriptor a100 = gpu(80, 108, 166912, "NVIDIA A100-SXM4-80GB");
  const Descriptor ada = gpu(89, 128, 101376, "NVIDIA GeForce RTX 4090");
  for (const Descriptor* device : {&h100, &a100, &ada}) {
    for (const ConvolutionShape& shape : wan_shapes(DType::kBF16)) {
      const auto plans = make_plans(*device, shape, 1, kMaxWorkspaceBytes);
      ASSERT_EQ(plans.size(), 1) << shape.describe();
      EXPECT_LT(plans[0].workspace_bytes(), int64_t{256} << 20) << shape.describe() << " " << plans[0].name();
      ConvolutionShape accumulated = shape;
      accumulated.accumulate = true;
      EXPECT_EQ(make_plans(*device, accumulated, 1, kMaxWorkspaceBytes).size(), 1) << accumulated.describe();
    }
  }
}

TEST_F(ConvolutionPlans, ExistInFloat32WithoutTensorCores) {
  for (const ConvolutionShape& shape : wan_shapes(DType::kF32)) {
    EXPECT_EQ(make_plans(h100, shape, 1, kMaxWorkspaceBytes).size(), 1) << shape.describe();
  }
  const ConvolutionShape odd = shape(5, 7, {3, 3, 3}, {1, 1, 1}, 1, 4, 1, 3, DType::kF32);
  EXPECT_EQ(make_plans(h100, odd, 1, kMaxWorkspaceBytes).size(), 1);
}

TEST_F(ConvolutionPlans, ExistForWiderAutoencoders) {
  for (const ConvolutionShape& shape : wider_shapes(DType::kBF16)) {
    const auto plans = make_plans(h100, shape, 1, kMaxWorkspaceBytes);
    ASSERT_EQ(plans.size(), 1) << shape.describe();
    EXPECT_LT(plans[0].workspace_bytes(), int64_t{256} << 20) << shape.describe() << " " << plans[0].name();
  }
  for (const ConvolutionShape& shape : wider_shapes(DType::kF32)) {  // 2.9 GB in Mochi's, beside 11 GB: 20 are allowed
    const auto plans = make_plans(h100, shape, 1, kMaxWorkspaceBytes);
    ASSERT_EQ(plans.size(), 1) << shape.describe();
    EXPECT_LT(plans[0].workspace_bytes(), int64_t{4} << 30) << shape.describe() << " " << plans[0].name();
  }
}

TEST_F(ConvolutionPlans, AreAsManyAsWantedAndHeldToTheirWorkspace) {
  const ConvolutionShape large = shape(96, 96, {3, 3, 3}, {1, 1, 1}, 1, 720, 4, 1280, DType::kF32);
  EXPECT_EQ(make_plans(h100, large, 2, kMaxWorkspaceBytes).size(), 2);
  for (const ConvolutionPlan& plan : make_plans(h100, large, 8, 1 << 20)) {
    EXPECT_LE(plan.workspace_bytes(), 1 << 20) << plan.name();
  }
}

TEST_F(ConvolutionPlans, ImpossibleShapesAreNotAccepted) {
  ConvolutionShape none = shape(8, 8, {3, 3, 3}, {1, 1, 1}, 1, 4, 1, 4, DType::kBF16);
  none.height_in = 2;  // fewer rows than the kernel has
  EXPECT_THROW(make_plans(h100, none, 1, kMaxWorkspaceBytes), Error);
}

TEST(ConvolutionShape, IsDescribedForErrors) {
  ConvolutionShape some = shape(96, 192, {3, 1, 3}, {2, 1, 2}, 0, 5, 4, 6, DType::kBF16);
  some.out = DType::kF32;
  some.add_bias = true;
  EXPECT_EQ(some.describe(),
            "96→192 channels, kernel 3×1×3, stride 2×1×2, BF16 to F32, input 11×4×13 (rows×frames×columns), bias");
  EXPECT_EQ(some.size_out(0), 5);
  EXPECT_EQ(some.size_out(1), 4);
  EXPECT_EQ(some.size_out(2), 6);
}

}  // namespace
}  // namespace calibatt::cuda::cudnn
