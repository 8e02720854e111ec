#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "attention_cases.h"
#include "backend/cuda/attention/attention.h"

namespace calibatt {

/// Device memory between two guards of ones (NaN in every float type): reading across an end spoils results, writing
/// across it is seen. Under compute-sanitizer, set the environment variable CALIBATT_NO_GUARDS: it then sees every
/// access outside the memory proper.
class GuardedBuffer {
 public:
  explicit GuardedBuffer(size_t size_bytes);
  void* data() const;
  void write(const void* host, size_t size_bytes, size_t offset = 0);
  void read(void* host, size_t size_bytes, size_t offset = 0) const;
  void fill_with_ones();
  bool guards_are_intact() const;

 private:
  size_t size_bytes_;
  cuda::DeviceBuffer buffer_;
};

/// Problems of equal shape and schedule as one batched call on the GPU.
class DeviceProblem {
 public:
  explicit DeviceProblem(std::vector<AttentionProblem*> problems, bool wants_row_lse = false);
  explicit DeviceProblem(AttentionProblem& problem) : DeviceProblem(std::vector{&problem}) {}

  cuda::AttentionArgs& args() { return args_; }
  /// Makes room for what the kernel asks for, all ones; throws as cuda::attention does.
  void make_workspace(std::string_view kernel);
  void* workspace() const { return workspace_->data(); }
  size_t workspace_bytes() const { return workspace_bytes_; }

  void upload_outputs();               ///< what the problems' outputs hold, poison as a rule
  void download_outputs();             ///< back into the problems; fails the test when a guard was written over
  std::vector<float> row_lse() const;  ///< [batch, heads, queries]

  /// All of it: workspace, outputs there, the call, outputs back.
  void run(std::string_view kernel);

 private:
  const GuardedBuffer& upload_inputs(const Tensor& (AttentionProblem::*storage)() const);

  std::vector<AttentionProblem*> problems_;
  std::vector<std::pair<const void*, std::unique_ptr<GuardedBuffer>>> inputs_;  ///< by the host tensor's address
  std::unique_ptr<GuardedBuffer> out_, energy_, row_lse_, workspace_;
  size_t workspace_bytes_ = 0;
  cuda::ResidentSchedule schedule_;
  cuda::AttentionArgs args_;
};

}  // namespace calibatt
