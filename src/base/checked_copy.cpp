#include "base/checked_copy.h"

#include <atomic>
#include <cstring>

#include "base/error.h"
#include "base/mapped_ranges.h"
#include "base/thread_pool.h"

namespace calibatt {
namespace {

constexpr int64_t kGrainElements = int64_t{1} << 18;

/// A float is not finite when all bits of its exponent are set. Integer arithmetic only, so that the compiler
/// vectorises it; loads by memcpy, because a file's bytes may lie at any address.
template <class Word, Word kExponent>
bool copy_words(const unsigned char* from, Word* to, int64_t count) {
  Word bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    Word word;
    std::memcpy(&word, from + static_cast<size_t>(i) * sizeof(Word), sizeof(Word));
    to[i] = word;
    bad |= static_cast<Word>((word & kExponent) == kExponent);
  }
  return bad == 0;
}

template <class Word, Word kExponent>
bool finite_words(const unsigned char* from, int64_t count) {
  Word bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    Word word;
    std::memcpy(&word, from + static_cast<size_t>(i) * sizeof(Word), sizeof(Word));
    bad |= static_cast<Word>((word & kExponent) == kExponent);
  }
  return bad == 0;
}

constexpr uint16_t kExponentBF16 = 0x7f80, kExponentF16 = 0x7c00;
constexpr uint32_t kExponentF32 = 0x7f800000;
constexpr uint64_t kExponentF64 = 0x7ff0000000000000;

bool finite_part(const unsigned char* from, DType dtype, int64_t count) {
  switch (dtype) {
    case DType::kF64:
      return finite_words<uint64_t, kExponentF64>(from, count);
    case DType::kF32:
      return finite_words<uint32_t, kExponentF32>(from, count);
    case DType::kBF16:
      return finite_words<uint16_t, kExponentBF16>(from, count);
    case DType::kF16:
      return finite_words<uint16_t, kExponentF16>(from, count);
    default:
      return true;
  }
}

bool copy_part(const unsigned char* from, DType dtype, void* to, DType to_dtype, int64_t count) {
  if (dtype == to_dtype) {
    switch (dtype) {
      case DType::kF64:
        return copy_words<uint64_t, kExponentF64>(from, static_cast<uint64_t*>(to), count);
      case DType::kF32:
        return copy_words<uint32_t, kExponentF32>(from, static_cast<uint32_t*>(to), count);
      case DType::kBF16:
        return copy_words<uint16_t, kExponentBF16>(from, static_cast<uint16_t*>(to), count);
      case DType::kF16:
        return copy_words<uint16_t, kExponentF16>(from, static_cast<uint16_t*>(to), count);
      default:
        internal::assertion_failed("a floating-point tensor", __FILE__, __LINE__);
    }
  }
  const bool finite = finite_part(from, dtype, count);
  convert_elements(from, dtype, to, to_dtype, count);  // from the cache
  return finite;
}

}  // namespace

bool checked_copy(const void* from, DType dtype, void* to, DType to_dtype, int64_t count) {
  std::atomic<bool> finite{true};
  parallel_for(count, kGrainElements, [&](int64_t begin, int64_t end, int) {
    const auto* source = static_cast<const unsigned char*>(from) + static_cast<size_t>(begin) * dtype_size(dtype);
    void* target = static_cast<unsigned char*>(to) + static_cast<size_t>(begin) * dtype_size(to_dtype);
    if (!copy_part(source, dtype, target, to_dtype, end - begin)) finite.store(false, std::memory_order_relaxed);
  });
  require_mapped_files();
  return finite;
}

bool all_finite(const Tensor& tensor) {
  std::atomic<bool> finite{true};
  parallel_for(tensor.size(), kGrainElements, [&](int64_t begin, int64_t end, int) {
    const auto* source =
        static_cast<const unsigned char*>(tensor.raw()) + static_cast<size_t>(begin) * dtype_size(tensor.dtype());
    if (!finite_part(source, tensor.dtype(), end - begin)) finite.store(false, std::memory_order_relaxed);
  });
  require_mapped_files();
  return finite;
}

}  // namespace calibatt
