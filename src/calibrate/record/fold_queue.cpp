#include "calibrate/record/fold_queue.h"

#include <utility>

namespace calibatt {

FoldQueue::FoldQueue(int depth) : depth_(depth), worker_([this] { serve(); }) {}

FoldQueue::~FoldQueue() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  worker_.join();
}

void FoldQueue::submit(std::function<void()> job) {
  wait_until_left(depth_ - 1);
  {
    const std::lock_guard lock(mutex_);
    jobs_.push_back(std::move(job));
  }
  changed_.notify_all();
}

void FoldQueue::wait_until_left(int count) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return static_cast<int>(jobs_.size()) <= count; });
  if (error_) std::rethrow_exception(error_);
}

void FoldQueue::serve() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
    if (jobs_.empty()) return;
    if (!error_) {
      const std::function<void()>& job = jobs_.front();
      lock.unlock();
      std::exception_ptr error;
      try {
        job();
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      if (error) error_ = error;
    }
    jobs_.pop_front();
    changed_.notify_all();
  }
}

}  // namespace calibatt
