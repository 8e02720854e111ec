#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace calibatt {

/// Which parts of a denoising step's forwards are computed in 8 bits; the others are in the run's precision.
struct EightBitParts {
  bool attention = false;  ///< self-attention (AttentionCall::eight_bits)
  bool layers = false;     ///< the blocks' linear layers that bear it (EightBitOps)

  bool any() const { return attention || layers; }
  bool operator==(const EightBitParts&) const = default;
};

/// "none", "attention", "layers", "attention+layers": in plan files, reports and messages.
std::string_view eight_bit_parts_name(EightBitParts parts);
std::vector<std::string> eight_bit_parts_names(std::span<const EightBitParts> steps);
std::optional<EightBitParts> parse_eight_bit_parts(std::string_view name);

}  // namespace calibatt
