#include "base/host_memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace calibatt {
namespace {

class HostMemory : public testing::Test {
 protected:
  ~HostMemory() override { std::filesystem::remove_all(root_); }
  void write(const std::string& path, const std::string& text) const {
    std::filesystem::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  std::filesystem::path root_ =
      std::filesystem::temp_directory_path() / ("calibatt_host_memory_" + std::to_string(getpid()));
};

TEST_F(HostMemory, IsWhatTheSystemHasAvailable) {
  write("proc/meminfo", "MemTotal:  9000 kB\nMemFree: 10 kB\nMemAvailable:   4000 kB\nBuffers: 3 kB\n");
  EXPECT_EQ(available_host_memory(root_), 4000u * 1024);
  write("sys/fs/cgroup/memory.max", "max\n");
  write("sys/fs/cgroup/memory.current", "1000\n");
  EXPECT_EQ(available_host_memory(root_), 4000u * 1024) << "a group without a limit";
}

TEST_F(HostMemory, IsLessInAGroupWithALimit) {
  write("proc/meminfo", "MemAvailable:   4000 kB\n");
  write("sys/fs/cgroup/memory.max", "1000000\n");
  write("sys/fs/cgroup/memory.current", "700000\n");
  EXPECT_EQ(available_host_memory(root_), 300000u);
  write("sys/fs/cgroup/memory.stat", "anon 100000\nfile 600000\ninactive_file 400000\nactive_file 200000\n");
  EXPECT_EQ(available_host_memory(root_), 900000u) << "pages of files give way";
}

TEST_F(HostMemory, OfThisMachine) {
  const size_t physical = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
  EXPECT_GT(available_host_memory(), 0u);
  EXPECT_LE(available_host_memory(), physical);
}

}  // namespace
}  // namespace calibatt
