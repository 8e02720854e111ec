#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "backend/cuda/device/context.h"
#include "backend/cuda/device/event.h"
#include "backend/slot_ring.h"
#include "backend/streamed_weights.h"

namespace calibatt::cuda {

class WeightStream;

/// StreamedWeights on a GPU: matrices one behind another, kept elsewhere (host_weights.h, device_shard.h).
class StreamedMemory : public StreamedWeights {
 public:
  StreamedMemory(const StreamedMemory&) = delete;
  StreamedMemory& operator=(const StreamedMemory&) = delete;

  /// The device's copy; only between begin_use and end_use.
  const void* device_memory() const;

  void prefetch() override;
  void begin_use() override;
  void end_use() override;

 protected:
  StreamedMemory(WeightStream& stream, size_t capacity_bytes);
  ~StreamedMemory() override = default;

  /// Room for a matrix at the end: where it begins, in bytes.
  size_t append_room(int64_t rows, int64_t columns, DType dtype);
  size_t size_bytes() const { return size_bytes_; }
  bool is_sealed() const { return sealed_; }
  void end_loading() { sealed_ = true; }
  /// Enqueues the copy of all of it.
  virtual void copy_to(void* buffer, cudaStream_t copies) = 0;
  /// For destructors: no copy reads any more, and no buffer counts as holding it.
  void leave();

 private:
  friend class WeightStream;
  WeightStream& stream_;
  int64_t id_;
  size_t capacity_bytes_, size_bytes_ = 0;
  bool sealed_ = false;
  int slot_ = -1;  // while in use: its buffer on the device
};

/// Weights that do not stay on the device: two buffers there, each large enough for the largest group of them. While
/// the GPU computes with one, the next group is copied into the other on a stream of its own; events keep a copy from
/// overwriting what kernels still read, and kernels from reading what has not arrived.
class WeightStream {
 public:
  explicit WeightStream(Context& context) : context_(context) {}

  Context& context() { return context_; }
  /// Frees the buffers on the device; the next use allocates and fills them anew. Nothing may be in use.
  void release();

 private:
  friend class StreamedMemory;
  struct Buffer {
    std::shared_ptr<void> memory;
    size_t size_bytes = 0;
    Event filled, used;
  };
  /// What exists only once something is streamed.
  struct Ring {
    static constexpr int kNumBuffers = 2;
    Ring() = default;
    Ring(const Ring&) = delete;
    Ring& operator=(const Ring&) = delete;
    ~Ring();
    Stream copies;
    SlotRing slots{kNumBuffers};
    std::array<Buffer, kNumBuffers> buffers;
  };
  Ring& ring();
  void fill(StreamedMemory& group, int slot);

  Context& context_;
  std::unique_ptr<Ring> ring_;
  int64_t next_id_ = 0;
  size_t largest_bytes_ = 0;
};

}  // namespace calibatt::cuda
