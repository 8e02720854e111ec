#include "base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <exception>
#include <fstream>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"

namespace calibatt {
namespace {

using Body = std::function<void(int64_t, int64_t, int)>;

thread_local bool inside_parallel_for = false;

/// CPU-time quota of this process's control group in processors (a container's `--cpus`), or a huge number without one.
int cgroup_quota() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (!(file >> quota >> period) || quota == "max" || period <= 0) return 1 << 20;
  try {
    return std::max(1, static_cast<int>(std::lround(std::stod(quota) / period)));
  } catch (const std::exception&) {
    return 1 << 20;
  }
}

int usable_processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int count = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 0;
  if (count < 1) count = static_cast<int>(std::thread::hardware_concurrency());
  return std::clamp(count, 1, cgroup_quota());
}

/// One parallel_for in flight. Lives on the caller's stack; the caller leaves only when no worker can see it any more.
struct Job {
  const Body& body;
  const int64_t count, grain;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error{};  // written by whoever sets `failed` first

  Job(const Body& body, int64_t count, int64_t grain) : body(body), count(count), grain(grain) {}

  void work(int thread) {
    inside_parallel_for = true;
    while (!failed.load(std::memory_order_relaxed)) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= count) break;
      try {
        body(begin, std::min(begin + grain, count), thread);
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
      }
    }
    inside_parallel_for = false;
  }
};

class ThreadPool {
 public:
  explicit ThreadPool(int num_threads) {
    workers_.reserve(static_cast<size_t>(num_threads - 1));
    for (int thread = 1; thread < num_threads; ++thread) workers_.emplace_back([this, thread] { serve(thread); });
  }

  ~ThreadPool() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  void run(Job& job, int num_helpers) {
    {
      const std::lock_guard lock(mutex_);
      job_ = &job;
      seats_ = num_helpers;
    }
    if (num_helpers == static_cast<int>(workers_.size())) {
      wake_.notify_all();
    } else {
      for (int i = 0; i < num_helpers; ++i) wake_.notify_one();
    }
    job.work(0);
    std::unique_lock lock(mutex_);
    seats_ = 0;  // a worker that has not woken by now has nothing left to do
    job_ = nullptr;
    done_.wait(lock, [this] { return busy_ == 0; });
  }

 private:
  void serve(int thread) {
    std::unique_lock lock(mutex_);
    while (true) {
      wake_.wait(lock, [this] { return stopping_ || seats_ > 0; });
      if (stopping_) return;
      --seats_;
      ++busy_;
      Job* job = job_;
      lock.unlock();
      job->work(thread);
      lock.lock();
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  Job* job_ = nullptr;
  int seats_ = 0;  // workers that may still join the current job
  int busy_ = 0;   // workers inside it
  bool stopping_ = false;
  std::vector<std::thread> workers_;
};

/// The process's one pool. `run_mutex` is held during a parallel_for, so that the pool is replaced only between them.
struct Process {
  std::mutex run_mutex;
  std::atomic<int> num_threads{usable_processors()};
  std::unique_ptr<ThreadPool> pool;  // made at the first parallel_for that needs it
};

Process& process() {
  static Process instance;
  return instance;
}

void run_alone(int64_t count, int64_t grain, const Body& body) {
  for (int64_t begin = 0; begin < count; begin += grain) body(begin, std::min(begin + grain, count), 0);
}

}  // namespace

void set_num_threads(int num_threads) {
  if (num_threads < 0 || num_threads > 4096) {
    throw Error(ErrorKind::kUsage,
                "threads: " + std::to_string(num_threads) + " is out of range; give 0 (all) to 4096");
  }
  CALIBATT_ASSERT(!inside_parallel_for);
  const std::lock_guard lock(process().run_mutex);
  process().num_threads = num_threads == 0 ? usable_processors() : num_threads;
}

int num_threads() {
  return process().num_threads;
}

void parallel_for(int64_t count, int64_t grain, const Body& body) {
  if (count <= 0) return;
  grain = std::clamp<int64_t>(grain, 1, count);
  const int64_t num_chunks = (count + grain - 1) / grain;
  if (inside_parallel_for || num_chunks == 1) return run_alone(count, grain, body);

  Process& shared = process();
  const std::lock_guard lock(shared.run_mutex);
  const int threads = shared.num_threads;
  if (threads == 1) {
    Job job(body, count, grain);
    job.work(0);
    if (job.error) std::rethrow_exception(job.error);
    return;
  }
  if (!shared.pool || shared.pool->num_threads() != threads) {
    shared.pool.reset();  // join the old workers before starting new ones
    shared.pool = std::make_unique<ThreadPool>(threads);
  }
  Job job(body, count, grain);
  shared.pool->run(job, static_cast<int>(std::min<int64_t>(threads, num_chunks)) - 1);
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace calibatt
