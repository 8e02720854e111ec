#pragma once

#include <span>

#include "calibrate/compile/compile_options.h"
#include "calibrate/profile/profile.h"

namespace calibatt {

/// The forwards of a run, and how many of them have a part in 8 bits.
struct Forwards {
  int all = 0, layers = 0, attention = 0;
};

/// What a forward takes in the mean over those of a run, over a dense one in the run's own precision
/// (CompileOptions::attention_share and gains).
class RunCost {
 public:
  RunCost(const CompileOptions& options, const ProfileHeader& header);

  /// With masks of this density; 1: without masks.
  double of(const Forwards& forwards, double density) const;
  /// The density at which it takes so much, at most 1; below 0 where it always takes more.
  double density_at(const Forwards& forwards, double cost) const;

  /// What 8 bits save of one forward at this density; of attention it may be less than nothing.
  double saved_by_layers() const { return (1 - attention_share_) * (1 - 1 / gains_.layers); }
  double saved_by_attention(double density) const;

 private:
  double attention(double density) const;  ///< over dense attention
  double gain(double density) const { return gains_.of_attention(num_tokens_, density); }

  double attention_share_, summary_pairs_;
  const EightBitGains& gains_;
  int num_tokens_;
};

/// Of the steps that run a forward.
Forwards count_forwards(std::span<const StepReuse> reuse, std::span<const EightBitParts> eight_bits);

}  // namespace calibatt
