#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

namespace calibatt {

/// One worker thread that does jobs in their order while the caller (and the device) goes on. At most `depth` jobs are
/// under way or waiting; a further one waits for room. A job's exception reaches the caller at its next call, and no
/// later job runs.
class FoldQueue {
 public:
  explicit FoldQueue(int depth);
  ~FoldQueue();  ///< waits for the jobs that were submitted; their exceptions are lost
  FoldQueue(const FoldQueue&) = delete;
  FoldQueue& operator=(const FoldQueue&) = delete;

  void submit(std::function<void()> job);
  /// Waits until at most `count` jobs are left.
  void wait_until_left(int count);
  void finish() { wait_until_left(0); }

 private:
  void serve();

  const int depth_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> jobs_;  // the first one is running
  std::exception_ptr error_;
  bool stopping_ = false;
  std::thread worker_;
};

}  // namespace calibatt
