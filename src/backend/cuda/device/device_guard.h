#pragma once

#include <cuda_runtime_api.h>

namespace calibatt::cuda {

/// Makes a GPU the calling thread's current one for as long as the object lives, for work within somebody else's
/// program. A device that is not there changes nothing, so that who asks about it next says so.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) : before_(current()) {
    if (before_ != device) set(device);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  ~DeviceGuard() {
    if (current() != before_) set(before_);
  }
  static int current() {
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess) static_cast<void>(cudaGetLastError());  // or later calls would see it
    return device;
  }

 private:
  static void set(int device) {
    if (cudaSetDevice(device) != cudaSuccess) static_cast<void>(cudaGetLastError());
  }
  const int before_;
};

}  // namespace calibatt::cuda
