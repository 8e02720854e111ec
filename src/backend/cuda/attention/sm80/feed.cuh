#pragma once

#include "backend/cuda/attention/sm80/shared_rows.cuh"
#include "backend/cuda/attention/sm80/work.cuh"

/// How keys and values come into shared memory. They alternate in one ring of three slots; a phase works on one slot
/// while the next two fill:
///
///   phase    K0        V0        K1        V1
///   works on slot 0    slot 1    slot 2    slot 0
///   fills    slot 2:K1 slot 0:V1 slot 1:K2 slot 2:V2
///
/// A phase begins with: my copies of its slot have landed; barrier. The barrier makes everybody's copies visible, and
/// says that everybody is done with the slot of the phase before, which is the one filled next. So one barrier a phase.
namespace calibatt::cuda::sm80 {

/// One thread's view of a tile's feed. Chunks are numbered by how many kept ones are `left`, this one counted: down to
/// 1, then the chunks of summaries: 0, −1, …, stop + 1.
template <class Shape>
class Feed {
  static_assert(Shape::kSlots == 3);

 public:
  using Copy = ChunkCopy<Shape>;

  /// Starts with the first chunk's keys and values. What the thread copied before belongs to the keys' group.
  __device__ __forceinline__ Feed(const KernelCall& call, const WorkUnit& work, uint32_t ring)
      : ring_(ring), keys_slot_(ring), values_slot_(ring + Shape::kSlotBytes), walk_(call, work.tile) {
    has_tail_ = walk_.chunk() + 1 == call.num_chunks && call.tail_keys < kChunkKeys;
    const int num_keys = has_tail_ ? call.tail_keys : kChunkKeys;
    Copy::partial(keys_slot_, work.keys, call.key_token_bytes, walk_.chunk() * kChunkKeys, num_keys);
    ptx::cp_async_commit();
    Copy::partial(values_slot_, work.values, call.value_token_bytes, walk_.chunk() * kChunkKeys, num_keys);
    ptx::cp_async_commit();
  }

  /// Begins the phase of the keys (of the values) of chunk `left`, and starts copying those of the one after.
  __device__ __forceinline__ void to_keys(const KernelCall& call, const WorkUnit& work, int left) {
    arrive();
    if (left > 1) walk_.advance(call);
    fill(free_slot(), work, left, work.keys, call.key_token_bytes, call.args.summary_k, call.args.num_summaries);
  }
  __device__ __forceinline__ void to_values(const KernelCall& call, const WorkUnit& work, int left) {
    arrive();
    fill(keys_slot_, work, left, work.values, call.value_token_bytes, call.args.summary_v, call.args.num_summaries);
  }
  /// Behind the phase of the values.
  __device__ __forceinline__ void turn() {
    const uint32_t next = free_slot();
    values_slot_ = keys_slot_;
    keys_slot_ = next;
  }

  /// The slots of the present chunk.
  __device__ __forceinline__ uint32_t keys_slot() const { return keys_slot_; }
  __device__ __forceinline__ uint32_t values_slot() const { return values_slot_; }
  /// Whether the first chunk has only KernelCall::tail_keys keys.
  __device__ __forceinline__ bool has_tail() const { return has_tail_; }

 private:
  __device__ __forceinline__ static void arrive() {
    ptx::cp_async_wait<1>();
    __syncthreads();
  }
  /// The third one; the addresses of all three have a constant sum.
  __device__ __forceinline__ uint32_t free_slot() const {
    return 3 * ring_ + 3 * Shape::kSlotBytes - keys_slot_ - values_slot_;
  }
  /// A phase's copies are a group, also when there are none.
  __device__ __forceinline__ void fill(uint32_t slot, const WorkUnit& work, int left, const char* rows, int token_bytes,
                                       const DeviceHeads& summaries, int num_summaries) {
    if (left > 1) {
      Copy::whole(slot, rows, token_bytes, walk_.chunk() * kChunkKeys);
    } else if (left - 1 > work.stop) {
      const int first = (1 - left) * kChunkKeys;
      Copy::partial(slot, head_of(summaries, work.batch, work.tile.head),
                    static_cast<int>(summaries.token_stride * kElementBytes), first,
                    min(num_summaries - first, kChunkKeys));
    }
    ptx::cp_async_commit();
  }

  uint32_t ring_, keys_slot_, values_slot_;
  ChunkWalk walk_;
  bool has_tail_;
};

}  // namespace calibatt::cuda::sm80
