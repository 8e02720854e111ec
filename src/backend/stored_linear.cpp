#include "backend/stored_linear.h"

#include "base/checked_copy.h"
#include "base/error.h"

namespace calibatt {

void refuse_not_finite(const StoredTensor& stored) {
  throw Error(ErrorKind::kNumeric, stored.name +
                                       " holds NaN or infinity; the file is damaged or was saved from a run that "
                                       "diverged: fetch it again");
}

Tensor stack_rows(const std::vector<StoredTensor>& parts, DType dtype) {
  CALIBATT_ASSERT(!parts.empty());
  std::vector<int64_t> shape = parts[0].tensor.shape();
  if (parts.size() == 1 && parts[0].tensor.dtype() == dtype) {  // as it is, in the mapped file
    if (!all_finite(parts[0].tensor)) refuse_not_finite(parts[0]);
    return parts[0].tensor;
  }
  shape[0] = 0;
  for (const StoredTensor& part : parts) shape[0] += part.tensor.dim(0);
  Tensor all(dtype, shape);
  char* to = static_cast<char*>(all.raw());
  for (const StoredTensor& part : parts) {
    const int64_t count = part.tensor.size();
    if (!checked_copy(part.tensor.raw(), part.tensor.dtype(), to, dtype, count)) refuse_not_finite(part);
    to += static_cast<size_t>(count) * dtype_size(dtype);
  }
  return all;
}

}  // namespace calibatt
