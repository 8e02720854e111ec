#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "calibatt/pipeline.h"

namespace calibatt {

/// Pairs of a query and a key: whole numbers, exact.
struct TokenPairs {
  double computed = 0, all = 0;
  void add(const TokenPairs& other) {
    computed += other.computed;
    all += other.all;
  }
  double density() const { return all > 0 ? computed / all : 1.0; }
};

/// What the self-attention of one denoising run did (its time is the model's to take: TransformerTimes). Calls are
/// counted per branch of guidance: one forward of one branch makes one call per layer.
struct AttentionReport {
  int64_t calls = 0;
  int64_t dense_fallback_calls = 0;  ///< planned, but run dense because the plan does not fit
  std::string fallback_reason;       ///< why; empty when there was none
  std::string step_mapping;          ///< how the run's steps were mapped to the plan's; empty when they are the same
  std::optional<PlanUse> plan;       ///< where a plan was applied

  /// Computed (query, key) token pairs over all pairs, anchors and blocks together, of the calls that were made.
  /// Summary tokens are not counted. 1 where no call was made.
  double density = 1;
  std::vector<std::vector<double>> density_map;  ///< [step][layer]; 0 in a step that runs no forward
  TokenPairs pairs;                              ///< of which these are made
  std::vector<std::vector<TokenPairs>> pairs_map;
  std::map<std::string, int64_t, std::less<>> kernel_calls;  ///< by the kernel's name; calls without one are left out

  /// The same of the run's other branch of guidance, which others computed. Text of joint attention makes its density
  /// another.
  void add_branch(const AttentionReport& other);
};

/// Adds up what an AttentionReport tells.
class AttentionMeter {
 public:
  AttentionMeter(int num_steps, int num_layers);

  /// One call at this site, all heads together, by this kernel (AttentionEngine::attention). A site beyond the table
  /// counts in the totals only.
  void add(int step, int layer, int64_t computed_pairs, int64_t all_pairs, std::string_view kernel);
  void add_fallback() { ++fallback_calls_; }
  /// This step makes no call: its row of the map is 0.
  void skip_step(int step);
  AttentionReport report() const;

 private:
  int num_steps_, num_layers_;
  std::vector<std::vector<TokenPairs>> pairs_;  // [num_steps][num_layers]
  TokenPairs total_;
  std::vector<bool> skipped_;  // [num_steps]
  int64_t calls_ = 0, fallback_calls_ = 0;
  std::map<std::string, int64_t, std::less<>> kernel_calls_;
};

}  // namespace calibatt
