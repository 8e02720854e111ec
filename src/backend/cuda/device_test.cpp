#include "backend/cuda/device.h"

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
  EXPECT_FALSE(info.name.empty());
  EXPECT_GE(info.compute_capability, 50);
  EXPECT_GT(info.num_sms, 0);
  EXPECT_GT(info.memory_bytes, size_t{1} << 28);
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
