#include "backend/cuda/weight_stream.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>

#include "backend/linear.h"
#include "base/checked_copy.h"
#include "base/e4m3.h"
#include "base/error.h"
#include "base/thread_pool.h"

namespace calibatt::cuda {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr int64_t kQuantisedElements = int64_t{8} << 20;  // widened at a time: large enough for all threads

std::string gigabytes(size_t bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.2f GB", static_cast<double>(bytes) * 1e-9);
  return text;
}

}  // namespace

// Plain pages, pinned once they are filled: pinning empty memory would have one thread clear it first.
StreamedMemory::StreamedMemory(WeightStream& stream, int64_t id, size_t capacity_bytes)
    : stream_(stream), id_(id), capacity_bytes_((capacity_bytes + kHugePage - 1) / kHugePage * kHugePage) {
  host_ = mmap(nullptr, capacity_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (host_ == MAP_FAILED) {
    host_ = nullptr;
    throw Error(ErrorKind::kDevice, "--offload: " + gigabytes(capacity_bytes_) +
                                        " of host memory for weights cannot be had; close other programs or run "
                                        "without --offload");
  }
  static_cast<void>(madvise(host_, capacity_bytes_, MADV_HUGEPAGE));  // fewer pages to pin; does without
}

StreamedMemory::~StreamedMemory() {
  if (pinned_ && stream_.ring_ != nullptr) {
    static_cast<void>(cudaStreamSynchronize(stream_.ring_->copies.get()));  // a copy may still read
    if (slot_ < 0) stream_.ring_->slots.forget(id_);
  }
  if (pinned_) static_cast<void>(cudaHostUnregister(host_));
  if (host_ != nullptr) munmap(host_, capacity_bytes_);
}

size_t StreamedMemory::append_room(const std::vector<StoredTensor>& parts, DType dtype) {
  CALIBATT_ASSERT(!pinned_);
  int64_t rows = 0;
  for (const StoredTensor& part : parts) rows += part.tensor.dim(0);
  const size_t begin = size_bytes_, size = LinearOps::streamed_bytes(rows, parts.at(0).tensor.dim(1), dtype);
  CALIBATT_ASSERT(begin + size <= capacity_bytes_);
  size_bytes_ = begin + size;
  return begin;
}

size_t StreamedMemory::append(const std::vector<StoredTensor>& parts, DType dtype) {
  const size_t begin = append_room(parts, dtype);
  char* to = static_cast<char*>(host_) + begin;
  for (const StoredTensor& part : parts) {
    const int64_t count = part.tensor.size();
    accept_values(part, checked_copy(part.tensor.raw(), part.tensor.dtype(), to, dtype, count));
    to += static_cast<size_t>(count) * dtype_size(dtype);
  }
  return begin;
}

size_t StreamedMemory::append_eight_bits(const std::vector<StoredTensor>& parts, float* scales) {
  const size_t begin = append_room(parts, DType::kE4M3);
  auto* to = reinterpret_cast<e4m3*>(static_cast<char*>(host_) + begin);
  for (const StoredTensor& part : parts) {
    const int64_t rows = part.tensor.dim(0), columns = part.tensor.dim(1);
    const int64_t at_a_time = std::clamp<int64_t>(kQuantisedElements / columns, 1, rows);
    const size_t row_bytes = static_cast<size_t>(columns) * dtype_size(part.tensor.dtype());
    Tensor wide(DType::kF32, {at_a_time, columns});
    ValueCheck found;
    for (int64_t first = 0; first < rows; first += at_a_time) {
      const int64_t count = std::min(at_a_time, rows - first);
      found.join(checked_copy(static_cast<const char*>(part.tensor.raw()) + static_cast<size_t>(first) * row_bytes,
                              part.tensor.dtype(), wide.raw(), DType::kF32, count * columns));
      if (!found.finite) accept_values(part, found);
      parallel_for(count, 1, [&](int64_t row, int64_t end, int) {
        for (; row < end; ++row) {
          scales[first + row] = quantise_row(wide.f32() + row * columns, to + (first + row) * columns, columns);
        }
      });
    }
    accept_values(part, found);
    to += rows * columns;
    scales += rows;
  }
  return begin;
}

void StreamedMemory::seal() {
  CALIBATT_ASSERT(!pinned_);
  const cudaError_t status = cudaHostRegister(host_, capacity_bytes_, cudaHostRegisterPortable);
  if (status == cudaErrorMemoryAllocation) {
    static_cast<void>(cudaGetLastError());
    throw Error(ErrorKind::kDevice, "--offload: " + gigabytes(capacity_bytes_) +
                                        " of host memory cannot be pinned; close other programs, raise the limit on "
                                        "locked memory (ulimit -l), or run without --offload");
  }
  check(status, "pinning host memory");
  pinned_ = true;
}

void StreamedMemory::prefetch() {
  CALIBATT_ASSERT(pinned_);
  const auto place = stream_.ring().slots.announce(id_);
  if (!place || !place->fill) return;
  try {
    stream_.fill(*this, place->slot);
  } catch (...) {
    stream_.ring().slots.forget(id_);
    throw;
  }
}

void StreamedMemory::begin_use() {
  CALIBATT_ASSERT(pinned_ && slot_ < 0);
  WeightStream::Ring& ring = stream_.ring();
  const SlotRing::Place place = ring.slots.begin_use(id_);
  WeightStream::Buffer& buffer = ring.buffers[static_cast<size_t>(place.slot)];
  try {
    if (place.fill) stream_.fill(*this, place.slot);
    buffer.filled.hold_back(stream_.context_.stream());
  } catch (...) {
    ring.slots.end_use(id_);
    ring.slots.forget(id_);
    throw;
  }
  slot_ = place.slot;
}

void StreamedMemory::end_use() {
  CALIBATT_ASSERT(slot_ >= 0);
  WeightStream::Ring& ring = stream_.ring();
  ring.slots.end_use(id_);
  ring.buffers[static_cast<size_t>(std::exchange(slot_, -1))].used.record(stream_.context_.stream());
}

const void* StreamedMemory::device_memory() const {
  CALIBATT_ASSERT(slot_ >= 0);
  return stream_.ring_->buffers[static_cast<size_t>(slot_)].memory.get();
}

std::shared_ptr<StreamedMemory> WeightStream::make_group(size_t capacity_bytes) {
  auto group = std::make_shared<StreamedMemory>(*this, next_id_++, capacity_bytes);
  largest_bytes_ = std::max(largest_bytes_, capacity_bytes);
  return group;
}

WeightStream::Ring& WeightStream::ring() {
  if (ring_ == nullptr) ring_ = std::make_unique<Ring>();
  return *ring_;
}

void WeightStream::fill(const StreamedMemory& group, int slot) {
  Buffer& buffer = ring_->buffers[static_cast<size_t>(slot)];
  if (buffer.size_bytes < group.size_bytes_) {
    ring_->copies.synchronize();  // the buffer that goes may still be written to
    buffer.memory.reset();
    buffer.size_bytes = 0;
    buffer.memory = context_.allocate_bytes(largest_bytes_);
    buffer.size_bytes = largest_bytes_;
    buffer.used.record(context_.stream());  // where the memory begins to exist
  }
  const cudaStream_t copies = ring_->copies.get();
  buffer.used.hold_back(copies);
  check(cudaMemcpyAsync(buffer.memory.get(), group.host_, group.size_bytes_, cudaMemcpyHostToDevice, copies),
        "copying weights to the GPU");
  buffer.filled.record(copies);
}

void WeightStream::release() {
  if (ring_ == nullptr) return;
  ring_->copies.synchronize();
  ring_->slots.clear();
  for (Buffer& buffer : ring_->buffers) {
    buffer.memory.reset();
    buffer.size_bytes = 0;
  }
}

WeightStream::Ring::~Ring() {
  static_cast<void>(cudaStreamSynchronize(copies.get()));  // before the buffers that it writes to go
}

}  // namespace calibatt::cuda
