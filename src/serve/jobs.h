#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "serve/job.h"
#include "serve/job_store.h"

namespace calibatt::serve {

/// Bounds of what is held; see ServeOptions.
struct JobLimits {
  size_t max_queue = 100;            ///< jobs that wait
  size_t max_kept = 1000;            ///< finished ones; beyond it the oldest go
  int64_t keep_seconds = 24 * 3600;  ///< of finished ones
};

/// What a job is made of.
struct NewJob {
  VideoRequest request;
  std::string picture;                ///< bytes of a picture file, where the request has one
  std::vector<std::string> warnings;  ///< for who asked
};

/// How many jobs there are, and how many there were since the start.
struct JobCounts {
  size_t queued = 0, held = 0, in_progress = 0, kept = 0;  ///< held: Job::held, beside those that are queued
  uint64_t created = 0, completed = 0, failed = 0, removed = 0, expired = 0;
  double inference_seconds = 0;
};

/// What a completed run says of itself.
struct RunFigures {
  double inference_seconds = 0, density = 1;
  std::vector<std::string> warnings;
};

/// Why a request cannot be made by this process; empty: it can.
using WhyNot = std::function<std::string(const VideoRequest&)>;

/// The jobs of a service: a queue in the order of creation, and what became of them. Every change that a client was
/// told of is on disk before. Any thread may call any function.
class Jobs {
 public:
  /// Takes up the jobs of the store; `clock` gives seconds since 1970. Those that wait for what `why_not` says stay in
  /// the queue, whose bound does not count them, and are not taken: they are for another process.
  Jobs(JobStore& store, const JobLimits& limits, std::function<int64_t()> clock,
       const std::function<void(const std::string&)>& warn, const WhyNot& why_not = {});

  /// Throws ApiError(429) where the queue is full, (503) while the service stops, Error(kIo) where it cannot be kept.
  Job create(const NewJob& wanted);
  std::optional<Job> find(const std::string& id) const;
  /// Those behind `after` (empty: from the first), in the order of creation or, `newest_first`, against it. Throws
  /// ApiError(404) where there is no `after`. `more`: whether the list goes on.
  std::vector<Job> list(const std::string& after, size_t limit, bool newest_first, bool& more) const;
  /// Removes a job in whatever state it is; one that runs ends soon. False where there is none.
  bool remove(const std::string& id);

  /// The next job, once there is one; absent once the service stops.
  std::optional<Job> take();
  /// How far a run is. False: its job was removed, and the run is to end.
  bool update(const std::string& id, const std::string& stage, double progress);
  void complete(const std::string& id, const RunFigures& figures);
  void fail(const std::string& id, const JobError& error);
  /// A run that was ended with the service; it is the first to be taken again.
  void put_back(const std::string& id);
  /// A run of a job that was removed is over: its files can go.
  void purge(const std::string& id) { store_.purge(id); }

  /// Removes what is too old or too much.
  void expire();
  /// From here on nothing is created or taken.
  void stop();
  bool stopping() const;
  JobCounts counts() const;

 private:
  void finish(const std::string& id, const std::function<void(Job&)>& change);
  uint64_t number_of(const std::string& id) const;  ///< 0 where there is none
  void erase(uint64_t number);

  JobStore& store_;
  const JobLimits limits_;
  const std::function<int64_t()> clock_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<uint64_t, Job> jobs_;  ///< by number
  std::map<std::string, uint64_t> numbers_;
  std::set<uint64_t> queued_, held_, kept_;
  size_t being_created_ = 0;  ///< places in the queue whose jobs are on their way to the disk
  uint64_t last_number_ = 0;
  JobCounts totals_;  ///< what there was since the start
  bool stopping_ = false;
};

}  // namespace calibatt::serve
