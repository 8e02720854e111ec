#pragma once

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"
#include "base/tensor.h"

namespace calibatt {

/// Copies `count` elements of a float dtype (F64, F32, BF16, F16; at any address) to `to` in `to_dtype`: the stored one
/// as it is, or F32, BF16 or F16 (rounded to nearest even; too large for F16 becomes infinity). Returns false when one
/// of them is NaN or infinite; all are copied even so. One pass over the memory, in parallel: a mapped file is read,
/// checked and staged at the speed of the disk. Throws Error(kUnreadable), as all_finite does, when a mapped file could
/// not be read (mapped_ranges.h).
bool checked_copy(const void* from, DType dtype, void* to, DType to_dtype, int64_t count);

/// True when no element of a float tensor on the host is NaN or infinite. One pass at memory speed.
bool all_finite(const Tensor& tensor);

}  // namespace calibatt
