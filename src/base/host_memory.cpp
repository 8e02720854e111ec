#include "base/host_memory.h"

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <limits>

namespace calibatt {
namespace {

/// The number after `key` in a file of lines "key number …"; nothing when there is none.
bool read_number(const std::string& path, const std::string& key, uint64_t& value) {
  std::ifstream file(path);
  for (std::string word; file >> word;) {
    if (word == key) return static_cast<bool>(file >> value);
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return false;
}

bool read_number(const std::string& path, uint64_t& value) {
  std::ifstream file(path);
  return static_cast<bool>(file >> value);  // "max" is no number
}

}  // namespace

size_t available_host_memory(const std::string& root) {
  uint64_t kibibytes = 0, available = SIZE_MAX;
  if (read_number(root + "/proc/meminfo", "MemAvailable:", kibibytes)) available = kibibytes * 1024;
  // Version 2 of control groups, as containers see their own.
  const std::string group = root + "/sys/fs/cgroup/";
  uint64_t limit = 0, used = 0;
  if (read_number(group + "memory.max", limit) && read_number(group + "memory.current", used)) {
    uint64_t active = 0, inactive = 0;  // pages of files, which go when they must
    read_number(group + "memory.stat", "active_file", active);
    read_number(group + "memory.stat", "inactive_file", inactive);
    used -= std::min(used, active + inactive);
    available = std::min(available, limit - std::min(limit, used));
  }
  return available;
}

}  // namespace calibatt
