#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/error.h"

namespace calibatt {

/// A dense row-major array: dtype, dimensions, and shared storage. Copies are shallow (they share storage). Storage is
/// 64-byte aligned when allocated here; a borrowed tensor (a mapped file, a device buffer) keeps its owner alive.
class Tensor {
 public:
  Tensor() = default;
  Tensor(DType dtype, std::vector<int64_t> shape);  ///< allocates on the host, uninitialised
  Tensor(DType dtype, std::vector<int64_t> shape, std::shared_ptr<void> storage);

  static Tensor zeros(DType dtype, std::vector<int64_t> shape);

  DType dtype() const { return dtype_; }
  const std::vector<int64_t>& shape() const { return shape_; }
  int64_t dim(int axis) const;  ///< negative axes count from the end
  int rank() const { return static_cast<int>(shape_.size()); }
  int64_t size() const;  ///< number of elements
  size_t size_bytes() const { return static_cast<size_t>(size()) * dtype_size(dtype_); }
  bool empty() const { return storage_ == nullptr; }

  void* raw() { return storage_.get(); }
  const void* raw() const { return storage_.get(); }
  const std::shared_ptr<void>& storage() const { return storage_; }

  template <class T>
  T* data() {
    CALIBATT_ASSERT(sizeof(T) == dtype_size(dtype_));
    return static_cast<T*>(storage_.get());
  }
  template <class T>
  const T* data() const {
    CALIBATT_ASSERT(sizeof(T) == dtype_size(dtype_));
    return static_cast<const T*>(storage_.get());
  }
  float* f32() { return data<float>(); }
  const float* f32() const { return data<float>(); }

  Tensor reshaped(std::vector<int64_t> shape) const;  ///< same storage, same number of elements
  Tensor clone() const;                               ///< deep copy on the host
  std::string describe() const;                       ///< "F32 [2, 3]"

 private:
  DType dtype_ = DType::kF32;
  std::vector<int64_t> shape_;
  std::shared_ptr<void> storage_;
};

/// Element-wise conversion on the host between F32, BF16, F16, F64 (any of them in, F32, BF16 or F16 out).
Tensor converted(const Tensor& tensor, DType dtype);
/// The same for `count` elements at any address; `to` is aligned to its elements.
void convert_elements(const void* from, DType dtype, void* to, DType to_dtype, int64_t count);

}  // namespace calibatt
