#include "command.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <thread>

namespace calibatt::test {

CommandResult run_calibatt(const std::string& arguments, const std::string& before) {
  return run_while(arguments, before, "", [] {});
}

CommandResult run_while(const std::string& arguments, const std::string& before, const std::string& text,
                        const std::function<void()>& action) {
  // The shell's own redirections in `arguments` come before ours, which is for what they leave.
  std::FILE* pipe = popen(("{ " + before + CALIBATT_BINARY + " " + arguments + "\n} 2>&1").c_str(), "r");
  if (pipe == nullptr) throw std::runtime_error("popen failed");
  CommandResult result;
  bool acted = text.empty();
  std::array<char, 4096> buffer;
  ssize_t count = 0;
  while ((count = read(fileno(pipe), buffer.data(), buffer.size())) > 0) {
    result.output.append(buffer.data(), static_cast<size_t>(count));
    if (acted || result.output.find(text) == std::string::npos) continue;
    acted = true;
    action();
  }
  const int status = pclose(pipe);
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  return result;
}

bool kill_calibatt_once(const std::string& arguments, const std::filesystem::path& file) {
  const pid_t child = fork();
  if (child < 0) throw std::runtime_error("fork failed");
  if (child == 0) {
    const int null = open("/dev/null", O_WRONLY);
    dup2(null, STDOUT_FILENO);
    dup2(null, STDERR_FILENO);
    execl("/bin/sh", "sh", "-c", ("exec " CALIBATT_BINARY " " + arguments).c_str(), static_cast<char*>(nullptr));
    _exit(127);
  }
  int status = 0;
  while (!std::filesystem::exists(file)) {
    if (waitpid(child, &status, WNOHANG) == child) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  kill(child, SIGKILL);
  waitpid(child, &status, 0);
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

CommandResult interrupt_calibatt(const std::string& arguments, const std::string& text, int signal, int times) {
  int ends[2];
  if (pipe(ends) != 0) throw std::runtime_error("pipe failed");
  const pid_t child = fork();
  if (child < 0) throw std::runtime_error("fork failed");
  if (child == 0) {
    dup2(ends[1], STDOUT_FILENO);
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    close(ends[1]);
    execl("/bin/sh", "sh", "-c", ("exec " CALIBATT_BINARY " " + arguments).c_str(), static_cast<char*>(nullptr));
    _exit(127);
  }
  close(ends[1]);
  CommandResult result;
  std::array<char, 4096> buffer;
  bool sent = false;
  ssize_t count = 0;
  while ((count = read(ends[0], buffer.data(), buffer.size())) > 0) {
    result.output.append(buffer.data(), static_cast<size_t>(count));
    if (sent || result.output.find(text) == std::string::npos) continue;
    sent = true;
    for (int i = 0; i < times; ++i) {
      if (i > 0) std::this_thread::sleep_for(std::chrono::milliseconds(100));
      kill(child, signal);
    }
  }
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  return result;
}

TemporaryFolder::TemporaryFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "calibatt_test_XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
  path = pattern;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path, ignored);
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

void write_file(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

}  // namespace calibatt::test
