#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/step_reuse.h"

namespace calibatt {

/// Which parts of a denoising step's forwards are computed in 8 bits; the others are in the run's precision.
struct EightBitParts {
  bool attention = false;  ///< self-attention (AttentionCall::eight_bits)
  bool layers = false;     ///< the blocks' linear layers that bear it (EightBitOps)

  bool any() const { return attention || layers; }
  bool operator==(const EightBitParts&) const = default;
};

/// Of which arithmetic the kernels in 8 bits are: raised with every change that moves what they round (types, scales,
/// how sums are kept), not with one that makes them faster alone. What calibration measured of another is measured anew
/// (StepGrowth). Attention: 2 since 30 November 2026, a quarter of the exponentials as lines, float sums half as often,
/// means of samples. Layers: 2 since then, attention to the prompt in e4m3.
constexpr int kAttentionArithmetic = 2, kLayerArithmetic = 2;

/// What of it is computed: a step that is reused has no forward. reuse: of each step; empty: all run.
std::vector<EightBitParts> of_forwards(std::vector<EightBitParts> steps, std::span<const StepReuse> reuse);

/// "none", "attention", "layers", "attention+layers": in plan files, reports and messages.
std::string_view eight_bit_parts_name(EightBitParts parts);
std::vector<std::string> eight_bit_parts_names(std::span<const EightBitParts> steps);
std::optional<EightBitParts> parse_eight_bit_parts(std::string_view name);

}  // namespace calibatt
