#pragma once

#include <algorithm>
#include <initializer_list>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "base/tensor.h"
#include "calibatt/counted.h"
#include "sparsity/geometry.h"

// The named tensors of a plan file, written and taken out again. Inside this floor.
namespace calibatt {

/// Unsigned numbers in the narrowest type that holds them.
Tensor narrowed(const std::vector<uint32_t>& values, std::vector<int64_t> shape);
Tensor f64_tensor(const std::vector<double>& values);

/// Latent rows that are anchors, in rising order; every frame has the same.
std::vector<uint32_t> anchor_row_numbers(const AttentionGeometry& geometry, int rows_per_frame);

/// Reads a tensor of unsigned numbers in place.
class UnsignedReader {
 public:
  UnsignedReader() = default;
  explicit UnsignedReader(Tensor tensor) : tensor_(std::move(tensor)), size_(tensor_.size()) {}
  int64_t size() const { return size_; }
  uint32_t operator[](int64_t i) const {
    CALIBATT_ASSERT(i >= 0 && i < size_);
    switch (tensor_.dtype()) {
      case DType::kU8:
        return tensor_.data<uint8_t>()[i];
      case DType::kU16:
        return tensor_.data<uint16_t>()[i];
      default:
        return tensor_.data<uint32_t>()[i];
    }
  }

 private:
  Tensor tensor_;
  int64_t size_ = 0;
};

/// The tensors of a file, taken out one by one; what nobody asked for is refused at the end.
class TensorReader {
 public:
  TensorReader(const std::map<std::string, Tensor>& tensors, std::string where)
      : tensors_(tensors), where_(std::move(where)) {}

  const std::string& where() const { return where_; }
  Error refused(const std::string& what) const { return Error(ErrorKind::kFormat, where_ + ": " + what); }

  /// A dimension of -1 may have any size.
  Tensor take(const std::string& name, const std::vector<int64_t>& shape, std::initializer_list<DType> dtypes) {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw refused("the tensor '" + name + "' is missing");
    const Tensor& tensor = found->second;
    bool fits = tensor.shape().size() == shape.size() &&
                std::find(dtypes.begin(), dtypes.end(), tensor.dtype()) != dtypes.end();
    std::string expected;
    for (const DType dtype : dtypes) expected += (expected.empty() ? "" : " or ") + std::string(dtype_name(dtype));
    expected += " [";
    for (size_t axis = 0; axis < shape.size(); ++axis) {
      fits = fits && (shape[axis] < 0 || tensor.shape()[axis] == shape[axis]);
      expected += (axis > 0 ? ", " : "") + (shape[axis] < 0 ? "any" : std::to_string(shape[axis]));
    }
    if (!fits) throw refused("the tensor '" + name + "' is " + tensor.describe() + ", expected " + expected + "]");
    ++num_taken_;
    return tensor;
  }
  UnsignedReader take_unsigned(const std::string& name, const std::vector<int64_t>& shape) {
    return UnsignedReader(take(name, shape, {DType::kU8, DType::kU16, DType::kU32}));
  }
  std::vector<double> take_f64(const std::string& name, int64_t size) {
    const Tensor tensor = take(name, {size}, {DType::kF64});
    return {tensor.data<double>(), tensor.data<double>() + tensor.size()};
  }
  /// Numbers that follow from the geometry; they are in the file for readers that do not know how. They are made only
  /// when the file holds as many of them.
  void expect(const std::string& name, int64_t size, const auto& make_values, const char* meaning) {
    const UnsignedReader stored = take_unsigned(name, {size});
    const auto values = make_values();
    for (int64_t i = 0; i < size; ++i) {
      const auto value = static_cast<uint32_t>(values[static_cast<size_t>(i)]);
      if (stored[i] != value) {
        throw refused("the tensor '" + name + "' is not " + meaning + ": number " + std::to_string(i) + " is " +
                      std::to_string(stored[i]) + ", expected " + std::to_string(value));
      }
    }
  }
  void finish() const {
    if (num_taken_ == tensors_.size()) return;
    throw refused("it holds " + counted(tensors_.size(), "tensors") + " where this plan has " +
                  std::to_string(num_taken_));
  }

 private:
  const std::map<std::string, Tensor>& tensors_;
  std::string where_;
  size_t num_taken_ = 0;
};

}  // namespace calibatt
