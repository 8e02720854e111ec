#pragma once

#include "backend/cuda/attention/sm90/layout.cuh"
#include "backend/cuda/attention/sm90_fp8/quantized.h"

/// Sizes, and what lies where in shared memory. Tiles, steps of 128 keys, roles and barriers are those of sm90.
namespace calibatt::cuda::sm90_fp8 {

using sm90::kConsumerWarps;
using sm90::kGroupRows;
using sm90::kGroups;
using sm90::kStepKeys;
using sm90::TileHeader;

inline constexpr int kStages = 4;  ///< half the bytes of 16 bits: twice the stages
/// The tensor core's sum of P V is shorter than a float. So it is added to a float sum in shared memory, and begun
/// anew, every so many steps (4,096 keys: twice as often cost 1.4 %, never errs too much;
/// docs/decisions/0008-eight-bit-attention.md).
inline constexpr int kStepsOfSum = 32;

template <int kHeadDim>
struct SharedMemory {
  static constexpr int kRowBytes = kHeadDim;                  ///< of queries and keys
  static constexpr int kGroupBytes = kGroupRows * kRowBytes;  ///< queries of a consumer warpgroup
  static constexpr int kQueryBytes = kTileRows * kRowBytes;
  static constexpr int kChunkBytes = kChunkKeys * kHeadDim;  ///< keys, or values, of a chunk
  static constexpr int kStepBytes = 2 * kChunkBytes;
  static constexpr int kSumPieces = kHeadDim / 8;  ///< of 16 bytes: a thread's sums
  static constexpr int kWarpOutBytes = 16 * kHeadDim * sm90::kElementBytes;

  alignas(1024) uint8_t queries[2][kQueryBytes];
  alignas(1024) uint8_t keys[kStages][kStepBytes];    ///< rows of both chunks
  alignas(1024) uint8_t values[kStages][kStepBytes];  ///< one chunk behind the other
  union Sums {
    float4 pieces[kSumPieces][32];  ///< by lane
    uint8_t out[kWarpOutBytes];     ///< then the output's rows on their way (sm90/epilogue.cuh)
  };
  alignas(128) Sums sums[kConsumerWarps];
  float query_scales[2][kTileRows];
  float4 key_scales[kStages][2];  ///< of the step's chunks, in x
  TileHeader headers[4];          ///< one more lap than the queries: an epilogue still reads its own
  sm90::TileAhead tile_ahead;
  uint64_t queries_full[2], queries_empty[2];  ///< header, queries and their scales
  uint64_t keys_full[kStages], keys_empty[kStages];
  uint64_t values_full[kStages], values_empty[kStages];
};

struct KernelParams {
  sm90::KernelParams base;
  Quantized inputs;
  float summary_bias, last_summary_bias;  ///< log2(tokens of a block)
  int zero;                               ///< 0, which the compiler does not know
};

/// What a kernel is given, for tiles of kTileRows; its inputs are quantised and its tile counter cleared on `stream`.
KernelParams prepare(const AttentionArgs& args, cudaStream_t stream);

/// Whether a tile's queries lie scattered, or start inside a group of 8 rows (whose swizzle would not fit): its
/// consumers gather them themselves.
__device__ __forceinline__ bool gathers_queries(const TileHeader& header) {
  return (header.flags & Tile::kAnchors) || header.first_row % 8 != 0;
}

}  // namespace calibatt::cuda::sm90_fp8
