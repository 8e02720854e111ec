#include "serve/job_store.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <random>
#include <system_error>

#include "calibatt/error.h"
#include "calibatt/output.h"

namespace calibatt::serve {
namespace {

namespace fs = std::filesystem;

constexpr const char* kPrefix = "video_";
constexpr const char* kRemovedPrefix = ".removed_";
constexpr size_t kIdDigits = 32;
constexpr size_t kMaxRecordBytes = size_t{1} << 20;

[[noreturn]] void fail(const std::string& path, const std::string& what, int code) {
  throw Error(ErrorKind::kIo, path + ": " + what + ": " + std::strerror(code));
}

/// A folder by whose name nothing of this program lies there is left alone.
bool is_removed(const std::string& name) {
  return name.starts_with(kRemovedPrefix) && is_job_id(name.substr(std::strlen(kRemovedPrefix)));
}

/// Whether a job's folder without a record holds nothing but what a process that was killed in create() leaves.
bool is_half_made(const fs::path& folder) {
  std::error_code error;
  if (fs::is_symlink(folder, error)) return false;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name != "picture" && !name.starts_with(".")) return false;
  }
  return !error;
}

}  // namespace

std::string new_job_id() {
  std::random_device device;
  std::string id = kPrefix;
  for (size_t digits = 0; digits < kIdDigits; digits += 8) {
    std::array<char, 9> part{};
    std::snprintf(part.data(), part.size(), "%08x", device());
    id += part.data();
  }
  return id;
}

bool is_job_id(const std::string& text) {
  return text.size() == std::strlen(kPrefix) + kIdDigits && text.starts_with(kPrefix) &&
         text.find_first_not_of("0123456789abcdef", std::strlen(kPrefix)) == std::string::npos;
}

JobStore::JobStore(std::string folder) : folder_(std::move(folder)) {
  std::error_code error;
  fs::create_directories(folder_, error);
  if (error) fail(folder_, "cannot be made", error.value());
  const std::string lock_path = folder_ + "/.lock";
  lock_ = ::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (lock_ < 0) fail(lock_path, "cannot be written", errno);
  if (::flock(lock_, LOCK_EX | LOCK_NB) == 0) return;
  const int code = errno;
  ::close(lock_);
  if (code != EWOULDBLOCK) fail(lock_path, "cannot be locked", code);
  throw Error(ErrorKind::kIo,
              folder_ + ": another calibatt serve works with this folder; give each its own by --output");
}

JobStore::~JobStore() {
  ::close(lock_);
}

std::string JobStore::problem() const {
  struct stat ours {
  }, there{};
  if (::fstat(lock_, &ours) == 0 && ::stat((folder_ + "/.lock").c_str(), &there) == 0 && ours.st_ino == there.st_ino &&
      ours.st_dev == there.st_dev) {
    return "";
  }
  return folder_ + ": the folder of the videos was removed or replaced; restart the service";
}

std::vector<Job> JobStore::load(const std::function<void(const std::string&)>& warn) {
  std::vector<Job> jobs;
  std::vector<fs::path> leftovers;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_)) {
    const std::string name = entry.path().filename().string();
    if (is_removed(name)) leftovers.push_back(entry.path());
    if (!is_job_id(name)) continue;
    const std::string record = (entry.path() / "job.json").string();
    std::error_code error;
    if (!fs::exists(record, error)) {
      if (!error && is_half_made(entry.path())) {
        leftovers.push_back(entry.path());
      } else {
        warn(record + ": is not there; the job is left out, and its folder left alone");
      }
      continue;
    }
    try {
      Job job = from_record(read_text_file(record, kMaxRecordBytes), record);
      if (job.id != name) throw Error(ErrorKind::kFormat, record + ": is the record of another job, " + job.id);
      jobs.push_back(std::move(job));
    } catch (const Error& unreadable) {
      warn(std::string(unreadable.what()) + "; the job is left out");
    }
  }
  for (const fs::path& leftover : leftovers) {
    std::error_code ignored;  // it costs space, and the next start tries again
    fs::remove_all(leftover, ignored);
  }
  std::ranges::sort(jobs, {}, &Job::number);
  return jobs;
}

void JobStore::create(const Job& job, const std::string& picture) {
  const std::string folder = folder_ + "/" + job.id;
  std::error_code error;
  fs::create_directory(folder, error);
  if (error) fail(folder, "cannot be made", error.value());
  try {
    if (job.request.has_picture) write_text_file(picture_path(job.id), picture);
    save(job);
  } catch (const Error&) {
    fs::remove_all(folder, error);
    throw;
  }
}

void JobStore::save(const Job& job) {
  write_text_file(path(job.id, "job.json"), to_record(job));
}

void JobStore::remove(const std::string& id) {
  std::error_code error;
  fs::rename(folder_ + "/" + id, folder_ + "/" + kRemovedPrefix + id, error);
  if (error) fail(folder_ + "/" + id, "cannot be removed", error.value());
}

void JobStore::purge(const std::string& id) {
  std::error_code ignored;  // as in load
  fs::remove_all(folder_ + "/" + kRemovedPrefix + id, ignored);
}

}  // namespace calibatt::serve
