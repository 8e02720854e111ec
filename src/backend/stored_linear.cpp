#include "backend/stored_linear.h"

#include "base/error.h"

namespace calibatt {

void accept_values(const StoredTensor& stored, const ValueCheck& found) {
  if (!found.finite) {
    throw Error(ErrorKind::kNumeric, stored.name +
                                         " holds NaN or infinity; the file is damaged or was saved from a run that "
                                         "diverged: fetch it again");
  }
  if (found.constant && stored.found_constant) stored.found_constant();
}

void require_unscaled(const StoredTensor& stored) {
  if (stored.scales.empty()) return;
  throw Error(ErrorKind::kFormat, stored.name + " has scales, which are not applied yet; use weights without");
}

void require_known_format(const LinearFormat& format, std::string_view backend) {
  const Scales scales = format.is_eight_bits() ? Scales::kPerRow : Scales::kNone;
  if (format.weight_scales == scales && format.input_scales == scales) return;
  throw Error(ErrorKind::kUsage, "the backend " + std::string(backend) + " has no linear layers of " +
                                     std::string(dtype_name(format.dtype)) +
                                     " with these scales; choose another precision");
}

Tensor stack_rows(const std::vector<StoredTensor>& parts, DType dtype) {
  CALIBATT_ASSERT(!parts.empty());
  for (const StoredTensor& part : parts) require_unscaled(part);
  std::vector<int64_t> shape = parts[0].tensor.shape();
  if (parts.size() == 1 && parts[0].tensor.dtype() == dtype) {  // as it is, in the mapped file
    accept_values(parts[0], check_values(parts[0].tensor));
    return parts[0].tensor;
  }
  shape[0] = 0;
  for (const StoredTensor& part : parts) shape[0] += part.tensor.dim(0);
  Tensor all(dtype, shape);
  char* to = static_cast<char*>(all.raw());
  for (const StoredTensor& part : parts) {
    const int64_t count = part.tensor.size();
    accept_values(part, checked_copy(part.tensor.raw(), part.tensor.dtype(), to, dtype, count));
    to += static_cast<size_t>(count) * dtype_size(dtype);
  }
  return all;
}

}  // namespace calibatt
