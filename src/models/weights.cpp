#include "models/weights.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "base/thread_pool.h"

namespace calibatt {
namespace {

/// A float is not finite when all bits of its exponent are set. Integer arithmetic only, so that the compiler
/// vectorises it.
template <class Word>
bool exponents_finite(const Word* words, int64_t count, Word exponent) {
  std::atomic<bool> finite{true};
  parallel_for(count, int64_t{1} << 18, [&](int64_t begin, int64_t end, int) {
    Word bad = 0;
    for (int64_t i = begin; i < end; ++i) bad |= static_cast<Word>((words[i] & exponent) == exponent);
    if (bad != 0) finite.store(false, std::memory_order_relaxed);
  });
  return finite;
}

}  // namespace

bool all_finite(const Tensor& tensor) {
  switch (tensor.dtype()) {
    case DType::kF32:
      return exponents_finite<uint32_t>(tensor.data<uint32_t>(), tensor.size(), 0x7f800000u);
    case DType::kBF16:
      return exponents_finite<uint16_t>(tensor.data<uint16_t>(), tensor.size(), 0x7f80u);
    case DType::kF16:
      return exponents_finite<uint16_t>(tensor.data<uint16_t>(), tensor.size(), 0x7c00u);
    default:
      return true;
  }
}

Tensor Weights::get(const std::string& name, const std::vector<int64_t>& shape) const {
  Tensor tensor = file_.get(name, shape);
  if (tensor.dtype() != DType::kF32 && tensor.dtype() != DType::kBF16 && tensor.dtype() != DType::kF16) {
    throw Error(ErrorKind::kFormat, file_.path() + ": tensor \"" + name + "\": expected F32, BF16 or F16, found " +
                                        std::string(dtype_name(tensor.dtype())));
  }
  if (!all_finite(tensor)) {
    throw Error(ErrorKind::kNumeric, file_.path() + ": tensor \"" + name +
                                         "\" holds NaN or infinity; the file is damaged or was saved from a run that "
                                         "diverged: fetch it again");
  }
  return tensor;
}

Tensor Weights::get_f32(const std::string& name, const std::vector<int64_t>& shape) const {
  return converted(get(name, shape), DType::kF32);
}

Tensor Weights::stacked(const std::vector<std::string>& names, const std::vector<int64_t>& shape_of_each,
                        DType dtype) const {
  std::vector<int64_t> shape = shape_of_each;
  shape[0] *= static_cast<int64_t>(names.size());
  Tensor all(dtype, shape);
  char* to = static_cast<char*>(all.raw());
  for (const std::string& name : names) {
    const Tensor part = converted(get(name, shape_of_each), dtype);
    std::memcpy(to, part.raw(), part.size_bytes());
    to += part.size_bytes();
  }
  return all;
}

}  // namespace calibatt
