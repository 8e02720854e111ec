#include "backend/cuda/attention/schedule_buffers.h"

#include "base/error.h"

namespace calibatt::cuda {

// An event that was never recorded counts as past: a slot's first use waits for nothing.
CudaScheduleBuffers::CudaScheduleBuffers(int num_slots)
    : device_index_(current_device().index), slots_(static_cast<size_t>(num_slots)) {
  try {
    for (Slot& slot : slots_) {
      check(cudaEventCreateWithFlags(&slot.uploaded, cudaEventDisableTiming), "making an event");
      check(cudaEventCreateWithFlags(&slot.released, cudaEventDisableTiming), "making an event");
    }
  } catch (...) {
    free_all();
    throw;
  }
}

CudaScheduleBuffers::~CudaScheduleBuffers() {
  static_cast<void>(cudaStreamSynchronize(copies_.get()));
  for (Slot& slot : slots_) static_cast<void>(cudaEventSynchronize(slot.released));
  free_all();
}

void CudaScheduleBuffers::free_all() {
  for (Slot& slot : slots_) {
    if (slot.host != nullptr) static_cast<void>(cudaFreeHost(slot.host));
    if (slot.uploaded != nullptr) static_cast<void>(cudaEventDestroy(slot.uploaded));
    if (slot.released != nullptr) static_cast<void>(cudaEventDestroy(slot.released));
  }
}

void CudaScheduleBuffers::begin_thread() {
  check(cudaSetDevice(device_index_), "choosing the GPU");
  // Another thread may be capturing a graph, which none of this belongs to and which forbids allocations otherwise.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  check(cudaThreadExchangeStreamCaptureMode(&mode), "choosing the capture mode");
}

void CudaScheduleBuffers::resize(int index, size_t size_bytes) {
  Slot& slot = slots_[static_cast<size_t>(index)];
  check(cudaEventSynchronize(slot.uploaded), "copying a schedule to the GPU");
  check(cudaEventSynchronize(slot.released), "attention that reads a schedule");
  if (slot.host != nullptr) check(cudaFreeHost(slot.host), "freeing pinned memory");
  slot.host = nullptr;
  slot.device = DeviceBuffer();
  if (size_bytes == 0) return;
  slot.device = DeviceBuffer(size_bytes);
  check(cudaHostAlloc(&slot.host, size_bytes, cudaHostAllocDefault), "allocating pinned memory for schedules");
}

std::byte* CudaScheduleBuffers::host(int index) {
  Slot& slot = slots_[static_cast<size_t>(index)];
  check(cudaEventSynchronize(slot.uploaded), "copying a schedule to the GPU");
  return static_cast<std::byte*>(slot.host);
}

void CudaScheduleBuffers::upload(int index, size_t size_bytes) {
  Slot& slot = slots_[static_cast<size_t>(index)];
  CALIBATT_ASSERT(size_bytes <= slot.device.size_bytes());
  check(cudaStreamWaitEvent(copies_.get(), slot.released, 0), "waiting for attention that reads a schedule");
  check(cudaMemcpyAsync(slot.device.data(), slot.host, size_bytes, cudaMemcpyHostToDevice, copies_.get()),
        "copying a schedule to the GPU");
  check(cudaEventRecord(slot.uploaded, copies_.get()), "recording an event");
}

const void* CudaScheduleBuffers::device(int index) const {
  return slots_[static_cast<size_t>(index)].device.data();
}

// `released` is one event: where calls of several streams read one upload, the last must stand for all of them.
void CudaScheduleBuffers::acquire(int index, KernelStream stream) {
  const Slot& slot = slots_[static_cast<size_t>(index)];
  check(cudaStreamWaitEvent(stream, slot.uploaded, 0), "waiting for a schedule");
  check(cudaStreamWaitEvent(stream, slot.released, 0), "waiting for attention that reads a schedule");
}

void CudaScheduleBuffers::release(int index, KernelStream stream) {
  check(cudaEventRecord(slots_[static_cast<size_t>(index)].released, stream), "recording an event");
}

}  // namespace calibatt::cuda
