#include "backend/cuda/device/device.h"

#include <cstdio>
#include <map>
#include <mutex>

#include "base/error.h"

namespace calibatt::cuda {
namespace {

constexpr int kOldestCapability = 80;  // the kernels' bf16 instructions

const char* advice(cudaError_t status) {
  switch (status) {
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorInitializationError:
      return "; check that nvidia-smi sees a GPU and that its driver is for CUDA 13 or newer, or use the CPU backend";
    case cudaErrorNoKernelImageForDevice:
      return "; this GPU is older than compute capability 8.0";
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorMisalignedAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorHardwareStackError:
    case cudaErrorAssert:
      return "; the GPU's state is lost: start again. If it happens again, the system's log (dmesg, \"Xid\") says why";
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorDevicesUnavailable:
    case cudaErrorUnknown:
      return "; the GPU is lost or used by somebody else: see nvidia-smi and the system's log (dmesg, \"Xid\")";
    default:
      return "";
  }
}

std::string gigabytes(size_t bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.2f GB", static_cast<double>(bytes) * 1e-9);
  return text;
}

DeviceInfo read_device(int index) {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, index), "reading the properties of the GPU");
  return {.index = index,
          .name = properties.name,
          .compute_capability = 10 * properties.major + properties.minor,
          .num_sms = properties.multiProcessorCount,
          .memory_bytes = properties.totalGlobalMem,
          .l2_bytes = static_cast<size_t>(properties.l2CacheSize)};
}

}  // namespace

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());  // or the next, unrelated check would report it again
  if (status == cudaErrorMemoryAllocation) throw_out_of_memory(what);
  throw Error(ErrorKind::kDevice, "GPU: " + std::string(what) + ": " + cudaGetErrorString(status) + advice(status));
}

void throw_out_of_memory(const std::string& what) {
  size_t free = 0, total = 0;
  std::string state;
  if (cudaMemGetInfo(&free, &total) == cudaSuccess) {
    state = ", " + gigabytes(free) + " of " + gigabytes(total) + " are free";
  } else {
    static_cast<void>(cudaGetLastError());
  }
  throw Error(ErrorKind::kDevice, "GPU: out of memory: " + what + state + ". " + kMemoryAdvice);
}

int num_devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  static_cast<void>(cudaGetLastError());
  return 0;
}

const DeviceInfo& current_device() {
  static std::mutex mutex;
  static std::map<int, DeviceInfo> known;  // its elements never move
  int index = 0;
  check(cudaGetDevice(&index), "asking for the current GPU");
  const std::lock_guard lock(mutex);
  const auto found = known.find(index);
  return found != known.end() ? found->second : known.emplace(index, read_device(index)).first->second;
}

bool gpu_can_read(int reader, int owner) {
  if (reader == owner) return true;
  int can = 0;
  check(cudaDeviceCanAccessPeer(&can, reader, owner), "asking whether GPUs can read each other's memory");
  return can != 0;
}

void use_device(int index) {
  const int count = num_devices();
  if (count == 0) check(cudaErrorNoDevice, "looking for one");
  if (index < 0 || index >= count) {
    std::string known;
    for (int i = 0; i < count; ++i) {
      const DeviceInfo device = read_device(i);
      known += (i == 0 ? "" : ", ") + std::to_string(i) + " (" + device.name + ", " +
               std::to_string(device.memory_bytes >> 30) + " GiB)";
    }
    throw Error(ErrorKind::kUsage, "there is no GPU " + std::to_string(index) + ": this machine has " +
                                       std::to_string(count) + ": " + known);
  }
  check(cudaSetDevice(index), "choosing a GPU");
}

int first_compute_capability() {
  int major = 0, minor = 0;
  const bool is_known = num_devices() > 0 &&
                        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess &&
                        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0) == cudaSuccess;
  return is_known ? 10 * major + minor : 0;
}

bool has_capable_device() {
  return first_compute_capability() >= kOldestCapability;
}

void use_capable_device(int index) {
  use_device(index);
  if (current_device().compute_capability >= kOldestCapability) return;
  throw Error(ErrorKind::kDevice,
              "GPU: " + current_device().name + " is older than compute capability 8.0; use --backend cpu");
}

DeviceBuffer::DeviceBuffer(size_t size_bytes) : size_bytes_(size_bytes) {
  if (size_bytes == 0) return;
  const std::string what = "allocating " + gigabytes(size_bytes);
  check(cudaMalloc(&data_, size_bytes), what.c_str());
}

DeviceBuffer::~DeviceBuffer() {
  if (data_ != nullptr) static_cast<void>(cudaFree(data_));
}

void DeviceBuffer::copy_from_host(const void* host, cudaStream_t stream) {
  if (size_bytes_ == 0) return;
  check(cudaMemcpyAsync(data_, host, size_bytes_, cudaMemcpyHostToDevice, stream), "copying to the GPU");
}

void DeviceBuffer::copy_to_host(void* host, cudaStream_t stream) const {
  if (size_bytes_ == 0) return;
  check(cudaMemcpyAsync(host, data_, size_bytes_, cudaMemcpyDeviceToHost, stream), "copying from the GPU");
}

Stream::Stream() {
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream");
}

Stream::~Stream() {
  if (stream_ != nullptr) static_cast<void>(cudaStreamDestroy(stream_));
}

void Stream::synchronize() const {
  check(cudaStreamSynchronize(stream_), "running");
}

}  // namespace calibatt::cuda
