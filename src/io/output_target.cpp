#include "io/output_target.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cctype>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <filesystem>
#include <map>
#include <mutex>
#include <optional>
#include <string_view>
#include <thread>
#include <utility>

#include "base/error.h"
#include "io/system_error.h"

namespace calibatt {
namespace {

constexpr int kMaxLinks = 40;  // as Linux itself

// The number of a descriptor of this process, where `path` is one of the names by which it is opened. Opening it anew
// would begin at the start of a file that the shell appends to, so these are written to as they are.
std::optional<int> descriptor_named(const std::string& path) {
  if (path == "/dev/stdout") return STDOUT_FILENO;
  if (path == "/dev/stderr") return STDERR_FILENO;
  const std::string own = "/proc/" + std::to_string(getpid()) + "/fd/";
  for (const std::string_view prefix : {std::string_view("/dev/fd/"), std::string_view("/proc/self/fd/"),
                                        std::string_view("/proc/thread-self/fd/"), std::string_view(own)}) {
    if (!path.starts_with(prefix)) continue;
    int number = -1;
    const char *begin = path.data() + prefix.size(), *end = path.data() + path.size();
    const auto [rest, failed] = std::from_chars(begin, end, number);
    if (failed == std::errc() && rest == end && number >= 0) return number;
  }
  return std::nullopt;
}

[[noreturn]] void refuse_target(const std::string& path, const std::string& reason) {
  throw Error(ErrorKind::kIo, path + ": cannot be written: " + reason);
}

/// FIFOs that are open for writing and not written yet, by their path.
struct OpenFifos {
  std::mutex mutex;
  std::map<std::string, int> descriptors;
};
OpenFifos& open_fifos() {
  static OpenFifos fifos;
  return fifos;
}

void open_fifo(const std::string& path, const std::string& name) {
  constexpr auto kPatience = std::chrono::seconds(5);  // of a script that starts writer and reader side by side
  constexpr auto kPause = std::chrono::milliseconds(20);
  OpenFifos& fifos = open_fifos();
  const std::lock_guard lock(fifos.mutex);
  if (fifos.descriptors.contains(name)) return;
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (true) {
    // Without O_NONBLOCK it would wait for a reader for ever.
    const int descriptor = open(name.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    if (descriptor >= 0) {
      fifos.descriptors[name] = descriptor;
      return;
    }
    if (errno != ENXIO) throw_write_error(path, errno);
    if (std::chrono::steady_clock::now() >= end)
      refuse_target(path, "it is a pipe that nobody reads; start its reader first");
    std::this_thread::sleep_for(kPause);
  }
}

bool is_stream(const std::string& path, mode_t mode) {
  if (S_ISDIR(mode)) refuse_target(path, "it is a folder; give the name of a file in it");
  if (S_ISBLK(mode)) refuse_target(path, "it is a block device, whose contents would be lost; give the name of a file");
  if (S_ISSOCK(mode)) refuse_target(path, "it is a socket; give the name of a file");
  return S_ISCHR(mode) || S_ISFIFO(mode);
}

OutputTarget target_of_descriptor(const std::string& path, const std::string& name, int descriptor) {
  struct stat status {};
  if (fstat(descriptor, &status) != 0) throw_write_error(path, errno);
  const int access_mode = fcntl(descriptor, F_GETFL) & O_ACCMODE;
  if (S_ISDIR(status.st_mode) || access_mode == O_RDONLY) refuse_target(path, "it is not open for writing");
  return {name, true, descriptor};
}

}  // namespace

int take_fifo(const std::string& target_path) {
  OpenFifos& fifos = open_fifos();
  const std::lock_guard lock(fifos.mutex);
  const auto found = fifos.descriptors.find(target_path);
  if (found == fifos.descriptors.end()) return -1;
  const int descriptor = found->second;
  fifos.descriptors.erase(found);
  return descriptor;
}

std::string folder_of(const std::string& path) {
  const std::string folder = std::filesystem::path(path).parent_path().string();
  return folder.empty() ? "." : folder;
}

std::string lower_extension(const std::string& path) {
  std::string extension = std::filesystem::path(path).extension().string();
  for (char& letter : extension) letter = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
  return extension;
}

OutputTarget resolve_output(const std::string& path) {
  if (std::filesystem::path(path).filename().empty()) {
    throw Error(ErrorKind::kIo, "\"" + path + "\" is not the name of a file; give one to write to");
  }
  std::string name = path;
  for (int links = 0; links <= kMaxLinks; ++links) {
    if (const auto descriptor = descriptor_named(name)) return target_of_descriptor(path, name, *descriptor);
    struct stat status {};
    const bool exists = lstat(name.c_str(), &status) == 0;
    if (!exists && errno != ENOENT) throw_write_error(path, errno);
    if (exists && S_ISLNK(status.st_mode)) {
      std::error_code error;
      const std::filesystem::path next = std::filesystem::read_symlink(name, error);
      if (error) throw_write_error(path, error.value());
      name = next.is_absolute() ? next.string() : (std::filesystem::path(folder_of(name)) / next).string();
      continue;
    }
    const std::string folder = folder_of(name);
    struct stat folder_status {};
    if (stat(folder.c_str(), &folder_status) != 0) throw_write_error(path, errno);
    const bool stream = exists && is_stream(path, status.st_mode);
    if (exists && access(name.c_str(), W_OK) != 0) throw_write_error(path, errno);
    if (stream && S_ISFIFO(status.st_mode)) open_fifo(path, name);
    if (!stream && access(folder.c_str(), W_OK | X_OK) != 0) throw_write_error(path, errno);
    return {name, stream, -1};
  }
  throw_write_error(path, ELOOP);
}

}  // namespace calibatt
