#include "backend/cuda/device/context.h"

#include <cstdio>
#include <string>
#include <utility>

#include "base/error.h"

namespace calibatt::cuda {
namespace {

constexpr double kGigabyte = 1e9;

std::string gigabytes(size_t bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.2f GB", static_cast<double>(bytes) / kGigabyte);
  return text;
}

}  // namespace

struct Context::Pool {
  Stream stream;
  cudaMemPool_t pool = nullptr;

  explicit Pool(int device) {
    cudaMemPoolProps properties{};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location = {.type = cudaMemLocationTypeDevice, .id = device};
    check(cudaMemPoolCreate(&pool, &properties), "making a memory pool");
    uint64_t keep_all = UINT64_MAX;  // a size that was needed once is needed again in the next forward
    check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep_all), "setting up the memory pool");
  }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;
  ~Pool() {
    static_cast<void>(cudaStreamSynchronize(stream.get()));
    if (pool != nullptr) static_cast<void>(cudaMemPoolDestroy(pool));
  }

  uint64_t attribute(cudaMemPoolAttr name) const {
    uint64_t value = 0;
    check(cudaMemPoolGetAttribute(pool, name, &value), "asking the memory pool");
    return value;
  }
};

Context::Context() : device_(current_device()), pool_(std::make_shared<Pool>(device_.index)) {}

cudaStream_t Context::stream() const {
  return pool_->stream.get();
}

std::shared_ptr<const void> Context::memory() const {
  return pool_;
}

void Context::let_read(int other_device) {
  cudaMemAccessDesc access{};
  access.location = {.type = cudaMemLocationTypeDevice, .id = other_device};
  access.flags = cudaMemAccessFlagsProtReadWrite;
  check(cudaMemPoolSetAccess(pool_->pool, &access, 1), "letting another GPU read the memory pool");
}

std::shared_ptr<void> Context::try_allocate_bytes(size_t bytes) {
  void* data = nullptr;
  const auto allocate = [&] { return cudaMallocFromPoolAsync(&data, bytes > 0 ? bytes : 1, pool_->pool, stream()); };
  cudaError_t status = allocate();
  if (status == cudaErrorMemoryAllocation) {  // what is kept in pieces may do as a whole
    static_cast<void>(cudaGetLastError());
    trim();
    status = allocate();
  }
  if (status == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    return nullptr;
  }
  check(status, "allocating memory");
  return {data, [pool = pool_](void* pointer) { static_cast<void>(cudaFreeAsync(pointer, pool->stream.get())); }};
}

std::shared_ptr<void> Context::allocate_bytes(size_t bytes) {
  if (std::shared_ptr<void> memory = try_allocate_bytes(bytes)) return memory;
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "asking for free memory");
  const size_t used = pool_->attribute(cudaMemPoolAttrUsedMemCurrent);
  const size_t kept = pool_->attribute(cudaMemPoolAttrReservedMemCurrent) - used;
  throw Error(ErrorKind::kDevice, "GPU: out of memory: " + gigabytes(bytes) + " more are needed, " +
                                      gigabytes(free + kept) + " of " + gigabytes(total) + " are free, " +
                                      gigabytes(used) + " are in use by this run. " + kMemoryAdvice);
}

Tensor Context::allocate(DType dtype, std::vector<int64_t> shape) {
  size_t bytes = dtype_size(dtype);
  for (const int64_t size : shape) bytes *= static_cast<size_t>(size);
  return {dtype, std::move(shape), allocate_bytes(bytes)};
}

void Context::copy_to_device(void* device, const void* host, size_t bytes) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream()), "copying to the GPU");
  // Pageable memory has been staged by now; pinned memory is still being read.
  cudaPointerAttributes attributes{};
  check(cudaPointerGetAttributes(&attributes, host), "asking about host memory");
  if (attributes.type != cudaMemoryTypeUnregistered) synchronize();
}

void Context::copy_to_host(void* host, const void* device, size_t bytes) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream()), "copying from the GPU");
  synchronize();
}

void Context::synchronize() {
  pool_->stream.synchronize();
}

void Context::limit_run_ahead() {
  marks_[next_mark_].record(stream());
  next_mark_ = 1 - next_mark_;
  marks_[next_mark_].wait();  // the older one; before it was ever recorded it counts as passed
}

size_t Context::available_bytes() const {
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "asking for free memory");
  return free + pool_->attribute(cudaMemPoolAttrReservedMemCurrent) - pool_->attribute(cudaMemPoolAttrUsedMemCurrent);
}

size_t Context::peak_bytes() const {
  return pool_->attribute(cudaMemPoolAttrUsedMemHigh);
}

void Context::reset_peak() {
  uint64_t zero = 0;
  check(cudaMemPoolSetAttribute(pool_->pool, cudaMemPoolAttrUsedMemHigh, &zero), "resetting the memory pool's peak");
}

void Context::trim() {
  synchronize();
  check(cudaMemPoolTrimTo(pool_->pool, 0), "giving memory back");
}

}  // namespace calibatt::cuda
