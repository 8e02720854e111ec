#pragma once

#include <vector>

#include "backend/attention_call.h"
#include "base/tensor.h"
#include "cases.h"

namespace calibatt::bench {

/// A case with its inputs, masks and outputs in memory.
class Workload {
 public:
  explicit Workload(const Case& bench_case);
  Workload(const Workload&) = delete;

  const Case& bench_case() const { return case_; }
  const AttentionCall& call() const { return call_; }
  double density() const { return density_; }  ///< of computed (query, key) pairs
  double flops() const;                        ///< multiplications and additions of both products, kept blocks only

  /// Runs once and compares some query blocks of every head with the reference. Returns the relative error; throws
  /// std::runtime_error when it is not what the dtype allows.
  double check();
  void run() const;

  /// q, k, v as [heads, tokens, head_dim], for other programs.
  std::vector<char> head_major(const ConstHeadsView& view) const;
  /// Relative L2 difference of the last output from rows of the same layout, as floats.
  double difference(const std::vector<float>& head_major_rows) const;

 private:
  double check_block(int head, int query_block);

  Case case_;
  Tensor q_, k_, v_, out_;  ///< inputs are shared by all cases of one shape and dtype
  std::vector<BlockIntervals> intervals_;
  AnchorRows anchors_;
  std::vector<HeadSchedule> schedules_;
  std::vector<float> energy_;
  AttentionCall call_;
  double density_ = 1;
};

}  // namespace calibatt::bench
