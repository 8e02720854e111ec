#pragma once

#include <cuda_runtime_api.h>

#include "backend/cuda/device/device.h"

namespace calibatt::cuda {

/// A mark in a stream that other streams or the host can wait for; it measures no time. Never recorded, it counts as
/// passed.
class Event {
 public:
  Event() { check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "making an event"); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() {
    if (event_ != nullptr) static_cast<void>(cudaEventDestroy(event_));
  }

  void record(cudaStream_t stream) { check(cudaEventRecord(event_, stream), "recording an event"); }
  void wait() const { check(cudaEventSynchronize(event_), "waiting for the GPU"); }
  void wait_quietly() const { static_cast<void>(cudaEventSynchronize(event_)); }  ///< for destructors
  /// What is enqueued on the stream from here on waits for what stood before the mark.
  void hold_back(cudaStream_t stream) const { check(cudaStreamWaitEvent(stream, event_, 0), "joining two streams"); }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace calibatt::cuda
