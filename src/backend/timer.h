#pragma once

#include <chrono>

namespace calibatt {

/// Adds up the seconds between start and stop, over any number of pairs. Made by Device::make_timer: on a device that
/// works behind the caller's back it measures the device's time between the two places in its queue, not the caller's.
class Timer {
 public:
  virtual ~Timer() = default;
  virtual void start() = 0;
  virtual void stop() = 0;
  virtual double seconds() = 0;  ///< of all pairs so far; waits for the last one to be done
};

/// The wall clock: right wherever a call returns when its work is done.
class WallClockTimer final : public Timer {
 public:
  void start() override { start_ = Clock::now(); }
  void stop() override { seconds_ += std::chrono::duration<double>(Clock::now() - start_).count(); }
  double seconds() override { return seconds_; }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_;
  double seconds_ = 0;
};

}  // namespace calibatt
