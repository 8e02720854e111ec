#pragma once

#include <functional>
#include <string>
#include <vector>

#include "serve/job.h"

namespace calibatt::serve {

/// Jobs on disk: one folder each, with `job.json` (the record), `video.mp4`, `report.json` and, where the video begins
/// with one, `picture`. Every file appears complete or not at all, and a folder without a record is no job, so that a
/// process may be killed at any moment. One process at a time uses a store: it holds a lock on the folder.
class JobStore {
 public:
  /// Makes the folder where it is missing. Throws Error(kIo) where it cannot be written to or another process has it.
  explicit JobStore(std::string folder);
  ~JobStore();
  JobStore(const JobStore&) = delete;
  JobStore& operator=(const JobStore&) = delete;

  /// Every job, in the order of creation. What a killed process left half made or half removed is removed; a record
  /// that cannot be read is left alone, and told to `warn`.
  std::vector<Job> load(const std::function<void(const std::string&)>& warn);

  /// A new job's folder, with its picture where it has one. Throws Error(kIo), and then leaves nothing.
  void create(const Job& job, const std::string& picture);
  /// The record anew. Throws Error(kIo), also for a job that was removed.
  void save(const Job& job);
  /// From here on the job is gone, whatever happens to this process; `purge` then frees its space.
  void remove(const std::string& id);
  void purge(const std::string& id);

  /// Why jobs cannot be kept any more, in one line: the folder was removed or replaced. Empty: they can.
  std::string problem() const;

  const std::string& folder() const { return folder_; }
  std::string video_path(const std::string& id) const { return path(id, "video.mp4"); }
  std::string report_path(const std::string& id) const { return path(id, "report.json"); }
  std::string picture_path(const std::string& id) const { return path(id, "picture"); }

 private:
  std::string path(const std::string& id, const char* file) const { return folder_ + "/" + id + "/" + file; }

  std::string folder_;
  int lock_ = -1;
};

/// A name that nobody guesses: "video_" and 32 hexadecimal digits.
std::string new_job_id();
bool is_job_id(const std::string& text);

}  // namespace calibatt::serve
