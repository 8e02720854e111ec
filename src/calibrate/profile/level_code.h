#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "backend/calibration_ops.h"
#include "backend/device.h"
#include "base/tensor.h"

namespace calibatt {

/// What is kept of a block energy map when there is no room for the map: for every block the rung of a ladder of energy
/// levels from which on it is kept (Eq. 6), 4 bits. With E the energies of one query block, in fixed point
/// q = rint(E·2³⁰), and before(c) = the sum of q over the blocks that come before c (greater q, or equal and at a lower
/// index):
///     code(c) = number of ladder levels ℓ with ℓ·Σq ≤ before(c),      so: c is kept at level ℓᵢ iff code(c) ≤ i.
/// All of it is integer arithmetic, so that hosts and devices get the same codes whatever order they add in. A row has
/// at least one code 0. Two codes a byte, the even block in the low half; a row's last half byte, if left over, is 15.
inline constexpr int kNumCodeLevels = 15;
/// In 1/1024: dense where schedules go (.73 to .99), coarse where no plan keeps so little.
inline constexpr std::array<int, kNumCodeLevels> kCodeLevels{307, 430, 532, 614, 686, 748, 799, 840,
                                                             876, 906, 932, 957, 978, 998, 1014};
inline constexpr int kLevelUnits = 1024;
/// The same in 1/65536, as CalibrationOps::encode_energy_levels takes them.
std::span<const uint32_t> code_ladder();

inline int64_t packed_row_bytes(int num_key_blocks) {
  return (int64_t{num_key_blocks} + 1) / 2;
}

/// One row: energy [num_key_blocks] ≥ 0, sum about 1 → packed_row_bytes. False when an energy is not finite, negative
/// or above 1.001, or when Σq ≥ 2³¹; the codes are all 15 then. All zeros: as if all were equal.
bool encode_row(std::span<const float> energy, uint8_t* packed);
/// packed row → one code a byte.
void decode_row(const uint8_t* packed, int num_key_blocks, uint8_t* codes);

/// All rows on all threads. energy: host F32 [heads, R, C] → codes [heads, R, packed_row_bytes]. Rows that are not
/// distributions get the codes of encode_row's refusal.
void encode_levels(const Tensor& energy, uint8_t* codes);
/// Whether every row has a block that is always kept, as every encoded distribution has.
bool all_rows_valid(const uint8_t* codes, int64_t num_rows, int num_key_blocks);

/// Level codes of one call's energies, which live on the backend's device: made there where it can, in `device_codes`
/// (scratch memory to reuse), else from a host copy. This is the place where folding happens.
struct Folded {
  Tensor codes;   ///< host U8 [heads, R, packed_row_bytes] when the device made them, else empty
  Tensor energy;  ///< host F32 [heads, R, C] to be given to encode_levels, else empty
};
Folded fold_energy(Device& device, CalibrationOps* ops, const Tensor& energy, Tensor& device_codes);

/// Sorts 0 … keys.size() − 1 by rising key, equal keys by index. Linear time; `order` and `scratch` are resized.
struct SortScratch {
  std::vector<uint32_t> keys, other_keys, other_order;
};
void sort_by_key(SortScratch& scratch, std::vector<uint32_t>& order);

}  // namespace calibatt
