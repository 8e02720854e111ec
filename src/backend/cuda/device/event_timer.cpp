#include "backend/cuda/device/event_timer.h"

#include "backend/cuda/device/device.h"
#include "base/error.h"

namespace calibatt::cuda {

EventTimer::~EventTimer() {
  for (const auto* events : {&recorded_, &spare_}) {
    for (cudaEvent_t event : *events) static_cast<void>(cudaEventDestroy(event));
  }
}

cudaEvent_t EventTimer::record() {
  if (spare_.empty()) {
    cudaEvent_t event = nullptr;
    check(cudaEventCreate(&event), "making an event");
    spare_.push_back(event);
  }
  check(cudaEventRecord(spare_.back(), stream_), "recording an event");
  cudaEvent_t event = spare_.back();
  spare_.pop_back();
  return event;
}

void EventTimer::start() {
  CALIBATT_ASSERT(recorded_.size() % 2 == 0);
  recorded_.push_back(record());
}

void EventTimer::stop() {
  CALIBATT_ASSERT(recorded_.size() % 2 == 1);
  recorded_.push_back(record());
}

double EventTimer::seconds() {
  CALIBATT_ASSERT(recorded_.size() % 2 == 0);
  if (!recorded_.empty()) check(cudaEventSynchronize(recorded_.back()), "running");
  for (size_t i = 0; i < recorded_.size(); i += 2) {
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, recorded_[i], recorded_[i + 1]), "reading a timer");
    seconds_ += milliseconds * 1e-3;
  }
  spare_.insert(spare_.end(), recorded_.begin(), recorded_.end());
  recorded_.clear();
  return seconds_;
}

}  // namespace calibatt::cuda
