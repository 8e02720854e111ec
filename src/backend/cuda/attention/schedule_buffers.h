#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "backend/cuda/attention/schedule_stream.h"
#include "backend/cuda/device/device.h"

namespace calibatt::cuda {

/// Slots of device and pinned host memory of the current GPU, copied on a stream of their own. Streams whose kernels
/// read a slot may be gone when the object is. Throws Error(kDevice).
class CudaScheduleBuffers : public ScheduleBuffers {
 public:
  explicit CudaScheduleBuffers(int num_slots = 3);
  ~CudaScheduleBuffers() override;

  void begin_thread() override;
  int num_slots() const override { return static_cast<int>(slots_.size()); }
  void resize(int slot, size_t size_bytes) override;
  std::byte* host(int slot) override;
  void upload(int slot, size_t size_bytes) override;
  const void* device(int slot) const override;
  void acquire(int slot, KernelStream stream) override;
  void release(int slot, KernelStream stream) override;

 private:
  struct Slot {
    DeviceBuffer device;
    void* host = nullptr;  // pinned
    cudaEvent_t uploaded = nullptr, released = nullptr;
  };
  void free_all();
  int device_index_;
  Stream copies_;
  std::vector<Slot> slots_;
};

}  // namespace calibatt::cuda
