#include "serve/jobs.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "calibatt/counted.h"
#include "serve/request/api_error.h"

namespace calibatt::serve {

Jobs::Jobs(JobStore& store, const JobLimits& limits, std::function<int64_t()> clock,
           const std::function<void(const std::string&)>& warn, const WhyNot& why_not)
    : store_(store), limits_(limits), clock_(std::move(clock)) {
  std::map<std::string, int64_t> held;
  for (Job& job : store_.load(warn)) {
    const uint64_t number = job.number;
    last_number_ = std::max(last_number_, number);
    if (!job.finished() && why_not) job.held = why_not(job.request);
    if (!job.held.empty()) ++held[job.held];
    (job.finished() ? kept_ : job.held.empty() ? queued_ : held_).insert(number);
    numbers_[job.id] = number;
    jobs_.emplace(number, std::move(job));
  }
  for (const auto& [reason, number] : held) warn(counted(number, "jobs") + " of an earlier start: " + reason);
}

Job Jobs::create(const NewJob& wanted) {
  Job job;
  job.id = new_job_id();
  job.request = wanted.request;
  job.warnings = wanted.warnings;
  job.created_at = clock_();
  {
    const std::lock_guard lock(mutex_);
    if (stopping_) throw ApiError(503, "the service is stopping; ask again when it is back", "", "stopping");
    if (queued_.size() + being_created_ >= limits_.max_queue) {
      throw ApiError(429,
                     "the queue is full (" + counted(static_cast<int64_t>(limits_.max_queue), "jobs") +
                         "); ask again when one is done",
                     "", "queue_full");
    }
    ++being_created_;
    job.number = ++last_number_;
  }
  try {
    store_.create(job, wanted.picture);
  } catch (...) {
    const std::lock_guard lock(mutex_);
    --being_created_;
    throw;
  }
  const std::lock_guard lock(mutex_);
  --being_created_;
  ++totals_.created;
  numbers_[job.id] = job.number;
  queued_.insert(job.number);
  jobs_.emplace(job.number, job);
  changed_.notify_one();
  return job;
}

uint64_t Jobs::number_of(const std::string& id) const {
  const auto found = numbers_.find(id);
  return found == numbers_.end() ? 0 : found->second;
}

std::optional<Job> Jobs::find(const std::string& id) const {
  const std::lock_guard lock(mutex_);
  const uint64_t number = number_of(id);
  return number == 0 ? std::nullopt : std::optional(jobs_.at(number));
}

std::vector<Job> Jobs::list(const std::string& after, size_t limit, bool newest_first, bool& more) const {
  const std::lock_guard lock(mutex_);
  const uint64_t start = after.empty() ? 0 : number_of(after);
  if (!after.empty() && start == 0) throw ApiError(404, "there is no video " + after.substr(0, 60), "after");
  std::vector<Job> page;
  const auto collect = [&](auto each, auto end) {
    for (; each != end && page.size() < limit; ++each) page.push_back(each->second);
    more = each != end;
  };
  if (newest_first) {
    collect(start == 0 ? jobs_.rbegin() : std::make_reverse_iterator(jobs_.lower_bound(start)), jobs_.rend());
  } else {
    collect(jobs_.upper_bound(start), jobs_.end());
  }
  return page;
}

void Jobs::erase(uint64_t number) {
  numbers_.erase(jobs_.at(number).id);
  jobs_.erase(number);
  queued_.erase(number);
  held_.erase(number);
  kept_.erase(number);
}

bool Jobs::remove(const std::string& id) {
  bool running = false;
  {
    const std::lock_guard lock(mutex_);
    const uint64_t number = number_of(id);
    if (number == 0) return false;
    running = jobs_.at(number).state == JobState::kInProgress;
    store_.remove(id);  // where this fails, the job stays
    erase(number);
    ++totals_.removed;
  }
  if (!running) store_.purge(id);  // else by the run, which may be writing there
  return true;
}

std::optional<Job> Jobs::take() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return stopping_ || !queued_.empty(); });
  if (stopping_) return std::nullopt;
  Job& job = jobs_.at(*queued_.begin());
  queued_.erase(queued_.begin());
  job.state = JobState::kInProgress;
  return job;
}

