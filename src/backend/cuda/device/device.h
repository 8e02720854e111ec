#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>
#include <utility>

namespace calibatt::cuda {

/// Throws Error(kDevice) when a CUDA call failed: what was tried, CUDA's own message, and what to do about it.
void check(cudaError_t status, const char* what);

/// What to do where the GPU's memory is too small.
inline constexpr char kMemoryAdvice[] =
    "Use a smaller size or fewer frames, --weights-dtype int8, or --offload (to calibrate: on one GPU); where several "
    "GPUs make a video of a Wan model, --shard-weights on, by which each holds a part of the weights; or close other "
    "programs on the GPU";
/// Error(kDevice): what could not be had, what is free, and which flags help.
[[noreturn]] void throw_out_of_memory(const std::string& what);

struct DeviceInfo {
  int index = 0;
  std::string name;
  int compute_capability = 0;  ///< 10 · major + minor: 80 (A100), 90 (H100), …
  int num_sms = 0;             ///< multiprocessors
  size_t memory_bytes = 0;
  size_t l2_bytes = 0;
};

/// GPUs that can be used; 0 where there is none, or no driver.
int num_devices();

/// The calling thread's current device. Read once per device and kept; throws Error(kDevice) when there is none.
const DeviceInfo& current_device();

/// Whether kernels and copies of one GPU can read another's memory, or its own; by their indices.
bool gpu_can_read(int reader, int owner);

/// Makes the GPU of this index the calling thread's current one. Throws Error(kUsage), listing the GPUs there are, when
/// there is no such index; Error(kDevice) when there is no GPU at all.
void use_device(int index);

/// The first GPU's (DeviceInfo), asked without using it; 0 where there is none, or no driver.
int first_compute_capability();
/// Whether the first GPU is new enough for the kernels; false where there is none, or no driver.
bool has_capable_device();
/// As use_device; throws Error(kDevice) when that GPU is older than compute capability 8.0.
void use_capable_device(int index);

/// Device memory, freed with the object. Allocation and release wait for the device (cudaMalloc): buffers are for what
/// lives long, not for a single call.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(size_t size_bytes);  ///< uninitialised; throws Error(kDevice) when memory is short
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_bytes_(std::exchange(other.size_bytes_, 0)) {}
  DeviceBuffer& operator=(DeviceBuffer other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_bytes_, other.size_bytes_);
    return *this;
  }
  DeviceBuffer(const DeviceBuffer&) = delete;
  ~DeviceBuffer();

  void* data() const { return data_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t size_bytes() const { return size_bytes_; }

  /// The whole buffer from or to host memory of size_bytes(), ordered on the stream. Pageable host memory may be
  /// changed as soon as copy_from_host returns; it holds the data once the stream is synchronised after copy_to_host.
  void copy_from_host(const void* host, cudaStream_t stream);
  void copy_to_host(void* host, cudaStream_t stream) const;

 private:
  void* data_ = nullptr;
  size_t size_bytes_ = 0;
};

/// A stream of the current device that does not wait for the default stream.
class Stream {
 public:
  Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream();

  cudaStream_t get() const { return stream_; }
  void synchronize() const;  ///< throws Error(kDevice) when anything on the stream failed

 private:
  cudaStream_t stream_ = nullptr;
};

}  // namespace calibatt::cuda
