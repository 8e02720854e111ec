#pragma once

#include <cstdio>
#include <string>

#include "clock.h"
#include "workload.h"

namespace calibatt::bench {

/// torch's scaled_dot_product_attention in a process of its own (torch_sdpa.py), which computes when it is told to, so
/// that its runs alternate with ours. It sleeps in between.
class TorchProcess {
 public:
  /// Starts `python script` and hands it the inputs of both workloads. Throws std::runtime_error with what it said.
  TorchProcess(const std::string& python, const std::string& script, int num_threads);
  ~TorchProcess();
  TorchProcess(const TorchProcess&) = delete;

  const std::string& version() const { return version_; }
  /// Loads the inputs and computes once; returns the relative difference from the workload's own (last) output.
  double check(const Workload& workload, const std::string& name);
  double run(const std::string& name, Clock clock);  ///< seconds of one call

 private:
  std::string ask(const std::string& request);

  int pid_ = -1;
  FILE* requests_ = nullptr;
  FILE* answers_ = nullptr;
  std::string version_, folder_;
};

}  // namespace calibatt::bench
