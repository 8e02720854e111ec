#include "backend/cuda/weight_stream.h"

#include <algorithm>
#include <utility>

#include "backend/linear.h"
#include "base/error.h"

namespace calibatt::cuda {

StreamedMemory::StreamedMemory(WeightStream& stream, size_t capacity_bytes)
    : stream_(stream), id_(stream.next_id_++), capacity_bytes_(capacity_bytes) {
  stream.largest_bytes_ = std::max(stream.largest_bytes_, capacity_bytes);
}

void StreamedMemory::leave() {
  if (!sealed_ || stream_.ring_ == nullptr) return;
  static_cast<void>(cudaStreamSynchronize(stream_.ring_->copies.get()));  // a copy may still read
  if (slot_ < 0) stream_.ring_->slots.forget(id_);
}

size_t StreamedMemory::append_room(int64_t rows, int64_t columns, DType dtype) {
  CALIBATT_ASSERT(!sealed_);
  const size_t begin = size_bytes_;
  size_bytes_ += LinearOps::streamed_bytes(rows, columns, dtype);
  CALIBATT_ASSERT(size_bytes_ <= capacity_bytes_);
  return begin;
}

void StreamedMemory::prefetch() {
  CALIBATT_ASSERT(sealed_);
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
  CALIBATT_ASSERT(sealed_ && slot_ < 0);
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

WeightStream::Ring& WeightStream::ring() {
  if (ring_ == nullptr) ring_ = std::make_unique<Ring>();
  return *ring_;
}

void WeightStream::fill(StreamedMemory& group, int slot) {
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
  group.copy_to(buffer.memory.get(), copies);
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
