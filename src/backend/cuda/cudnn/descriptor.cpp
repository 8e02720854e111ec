#include "backend/cuda/cudnn/descriptor.h"

#include <array>

#include "backend/cuda/device/device.h"
#include "base/error.h"

namespace calibatt::cuda::cudnn {

std::string last_error() {
  std::array<char, 512> text{};
  cudnnGetLastErrorString(text.data(), text.size());
  std::string result = text.data();
  for (char& c : result) c = c == '\n' ? ' ' : c;
  return result;
}

void check(cudnnStatus_t status, const char* what) {
  if (status == CUDNN_STATUS_SUCCESS) return;
  if (status == CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED) {
    throw_out_of_memory("cuDNN, " + std::string(what));
  }
  const std::string details = last_error();
  throw Error(ErrorKind::kDevice,
              "cuDNN: " + std::string(what) + ": " + cudnnGetErrorString(status) +
                  (details.empty() ? "" : " (" + details + ")") +
                  "; check that cuDNN's libraries are all of one version, 9.8 or newer, and for the "
                  "CUDA of this GPU's driver");
}

Descriptor::Descriptor(cudnnBackendDescriptorType_t type) {
  check(cudnnBackendCreateDescriptor(type, &descriptor_), "making a descriptor");
}

Descriptor::~Descriptor() {
  if (descriptor_ != nullptr) static_cast<void>(cudnnBackendDestroyDescriptor(descriptor_));
}

void Descriptor::set_raw(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t count,
                         const void* values) {
  check(cudnnBackendSetAttribute(descriptor_, name, type, count, values), "setting an attribute");
}

void Descriptor::finalize(const char* what) {
  check(cudnnBackendFinalize(descriptor_), what);
}

bool Descriptor::try_finalize() {
  return cudnnBackendFinalize(descriptor_) == CUDNN_STATUS_SUCCESS;
}

int64_t Descriptor::integer(cudnnBackendAttributeName_t name) const {
  int64_t value = 0, count = 0;
  check(cudnnBackendGetAttribute(descriptor_, name, CUDNN_TYPE_INT64, 1, &count, &value), "reading an attribute");
  return value;
}

}  // namespace calibatt::cuda::cudnn
