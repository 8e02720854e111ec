#include "base/checked_copy.h"

#include <cstring>
#include <mutex>

#include "base/error.h"
#include "base/mapped_ranges.h"
#include "base/thread_pool.h"

namespace calibatt {
namespace {

constexpr int64_t kGrainElements = int64_t{1} << 18;

/// A float is not finite when all bits of its exponent are set. Integer arithmetic only, so that the compiler
/// vectorises it; loads by memcpy, because a file's bytes may lie at any address. `to`: null, or where to copy.
template <class Word, Word kExponent, bool kCopies>
ValueCheck check_words(const unsigned char* from, Word* to, int64_t count) {
  if (count == 0) return {};
  Word first, bad = 0, differs = 0;
  std::memcpy(&first, from, sizeof(Word));
  for (int64_t i = 0; i < count; ++i) {
    Word word;
    std::memcpy(&word, from + static_cast<size_t>(i) * sizeof(Word), sizeof(Word));
    if constexpr (kCopies) to[i] = word;
    bad |= static_cast<Word>((word & kExponent) == kExponent);
    differs |= static_cast<Word>(word ^ first);
  }
  return {bad == 0, differs == 0, true, first};
}

template <class Word, Word kExponent>
ValueCheck check_as(const unsigned char* from, void* to, int64_t count) {
  return to == nullptr ? check_words<Word, kExponent, false>(from, nullptr, count)
                       : check_words<Word, kExponent, true>(from, static_cast<Word*>(to), count);
}

/// `to`: null, or where to copy in the same dtype.
ValueCheck check_part(const unsigned char* from, DType dtype, void* to, int64_t count) {
  switch (dtype) {
    case DType::kF64:
      return check_as<uint64_t, 0x7ff0000000000000>(from, to, count);
    case DType::kF32:
      return check_as<uint32_t, 0x7f800000>(from, to, count);
    case DType::kBF16:
      return check_as<uint16_t, 0x7f80>(from, to, count);
    case DType::kF16:
      return check_as<uint16_t, 0x7c00>(from, to, count);
    default:
      internal::assertion_failed("a floating-point tensor", __FILE__, __LINE__);
  }
}

/// Looks at all elements in parallel: `part` does those of one range.
template <class Part>
ValueCheck check_all(int64_t count, const Part& part) {
  std::mutex mutex;
  ValueCheck all;
  parallel_for(count, kGrainElements, [&](int64_t begin, int64_t end, int) {
    const ValueCheck found = part(begin, end);
    const std::lock_guard lock(mutex);
    all.join(found);
  });
  require_mapped_files();
  return all;
}

}  // namespace

void ValueCheck::join(const ValueCheck& other) {
  if (!other.any) return;
  if (any) constant = constant && other.constant && first == other.first;
  if (!any) constant = other.constant, first = other.first;
  finite = finite && other.finite;
  any = true;
}

ValueCheck checked_copy(const void* from, DType dtype, void* to, DType to_dtype, int64_t count) {
  return check_all(count, [&](int64_t begin, int64_t end) {
    const auto* source = static_cast<const unsigned char*>(from) + static_cast<size_t>(begin) * dtype_size(dtype);
    void* target = static_cast<unsigned char*>(to) + static_cast<size_t>(begin) * dtype_size(to_dtype);
    if (dtype == to_dtype) return check_part(source, dtype, target, end - begin);
    const ValueCheck found = check_part(source, dtype, nullptr, end - begin);
    convert_elements(source, dtype, target, to_dtype, end - begin);  // from the cache
    return found;
  });
}

ValueCheck check_values(const Tensor& tensor) {
  return check_all(tensor.size(), [&](int64_t begin, int64_t end) {
    const auto* source =
        static_cast<const unsigned char*>(tensor.raw()) + static_cast<size_t>(begin) * dtype_size(tensor.dtype());
    return check_part(source, tensor.dtype(), nullptr, end - begin);
  });
}

bool all_finite(const Tensor& tensor) {
  return check_values(tensor).finite;
}

}  // namespace calibatt
