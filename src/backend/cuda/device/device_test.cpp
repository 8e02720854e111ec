#include "backend/cuda/device/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "base/error.h"

namespace calibatt::cuda {
namespace {

TEST(Device, IsAbsentWithoutAnExceptionAndNamedInOne) {
  if (num_devices() > 0) GTEST_SKIP() << "there is a CUDA device";
  for (int i = 0; i < 2; ++i) {  // the first failure must not be reported by the second call
    EXPECT_EQ(num_devices(), 0);
    try {
      current_device();
      ADD_FAILURE();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kDevice);
      EXPECT_THAT(error.what(), testing::AllOf(testing::StartsWith("GPU: "), testing::HasSubstr("CPU backend")));
    }
  }
}

TEST(Device, IsDescribed) {
  if (num_devices() == 0) GTEST_SKIP() << "no CUDA device";
  const DeviceInfo& info = current_device();
  int current = -1;
  ASSERT_EQ(cudaGetDevice(&current), cudaSuccess);
  EXPECT_EQ(info.index, current);
  // Asked for one by one, not from the structure that current_device reads.
  const auto attribute = [&](cudaDeviceAttr name) {
    int value = -1;
    EXPECT_EQ(cudaDeviceGetAttribute(&value, name, current), cudaSuccess);
    return value;
  };
  EXPECT_EQ(info.compute_capability,
            10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor));
  if (current == 0) {
    EXPECT_EQ(first_compute_capability(), info.compute_capability);
  }
  EXPECT_EQ(info.num_sms, attribute(cudaDevAttrMultiProcessorCount));
  EXPECT_EQ(info.l2_bytes, static_cast<size_t>(attribute(cudaDevAttrL2CacheSize)));
  size_t free = 0, total = 0;
  ASSERT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  EXPECT_NEAR(static_cast<double>(info.memory_bytes), static_cast<double>(total), 0.02 * static_cast<double>(total));
  EXPECT_FALSE(info.name.empty());
  EXPECT_EQ(&info, &current_device());
}

TEST(DeviceBuffer, HoldsWhatWasCopied) {
  if (num_devices() == 0) GTEST_SKIP() << "no CUDA device";
  const std::vector<int> numbers = {3, 1, 4, 1, 5};
  const Stream stream;
  DeviceBuffer first(numbers.size() * sizeof(int));
  first.copy_from_host(numbers.data(), stream.get());
  const DeviceBuffer second = std::move(first);
  EXPECT_EQ(first.data(), nullptr);
  std::vector<int> back(numbers.size());
  second.copy_to_host(back.data(), stream.get());
  stream.synchronize();
  EXPECT_EQ(back, numbers);
  EXPECT_EQ(DeviceBuffer(0).data(), nullptr);
}

TEST(DeviceBuffer, SaysWhenMemoryIsShort) {
  if (num_devices() == 0) GTEST_SKIP() << "no CUDA device";
  try {
    const DeviceBuffer buffer(size_t{1} << 46);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kDevice);
    EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr("70368.74 GB"), testing::HasSubstr("are free"),
                                             testing::HasSubstr("--offload")));
  }
}

}  // namespace
}  // namespace calibatt::cuda
