#pragma once

#include <cuda_runtime_api.h>

namespace calibatt::cuda {

/// Makes a GPU the calling thread's current one for as long as the object lives, for work within somebody else's
/// program. What cannot be is found by the next CUDA call.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) : before_(current()) {
    if (before_ != device) static_cast<void>(cudaSetDevice(device));
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  ~DeviceGuard() {
    if (current() != before_) static_cast<void>(cudaSetDevice(before_));
  }
  static int current() {
    int device = 0;
    static_cast<void>(cudaGetDevice(&device));
    return device;
  }

 private:
  const int before_;
};

}  // namespace calibatt::cuda
