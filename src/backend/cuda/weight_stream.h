#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "backend/cuda/device/context.h"
#include "backend/cuda/device/event.h"
#include "backend/slot_ring.h"
#include "backend/stored_linear.h"

namespace calibatt::cuda {

class WeightStream;

/// StreamedWeights on a GPU: pages of host memory, filled by all threads straight from the mapped file and then pinned.
class StreamedMemory final : public StreamedWeights {
 public:
  StreamedMemory(WeightStream& stream, int64_t id, size_t capacity_bytes);
  ~StreamedMemory() override;
  StreamedMemory(const StreamedMemory&) = delete;
  StreamedMemory& operator=(const StreamedMemory&) = delete;

  /// Appends tensors one below the other, converted to dtype. Returns where they begin, in bytes from the group's
  /// begin. Throws Error(kNumeric) that names a tensor which is not finite.
  size_t append(const std::vector<StoredTensor>& parts, DType dtype);
  /// The same in 8 bits (base/e4m3.h); scales: host, one for each row of all.
  size_t append_eight_bits(const std::vector<StoredTensor>& parts, float* scales);
  /// The device's copy; only between begin_use and end_use.
  const void* device_memory() const;

  void seal() override;
  void prefetch() override;
  void begin_use() override;
  void end_use() override;

 private:
  friend class WeightStream;
  /// Room for a matrix at the end: where it begins, in bytes.
  size_t append_room(const std::vector<StoredTensor>& parts, DType dtype);

  WeightStream& stream_;
  int64_t id_;
  void* host_ = nullptr;
  size_t capacity_bytes_ = 0, size_bytes_ = 0;
  bool pinned_ = false;
  int slot_ = -1;  // while in use: its buffer on the device
};

/// Weights that do not stay on the device: two buffers there, each large enough for the largest group of them. While
/// the GPU computes with one, the next group is copied into the other on a stream of its own; events keep a copy from
/// overwriting what kernels still read, and kernels from reading what has not arrived.
class WeightStream {
 public:
  explicit WeightStream(Context& context) : context_(context) {}

  std::shared_ptr<StreamedMemory> make_group(size_t capacity_bytes);
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
  void fill(const StreamedMemory& group, int slot);

  Context& context_;
  std::unique_ptr<Ring> ring_;
  int64_t next_id_ = 0;
  size_t largest_bytes_ = 0;
};

}  // namespace calibatt::cuda
