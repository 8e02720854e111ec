#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "backend/cuda/device/device.h"
#include "backend/cuda/device/event.h"
#include "base/tensor.h"

namespace calibatt::cuda {

/// What everything that computes on one GPU shares: the stream in whose order it happens, and a pool of memory that is
/// allocated and freed in that order (cudaMallocAsync), so that neither waits for the GPU. One per backend; not to be
/// used from two threads at once.
class Context {
 public:
  Context();  ///< of the thread's current device; throws Error(kDevice) when there is none

  const DeviceInfo& device() const { return device_; }
  cudaStream_t stream() const;

  /// Uninitialised device memory, 256-byte aligned. It goes back to the pool, in stream order, with the last tensor
  /// that shares it; tensors may outlive the Context. Throws Error(kDevice) that says what was needed and what was
  /// free.
  Tensor allocate(DType dtype, std::vector<int64_t> shape);
  std::shared_ptr<void> allocate_bytes(size_t bytes);
  std::shared_ptr<void> try_allocate_bytes(size_t bytes);  ///< null when memory is short

  /// Keeps the memory of tensors mapped, as they do, whatever becomes of them.
  std::shared_ptr<const void> memory() const;
  /// Lets the kernels and copies of another GPU read and write it.
  void let_read(int other_device);

  void copy_to_device(void* device, const void* host, size_t bytes);  ///< `host` may be changed on return
  void copy_to_host(void* host, const void* device, size_t bytes);    ///< `host` holds the data on return
  void synchronize();  ///< waits; throws Error(kDevice) when anything on the stream failed
  /// Marks this place in the stream and waits until the stream has passed the mark of the call before.
  void limit_run_ahead();

  size_t peak_bytes() const;  ///< most the pool ever had in use since reset_peak
  void reset_peak();
  size_t available_bytes() const;  ///< free on the GPU, with what the pool keeps and does not use
  void trim();                     ///< gives memory that is not in use back to the GPU (the pool keeps it otherwise)

 private:
  struct Pool;
  DeviceInfo device_;
  std::shared_ptr<Pool> pool_;
  std::array<Event, 2> marks_;
  size_t next_mark_ = 0;
};

}  // namespace calibatt::cuda
