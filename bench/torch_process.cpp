#include "torch_process.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>

namespace calibatt::bench {
namespace {

void write_file(const std::string& path, const std::vector<char>& bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!file.flush()) throw std::runtime_error("cannot write " + path);
}

}  // namespace

TorchProcess::TorchProcess(const std::string& python, const std::string& script, int num_threads) {
  std::string pattern = (std::filesystem::temp_directory_path() / "calibatt_bench_XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("cannot make a temporary folder");
  folder_ = pattern;
  int to_child[2], from_child[2];
  if (pipe(to_child) != 0 || pipe(from_child) != 0) throw std::runtime_error("cannot make pipes");
  const std::string threads = std::to_string(num_threads);
  pid_ = fork();
  if (pid_ == 0) {
    dup2(to_child[0], STDIN_FILENO);
    dup2(from_child[1], STDOUT_FILENO);
    for (const int fd : {to_child[0], to_child[1], from_child[0], from_child[1]}) close(fd);
    setenv("OMP_WAIT_POLICY", "passive", 1);  // its threads must not spin while ours compute
    execlp(python.c_str(), python.c_str(), script.c_str(), threads.c_str(), folder_.c_str(), nullptr);
    _exit(127);
  }
  close(to_child[0]);
  close(from_child[1]);
  requests_ = fdopen(to_child[1], "w");
  answers_ = fdopen(from_child[0], "r");
  version_ = ask("version");
}

TorchProcess::~TorchProcess() {
  if (requests_) fclose(requests_);
  if (answers_) fclose(answers_);
  if (pid_ > 0) waitpid(pid_, nullptr, 0);
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

std::string TorchProcess::ask(const std::string& request) {
  char line[512] = "";
  std::fprintf(requests_, "%s\n", request.c_str());
  std::fflush(requests_);
  if (std::fgets(line, sizeof(line), answers_) == nullptr) throw std::runtime_error("torch process ended");
  std::string answer = line;
  while (!answer.empty() && answer.back() == '\n') answer.pop_back();
  if (answer.starts_with("error")) throw std::runtime_error("torch: " + answer);
  return answer;
}

double TorchProcess::check(const Workload& workload, const std::string& name) {
  const AttentionCall& call = workload.call();
  write_file(folder_ + "/q", workload.head_major(call.q));
  write_file(folder_ + "/k", workload.head_major(call.k));
  write_file(folder_ + "/v", workload.head_major(call.v));
  ask("load " + name + (call.q.dtype == DType::kF32 ? " float32 " : " bfloat16 ") + std::to_string(call.num_heads) +
      " " + std::to_string(call.q.num_tokens) + " " + std::to_string(call.head_dim));
  std::vector<float> rows(static_cast<size_t>(call.num_heads * call.q.num_tokens * call.head_dim));
  std::ifstream file(folder_ + "/out", std::ios::binary);
  file.read(reinterpret_cast<char*>(rows.data()), static_cast<std::streamsize>(rows.size() * sizeof(float)));
  if (!file) throw std::runtime_error("torch wrote no output");
  return workload.difference(rows);
}

double TorchProcess::run(const std::string& name, Clock clock) {
  return std::stod(ask((clock == Clock::kWall ? "run wall " : "run cpu ") + name));
}

}  // namespace calibatt::bench
