#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/dtype.h"
#include "calibrate/profile/profile.h"

namespace calibatt {

/// What is kept of a head's matrix of harm [R, C] when there is no room for it: for every block the rung of the ladder
/// of densities (kDensityLevels, without the last, 1) from which on it is kept, 4 bits, and of every rung the mean harm
/// of its blocks. With before(b) = the number of the head's blocks whose harm is greater, as a bf16:
///     code(b) = number of densities d with d·R·C ≤ before(b),      so: b is kept at density dᵢ iff code(b) ≤ i.
/// Blocks of equal harm have one code. Two codes a byte, row by row, as energy's codes have it (level_code.h).
inline constexpr int kNumHarmRungs = static_cast<int>(kDensityLevels.size());

/// One head: harm [R · C] ≥ 0 → codes [R, packed_row_bytes(C)], rung_harm [kNumHarmRungs] (of a rung without blocks:
/// 0). False when a value is negative or not finite; nothing is written then.
bool encode_harm(std::span<const bfloat16> harm, int num_key_blocks, uint8_t* codes, float* rung_harm);

/// One head's harm [R, C] → the rung from which on a plan keeps each block, one a byte: its code, or 0 for a query
/// block's own keys and its worst key block (harm_inclusion, keep_own_blocks). False as encode_harm.
bool harm_rungs(std::span<const bfloat16> harm, const AttentionGeometry& geometry, uint8_t* rungs);

/// One head's harm [R, C] as codes tell it: mean over prompts of the mean of each block's rung, with the neighbouring
/// recorded steps mixed in (for_each_neighbouring_step). site_head = (recorded · layers + layer) · heads + head.
std::vector<float> restored_harm(const ProfileHeader& header, std::span<const PromptProfile* const> prompts,
                                 size_t site_head);

}  // namespace calibatt
