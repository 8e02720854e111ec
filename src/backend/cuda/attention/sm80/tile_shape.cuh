#pragma once

#include "backend/cuda/attention/attention_args.h"

namespace calibatt::cuda::sm80 {

inline constexpr uint32_t kAllLanes = 0xffffffffu;
inline constexpr int kWorkBytes = 128;   ///< shared memory for two WorkUnits
inline constexpr int kElementBytes = 2;  ///< of q, k, v (bf16, fp16), which shared memory is laid out for

/// x, computed here and now: what follows from it is then not carried through the mainloop, which needs the registers.
__device__ __forceinline__ int recomputed(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

/// All sizes of the kernel, and why.
template <int kHeadDim_>
struct TileShape {
  static constexpr int kHeadDim = kHeadDim_;
  static_assert(kHeadDim == 64 || kHeadDim == 128);

  /// 32 rows per warp: every key and value fragment read from shared memory then serves two products. With 16 rows, an
  /// A100 would need all of its shared-memory bandwidth to feed its tensor cores. More rows do not fit the registers:
  /// at head dim 128, 32 rows take 128 registers of output and 64 of scores.
  static constexpr int kWarpRows = 32;
  static constexpr int kWarps = kTileRows / kWarpRows;
  static constexpr int kThreads = 32 * kWarps;

  static constexpr int kKeyGroups = kChunkKeys / 8;  ///< n8 products of a chunk's scores
  static constexpr int kDimGroups = kHeadDim / 8;    ///< n8 products of the output
  static constexpr int kKeySteps = kChunkKeys / 16;  ///< k16 steps of weights · values
  static constexpr int kDimSteps = kHeadDim / 16;    ///< k16 steps of queries · keys
  static constexpr int kRowBytes = kHeadDim * kElementBytes;

  /// Keys and values go through one ring in the order in which they are used: K0 V0 K1 V1 … Three slots: one in use,
  /// two in flight. 80 KB with the queries at head dim 128: two blocks fit an A100's multiprocessor (164 KB), one those
  /// of consumer cards (100 KB).
  static constexpr int kSlots = 3;
  static constexpr int kSlotBytes = kChunkKeys * kRowBytes;
  static constexpr int kQueryBytes = kTileRows * kRowBytes;
  static constexpr int kRingOffset = kQueryBytes;
  static constexpr int kStatisticsOffset = kRingOffset + kSlots * kSlotBytes;  ///< kTileRows floats
  static constexpr int kWorkOffset = kStatisticsOffset + kTileRows * 4;        ///< two WorkUnits
  static constexpr int kSharedBytes = kWorkOffset + kWorkBytes;

  /// Resident blocks, as many as the registers allow: one's softmax hides behind the others' products.
  static constexpr int blocks_per_sm(bool energy) { return kHeadDim == 64 && !energy ? 3 : 2; }
};

}  // namespace calibatt::cuda::sm80
