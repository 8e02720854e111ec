#include "base/eight_bit_parts.h"

#include <algorithm>
#include <array>

namespace calibatt {
namespace {

constexpr std::array<std::string_view, 4> kNames{"none", "attention", "layers", "attention+layers"};

EightBitParts parts_at(size_t index) {
  return {(index & 1) != 0, (index & 2) != 0};
}

}  // namespace

std::vector<EightBitParts> of_forwards(std::vector<EightBitParts> steps, std::span<const StepReuse> reuse) {
  for (size_t step = 0; step < std::min(steps.size(), reuse.size()); ++step) {
    if (reuse[step] != StepReuse::kNone) steps[step] = {};
  }
  return steps;
}

std::string_view eight_bit_parts_name(EightBitParts parts) {
  return kNames[(parts.attention ? 1U : 0U) + (parts.layers ? 2U : 0U)];
}

std::vector<std::string> eight_bit_parts_names(std::span<const EightBitParts> steps) {
  std::vector<std::string> names;
  names.reserve(steps.size());
  for (const EightBitParts each : steps) names.emplace_back(eight_bit_parts_name(each));
  return names;
}

std::optional<EightBitParts> parse_eight_bit_parts(std::string_view name) {
  for (size_t index = 0; index < kNames.size(); ++index) {
    if (kNames[index] == name) return parts_at(index);
  }
  return std::nullopt;
}

}  // namespace calibatt
