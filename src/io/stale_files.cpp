#include "io/stale_files.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <filesystem>
#include <string_view>

namespace calibatt {
namespace {

constexpr std::string_view kSuffix = ".part";

std::string prefix_of(const std::string& target_name) {
  return "." + target_name.substr(0, 200) + ".";  // names may have 255 bytes
}

/// The writer's number in ".NAME.NUMBER-COUNTER.part", or −1.
long writer_of(std::string_view name, std::string_view prefix) {
  if (!name.starts_with(prefix) || !name.ends_with(kSuffix) || name.size() <= prefix.size() + kSuffix.size()) return -1;
  name.remove_prefix(prefix.size());
  name.remove_suffix(kSuffix.size());
  long process = -1;
  const auto [rest, failed] = std::from_chars(name.data(), name.data() + name.size(), process);
  if (failed != std::errc() || process <= 0 || rest == name.data() + name.size() || *rest != '-') return -1;
  const std::string_view counter(rest + 1, static_cast<size_t>(name.data() + name.size() - rest - 1));
  return !counter.empty() && counter.find_first_not_of("0123456789") == std::string_view::npos ? process : -1;
}

bool process_is_gone(long process) {
  // Our own number: a killed process had it before us, as in containers, where it is often 1.
  return process == getpid() || (kill(static_cast<pid_t>(process), 0) != 0 && errno == ESRCH);
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

std::string hidden_name(const std::string& target_name, unsigned counter) {
  return prefix_of(target_name) + std::to_string(getpid()) + "-" + std::to_string(counter) + std::string(kSuffix);
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
    const long writer = writer_of(entry->path().filename().string(), prefix);
    if (writer > 0 && process_is_gone(writer)) remove_when_unlocked(entry->path().string());
  }
}

}  // namespace calibatt
