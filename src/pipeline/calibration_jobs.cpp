#include "pipeline/calibration_jobs.h"

#include <chrono>
#include <condition_variable>
#include <mutex>

namespace calibatt {

void do_jobs(RunnerGroup& runners, const std::vector<CalibrationJob>& jobs, const CalibrationProgress& told,
             const ProgressCallback& progress) {
  constexpr std::chrono::milliseconds kBetweenTold{50};
  std::mutex mutex;
  std::condition_variable changed;
  size_t begun = 0, done = 0;
  runners.run(progress, [&](Runner& runner, Communicator&, const ProgressCallback& tell) {
    std::unique_lock lock(mutex);
    while (begun < jobs.size()) {
      const CalibrationJob& job = jobs[begun++];
      lock.unlock();
      job(runner, tell);
      lock.lock();
      ++done;
      changed.notify_all();
    }
    while (!changed.wait_for(lock, kBetweenTold, [&] { return done == jobs.size(); })) {
      lock.unlock();
      told.again(tell);
      lock.lock();
    }
  });
}

}  // namespace calibatt