bool Jobs::update(const std::string& id, const std::string& stage, double progress) {
  const std::lock_guard lock(mutex_);
  const uint64_t number = number_of(id);
  if (number == 0) return false;
  Job& job = jobs_.at(number);
  job.stage = stage;
  job.progress = progress;
  return true;
}

void Jobs::finish(const std::string& id, const std::function<void(Job&)>& change) {
  std::optional<Job> job = find(id);
  if (!job) return;
  change(*job);
  job->completed_at = clock_();
  job->expires_at = job->completed_at + limits_.keep_seconds;
  std::string not_saved;
  try {
    store_.save(*job);
  } catch (const std::exception& error) {
    // Removed meanwhile, or the disk is full. Then the job has failed, as long as this process remembers.
    not_saved = error.what();
  }
  const std::lock_guard lock(mutex_);
  const uint64_t number = number_of(id);
  if (number == 0) return;
  if (!not_saved.empty()) {
    job->state = JobState::kFailed;
    job->error = {"not_written", not_saved};
  }
  ++(job->state == JobState::kCompleted ? totals_.completed : totals_.failed);
  if (job->state == JobState::kCompleted) totals_.inference_seconds += job->inference_seconds;
  kept_.insert(number);
  jobs_.at(number) = std::move(*job);
}

void Jobs::complete(const std::string& id, const RunFigures& figures) {
  finish(id, [&](Job& job) {
    job.state = JobState::kCompleted;
    job.inference_seconds = figures.inference_seconds;
    job.density = figures.density;
    job.warnings.insert(job.warnings.end(), figures.warnings.begin(), figures.warnings.end());
  });
}

void Jobs::fail(const std::string& id, const JobError& error) {
  finish(id, [&](Job& job) {
    job.state = JobState::kFailed;
    job.error = error;
  });
}

void Jobs::put_back(const std::string& id) {
  const std::lock_guard lock(mutex_);
  const uint64_t number = number_of(id);
  if (number == 0) return;
  Job& job = jobs_.at(number);
  job.state = JobState::kQueued;
  job.stage.clear();
  job.progress = 0;
  queued_.insert(number);
}

void Jobs::expire() {
  std::vector<std::string> gone;
  {
    const std::lock_guard lock(mutex_);
    const int64_t now = clock_();
    std::vector<uint64_t> old;
    size_t too_many = kept_.size() > limits_.max_kept ? kept_.size() - limits_.max_kept : 0;
    for (const uint64_t number : kept_) {
      if (too_many > 0 || jobs_.at(number).expires_at <= now) old.push_back(number);
      too_many -= too_many > 0 ? 1 : 0;
    }
    for (const uint64_t number : old) {
      const std::string id = jobs_.at(number).id;
      try {
        store_.remove(id);
      } catch (const std::exception&) {
        continue;  // the next time
      }
      erase(number);
      gone.push_back(id);
      ++totals_.expired;
    }
  }
  for (const std::string& id : gone) store_.purge(id);
}

void Jobs::stop() {
  const std::lock_guard lock(mutex_);
  stopping_ = true;
  changed_.notify_all();
}

bool Jobs::stopping() const {
  const std::lock_guard lock(mutex_);
  return stopping_;
}

JobCounts Jobs::counts() const {
  const std::lock_guard lock(mutex_);
  JobCounts counts = totals_;
  counts.queued = queued_.size();
  counts.held = held_.size();
  counts.kept = kept_.size();
  counts.in_progress = jobs_.size() - queued_.size() - held_.size() - kept_.size();
  return counts;
}

}  // namespace calibatt::serve
