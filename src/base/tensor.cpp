#include "base/tensor.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <new>

#include "base/half.h"

namespace calibatt {
namespace {

constexpr std::align_val_t kAlignment{64};

int64_t num_elements(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t extent : shape) {
    CALIBATT_ASSERT(extent >= 0);
    CALIBATT_ASSERT(extent == 0 || count <= std::numeric_limits<int64_t>::max() / 8 / extent);
    count *= extent;
  }
  return count;
}

std::shared_ptr<void> allocate(size_t size_bytes) {
  // At least one byte, so that a tensor without elements still has storage and is not `empty()`.
  void* memory = ::operator new(std::max<size_t>(size_bytes, 1), kAlignment);
  return {memory, [](void* pointer) { ::operator delete(pointer, kAlignment); }};
}

}  // namespace

Tensor::Tensor(DType dtype, std::vector<int64_t> shape) : dtype_(dtype), shape_(std::move(shape)) {
  storage_ = allocate(static_cast<size_t>(num_elements(shape_)) * dtype_size(dtype_));
}

Tensor::Tensor(DType dtype, std::vector<int64_t> shape, std::shared_ptr<void> storage)
    : dtype_(dtype), shape_(std::move(shape)), storage_(std::move(storage)) {
  num_elements(shape_);  // asserts that the shape is sound
  CALIBATT_ASSERT(storage_ != nullptr);
}

Tensor Tensor::zeros(DType dtype, std::vector<int64_t> shape) {
  Tensor tensor(dtype, std::move(shape));
  std::memset(tensor.raw(), 0, tensor.size_bytes());
  return tensor;
}

int64_t Tensor::dim(int axis) const {
  if (axis < 0) axis += rank();
  CALIBATT_ASSERT(axis >= 0 && axis < rank());
  return shape_[static_cast<size_t>(axis)];
}

int64_t Tensor::size() const {
  if (empty()) return 0;
  int64_t count = 1;
  for (const int64_t extent : shape_) count *= extent;
  return count;
}

Tensor Tensor::reshaped(std::vector<int64_t> shape) const {
  CALIBATT_ASSERT(num_elements(shape) == size());
  return {dtype_, std::move(shape), storage_};
}

Tensor Tensor::clone() const {
  if (empty()) return {};
  Tensor copy(dtype_, shape_);
  std::memcpy(copy.raw(), raw(), size_bytes());
  return copy;
}

std::string Tensor::describe() const {
  if (empty()) return "no tensor";
  std::string text(dtype_name(dtype_));
  text += " [";
  for (size_t axis = 0; axis < shape_.size(); ++axis) {
    if (axis > 0) text += ", ";
    text += std::to_string(shape_[axis]);
  }
  return text + "]";
}

namespace {

// The storage of a mapped file may start at any byte, so elements are read by memcpy (which compiles to plain loads).
template <class Source, class Convert>
void convert_each(const void* from, void* to, DType to_dtype, int64_t count, Convert convert) {
  const auto* source = static_cast<const unsigned char*>(from);
  const auto run = [&](auto* target) {
    using Target = std::remove_reference_t<decltype(*target)>;
    for (int64_t i = 0; i < count; ++i) {
      Source value;
      std::memcpy(&value, source + static_cast<size_t>(i) * sizeof(Source), sizeof(Source));
      target[i] = Target(convert(value));
    }
  };
  if (to_dtype == DType::kF32) {
    run(static_cast<float*>(to));
  } else if (to_dtype == DType::kBF16) {
    run(static_cast<bfloat16*>(to));
  } else {
    run(static_cast<float16*>(to));
  }
}

}  // namespace

void convert_elements(const void* from, DType dtype, void* to, DType to_dtype, int64_t count) {
  CALIBATT_ASSERT(to_dtype == DType::kF32 || to_dtype == DType::kBF16 || to_dtype == DType::kF16);
  switch (dtype) {
    case DType::kF64:
      return convert_each<double>(from, to, to_dtype, count, [](double value) { return static_cast<float>(value); });
    case DType::kF32:
      return convert_each<float>(from, to, to_dtype, count, [](float value) { return value; });
    case DType::kF16:
      return convert_each<uint16_t>(from, to, to_dtype, count, [](uint16_t value) { return half_to_float(value); });
    case DType::kBF16:
      return convert_each<bfloat16>(from, to, to_dtype, count,
                                    [](bfloat16 value) { return static_cast<float>(value); });
    default:
      internal::assertion_failed("a floating-point tensor", __FILE__, __LINE__);
  }
}

Tensor converted(const Tensor& tensor, DType dtype) {
  CALIBATT_ASSERT(!tensor.empty());
  if (tensor.dtype() == dtype) return tensor;
  Tensor result(dtype, tensor.shape());
  convert_elements(tensor.raw(), tensor.dtype(), result.raw(), dtype, tensor.size());
  return result;
}

}  // namespace calibatt
