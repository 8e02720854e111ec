#include "backend/stored_linear.h"

#include "base/checked_copy.h"
#include "base/error.h"

namespace calibatt {

void refuse_not_finite(const StoredTensor& stored) {
  throw Error(ErrorKind::kNumeric, stored.name +
                                       " holds NaN or infinity; the file is damaged or was saved from a run that "
                                       "diverged: fetch it again");
}

void require_unscaled(const StoredTensor& stored) {
  if (stored.scales.empty()) return;
  throw Error(ErrorKind::kFormat, stored.name + " has scales, which are not applied yet; use weights without");
}

DType unscaled_dtype(const LinearFormat& format, std::string_view backend) {
  if (format.weight_scales == Scales::kNone && format.input_scales == Scales::kNone) return format.dtype;
  throw Error(ErrorKind::kUsage, "the backend " + std::string(backend) + " has no linear layers of " +
                                     std::string(dtype_name(format.dtype)) + " with scales; choose another precision");
}

Tensor stack_rows(const std::vector<StoredTensor>& parts, DType dtype) {
  CALIBATT_ASSERT(!parts.empty());
  for (const StoredTensor& part : parts) require_unscaled(part);
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
