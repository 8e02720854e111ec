#include "command.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <thread>

namespace calibatt::test {

namespace {

/// A shell whose output comes through a pipe that holds one line: its second write waits until the first was read.
class Child {
 public:
  explicit Child(const std::string& script) {
    int ends[2];
    if (pipe2(ends, O_DIRECT | O_CLOEXEC) != 0) throw std::runtime_error("pipe failed");
    if (fcntl(ends[1], F_SETPIPE_SZ, 1) < 0) throw std::runtime_error("the pipe's size cannot be set");  // a page
    process_ = fork();
    if (process_ < 0) throw std::runtime_error("fork failed");
    if (process_ == 0) {
      dup2(ends[1], STDOUT_FILENO);
      dup2(ends[1], STDERR_FILENO);
      execl("/bin/sh", "sh", "-c", script.c_str(), static_cast<char*>(nullptr));
      _exit(127);
    }
    close(ends[1]);
    output_ = ends[0];
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  pid_t id() const { return process_; }

  /// Meanwhile nothing is read.
  void wait_for_end(std::chrono::seconds at_most) const {
    const auto give_up = std::chrono::steady_clock::now() + at_most;
    siginfo_t info{};
    while (waitid(P_PID, static_cast<id_t>(process_), &info, WEXITED | WNOWAIT | WNOHANG) == 0 && info.si_pid == 0 &&
           std::chrono::steady_clock::now() < give_up) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  /// Reads to the end; calls `action` once, as soon as there is `text`.
  CommandResult finish(const std::string& text, const std::function<void()>& action) {
    CommandResult result;
    bool acted = text.empty();
    std::array<char, 4096> buffer;
    ssize_t count = 0;
    while ((count = read(output_, buffer.data(), buffer.size())) > 0) {
      result.output.append(buffer.data(), static_cast<size_t>(count));
      if (acted || result.output.find(text) == std::string::npos) continue;
      acted = true;
      action();
    }
    close(output_);
    int status = 0;
    waitpid(process_, &status, 0);
    result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    return result;
  }

 private:
  pid_t process_ = 0;
  int output_ = -1;
};

}  // namespace

CommandResult run_calibatt(const std::string& arguments, const std::string& before) {
  return run_while(arguments, before, "", [] {});
}

CommandResult run_while(const std::string& arguments, const std::string& before, const std::string& text,
                        const std::function<void()>& action) {
  return Child(before + CALIBATT_BINARY + " " + arguments).finish(text, action);
}

CommandResult interrupt_calibatt(const std::string& arguments, const std::string& text,
                                 const std::vector<int>& signals) {
  Child child("exec " CALIBATT_BINARY " " + arguments);
  return child.finish(text, [&] {
    for (const int signal : signals) kill(child.id(), signal);
    if (signals.size() > 1) child.wait_for_end(std::chrono::minutes(1));
  });
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
