#pragma once

#include <cudnn.h>

#include <initializer_list>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace calibatt::cuda::cudnn {

/// Throws Error(kDevice) when a cuDNN call failed: what was tried and cuDNN's own words.
void check(cudnnStatus_t status, const char* what);

/// cuDNN's description of what went wrong last on this thread; empty when it has none.
std::string last_error();

/// One object of cuDNN's graph ("backend") API: attributes are set, then it is finalized and never changes again.
/// We speak this C API directly: the two graphs that we need (conv_plan.cpp) take fewer lines than finding the
/// header-only C++ frontend would. Why not the legacy API: docs/decisions/0003.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(cudnnBackendDescriptorType_t type);
  Descriptor(Descriptor&& other) noexcept : descriptor_(std::exchange(other.descriptor_, nullptr)) {}
  Descriptor& operator=(Descriptor other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  Descriptor(const Descriptor&) = delete;
  ~Descriptor();

  cudnnBackendDescriptor_t get() const { return descriptor_; }

  void set_raw(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count, const void* values);
  void set(cudnnBackendAttributeName_t name, int64_t value) { set_raw(name, CUDNN_TYPE_INT64, 1, &value); }
  void set(cudnnBackendAttributeName_t name, bool value) { set_raw(name, CUDNN_TYPE_BOOLEAN, 1, &value); }
  void set(cudnnBackendAttributeName_t name, float value) { set_raw(name, CUDNN_TYPE_FLOAT, 1, &value); }
  void set(cudnnBackendAttributeName_t name, cudnnDataType_t value) { set_raw(name, CUDNN_TYPE_DATA_TYPE, 1, &value); }
  void set(cudnnBackendAttributeName_t name, std::span<const int64_t> values) {
    set_raw(name, CUDNN_TYPE_INT64, static_cast<int64_t>(values.size()), values.data());
  }
  void set(cudnnBackendAttributeName_t name, const Descriptor& other) {
    set_raw(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &other.descriptor_);
  }
  void set(cudnnBackendAttributeName_t name, std::initializer_list<cudnnBackendDescriptor_t> others) {
    set_raw(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, static_cast<int64_t>(others.size()), others.begin());
  }

  void finalize(const char* what);  ///< throws Error(kDevice)
  bool try_finalize();              ///< false when this combination is not supported

  /// The values of an attribute that is a list of enumerators or numbers.
  template <class T>
  std::vector<T> values(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t at_most) const {
    std::vector<T> result(static_cast<size_t>(at_most));
    int64_t count = 0;
    if (at_most > 0) {
      check(cudnnBackendGetAttribute(descriptor_, name, type, at_most, &count, result.data()), "reading an attribute");
    }
    result.resize(static_cast<size_t>(count < at_most ? count : at_most));
    return result;
  }
  int64_t integer(cudnnBackendAttributeName_t name) const;

 private:
  cudnnBackendDescriptor_t descriptor_ = nullptr;
};

}  // namespace calibatt::cuda::cudnn
