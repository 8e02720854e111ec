#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

namespace calibatt::cuda {

inline constexpr int kMaxLevels = 15;
inline constexpr int kMaxLevelColumns = 4096;

/// For every block of a query block's energies the number of levels from which on it is kept, 4 bits each. With
/// q = rint(E·2³⁰) and before(c) = the sum of q over the blocks of greater q, or of equal q and lower index:
///     code(c) = number of levels ℓ with ℓ·Σq ≤ before(c)
/// in integers, so that every device and the host get the same. All energies 0: as if they were equal. A row with an
/// energy that is not finite, negative or above 1.001 is all 15. energy [rows, columns], levels rising, in 1/65536, at
/// most kMaxLevels; codes [rows, ⌈columns/2⌉], two a byte, the even block in the low half, 15 where a half is left
/// over. Device memory but for `levels`; at most kMaxLevelColumns columns. Enqueues one kernel.
void encode_levels(const float* energy, int64_t rows, int columns, std::span<const uint32_t> levels, uint8_t* codes,
                   cudaStream_t stream);

}  // namespace calibatt::cuda
