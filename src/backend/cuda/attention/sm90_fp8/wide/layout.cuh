#pragma once

#include "backend/cuda/attention/sm90_fp8/layout.cuh"

/// Sizes, what lies where in shared memory, and what passes between the roles.
namespace calibatt::cuda::sm90_fp8::wide {

inline constexpr int kHeadDim = 128;
inline constexpr int kGroups = WideTile::kHalves;  ///< consumer warpgroups of 64 rows
inline constexpr int kThreads = 128 * (1 + kGroups);
inline constexpr int kProducerRegisters = 32, kConsumerRegisters = 160;  ///< 65,536 in all
inline constexpr int kStages = 6;                                        ///< of one chunk's keys and values each
/// So many chunks that it does not see a group may pass while a product with the stage of one that it saw is owed. Less
/// than kStages - 1, or the producer would wait for that stage, and the group for the producer.
inline constexpr int kChunksHeld = 4;
inline constexpr int kChunksOfSum = 4096 / kChunkKeys;  ///< as kStepsOfSum
/// Behind the values' channels lie rows that are 1 for every eighth key: the product with values then sums the weights,
/// too, as rounded. In eight sums, because the tensor core cuts off what is small beside a sum: one alone was 1.7 %
/// short after 2,048 keys.
inline constexpr int kOnes = 8, kOutputs = (kHeadDim + kOnes) / 2;
inline constexpr uint32_t kChunkBytes = kChunkKeys * kHeadDim, kValueBytes = kChunkBytes + kChunkKeys * kOnes;

/// What a group computes of a tile.
struct GroupRows {
  int first_row, num_rows;  ///< 0: nothing
  uint32_t flags, kept_bits;
};
struct Header {
  int batch, head;
  bool exists;  ///< or there is no further tile
  GroupRows groups[kGroups];
};

/// What a stage's chunk is: bit g says that group g sees it; kLast, that the tile ends with it. From kCount on: of
/// summaries the chunk's number, else how many of its keys exist.
enum ChunkInfo : uint32_t { kLast = 8, kSummaries = 16, kCount = 8 };

/// What the producer reads of a planned tile before its turn, for a group.
struct HalfAhead {
  Tile tile;
  alignas(16) ChunkRange last_range;  ///< where the walk begins
};

struct SharedMemory {
  alignas(1024) uint8_t queries[kGroups][kGroupRows * kHeadDim];
  alignas(1024) uint8_t keys[kStages][kChunkBytes];
  alignas(1024) uint8_t values[kStages][kValueBytes];  ///< starts at multiples of the swizzle's 512 bytes
  union Sums {
    float4 pieces[kHeadDim / 8][32];                   ///< a thread's, by lane
    uint8_t out[16 * kHeadDim * sm90::kElementBytes];  ///< then the output's rows on their way (sm90/epilogue.cuh)
  };
  alignas(128) Sums sums[4 * kGroups];
  float2 row_sums[128 * kGroups];  ///< a thread's two
  float query_scales[kGroups][kGroupRows];
  float4 key_scales[kStages];  ///< in x
  uint32_t info[kStages];      ///< ChunkInfo
  Header headers[2];
  HalfAhead ahead[kGroups];
  uint64_t queries_full, queries_empty;  ///< header, queries and their scales
  uint64_t full[kStages], empty[kStages];
};

/// Whether a group's queries lie scattered, or start inside a group of 8 rows (whose swizzle would not fit): it then
/// gathers them itself.
__device__ __forceinline__ bool gathers_queries(const GroupRows& rows) {
  return (rows.flags & Tile::kAnchors) || rows.first_row % 8 != 0;
}

}  // namespace calibatt::cuda::sm90_fp8::wide
