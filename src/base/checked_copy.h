#pragma once

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"
#include "base/tensor.h"

namespace calibatt {

/// What one pass over floating-point values finds.
struct ValueCheck {
  bool finite = true;    ///< none is NaN or infinite
  bool constant = true;  ///< all have the same bits
  bool any = false;      ///< there was at least one
  uint64_t first = 0;    ///< the bits of one of them

  void join(const ValueCheck& other);  ///< as if both had been found in one pass
};

/// Copies `count` elements of a float dtype (F64, F32, BF16, F16; at any address) to `to` in `to_dtype`: the stored one
/// as it is, or F32, BF16 or F16 (rounded to nearest even; too large for F16 becomes infinity). All are
/// copied, whatever is found. One pass over the memory, in parallel: a mapped file is read,
/// checked and staged at the speed of the disk. Throws Error(kUnreadable), as all_finite does, when a mapped file could
/// not be read (mapped_ranges.h).
ValueCheck checked_copy(const void* from, DType dtype, void* to, DType to_dtype, int64_t count);

ValueCheck check_values(const Tensor& tensor);  ///< of a float tensor on the host; one pass at memory speed

/// True when no element of a float tensor on the host is NaN or infinite. One pass at memory speed.
bool all_finite(const Tensor& tensor);

}  // namespace calibatt
