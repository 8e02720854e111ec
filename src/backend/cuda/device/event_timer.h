#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "backend/timer.h"

namespace calibatt::cuda {

/// The time a stream spends between start and stop, measured by events in it: neither call waits.
class EventTimer final : public Timer {
 public:
  explicit EventTimer(cudaStream_t stream) : stream_(stream) {}  ///< the stream must outlive the timer
  ~EventTimer() override;
  EventTimer(const EventTimer&) = delete;
  EventTimer& operator=(const EventTimer&) = delete;

  void start() override;
  void stop() override;
  double seconds() override;

 private:
  cudaEvent_t record();

  cudaStream_t stream_;
  std::vector<cudaEvent_t> recorded_;  // start, stop, start, stop, … since the last call of seconds()
  std::vector<cudaEvent_t> spare_;
  double seconds_ = 0;
};

}  // namespace calibatt::cuda
