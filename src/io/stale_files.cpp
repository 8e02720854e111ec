#include "io/stale_files.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <optional>
#include <string_view>

namespace calibatt {
namespace {

constexpr std::string_view kSuffix = ".part";

std::atomic<long> names_given = 0;  // by this process, numbered from 0

std::string prefix_of(const std::string& target_name) {
  return "." + target_name.substr(0, 200) + ".";  // names may have 255 bytes
}

/// Of ".NAME.PROCESS-NUMBER.part".
struct Writer {
  long process = 0, number = 0;
};

std::optional<Writer> writer_of(std::string_view name, std::string_view prefix) {
  if (!name.starts_with(prefix) || !name.ends_with(kSuffix) || name.size() <= prefix.size() + kSuffix.size()) return {};
  name.remove_prefix(prefix.size());
  name.remove_suffix(kSuffix.size());
  Writer writer;
  const char* const end = name.data() + name.size();
  const auto [dash, no_process] = std::from_chars(name.data(), end, writer.process);
  if (no_process != std::errc() || writer.process <= 0 || dash == end || *dash != '-') return {};
  const auto [rest, no_number] = std::from_chars(dash + 1, end, writer.number);
  if (no_number != std::errc() || writer.number < 0 || rest != end) return {};
  return writer;
}

bool is_gone(const Writer& writer) {
  // Our own process number: a killed process had it before us, as in containers, where it is often 1. Names that we
  // gave may be another thread's.
  if (writer.process == getpid()) return writer.number >= names_given;
  return kill(static_cast<pid_t>(writer.process), 0) != 0 && errno == ESRCH;
}

void remove_when_unlocked(const std::string& path) {
  const int descriptor = open(path.c_str(), O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (descriptor < 0) return;
  struct stat status {};
  if (fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode) && flock(descriptor, LOCK_EX | LOCK_NB) == 0) {
    unlink(path.c_str());
  }
  close(descriptor);
}

}  // namespace

std::string hidden_name(const std::string& target_name) {
  return prefix_of(target_name) + std::to_string(getpid()) + "-" + std::to_string(names_given++) + std::string(kSuffix);
}

bool lock_hidden_file(int descriptor) {
  if (flock(descriptor, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) return false;
  struct stat status {};  // without locks on this file system nothing is ever taken for stale either
  return fstat(descriptor, &status) == 0 && status.st_nlink > 0;
}

void remove_stale_files(const std::string& folder, const std::string& target_name) {
  const std::string prefix = prefix_of(target_name);
  std::error_code error;
  for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    const std::optional<Writer> writer = writer_of(entry->path().filename().string(), prefix);
    if (writer && is_gone(*writer)) remove_when_unlocked(entry->path().string());
  }
}

}  // namespace calibatt
