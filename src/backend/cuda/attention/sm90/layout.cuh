#pragma once

#include <cuda.h>

#include <cstdint>

#include "backend/cuda/attention/attention_args.h"

/// Sizes, and what lies where in shared memory.
namespace calibatt::cuda::sm90 {

/// The same value, known to the compiler to be alike in the warp: it then lives in uniform registers.
__device__ __forceinline__ int uniform(int value) {
  return __shfl_sync(0xffffffffu, value, 0);
}

/// Keys of one step of the mainloop: two chunks, which need not be neighbours. Steps of 128 keys leave room for five
/// slots and a second set of queries (so that a tile's first copies do not wait for the last product of the tile
/// before); steps of 176 do not.
inline constexpr int kStepKeys = 2 * kChunkKeys;
inline constexpr int kGroupRows = 64;  ///< query rows of a consumer warpgroup: wgmma's M
inline constexpr int kGroups = kTileRows / kGroupRows;
inline constexpr int kConsumerWarps = 4 * kGroups;
inline constexpr int kThreads = 128 * (1 + kGroups);  ///< a producer warpgroup, then the consumers
inline constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;

inline constexpr int kPanelColumns = 64;  ///< 128 bytes: the swizzle's row. Tiles are stored panel by panel
inline constexpr int kRowBytes = 128;     ///< of a panel

/// Named barriers; kTurn and kGather: one per consumer warpgroup. 0 is __syncthreads().
enum NamedBarrier { kTurn = 1, kGather = 3, kEnergyNotes = 5 };

/// What the producer tells the consumers about a tile.
struct TileHeader {
  int batch, head, first_row, num_rows;
  int num_steps;          ///< of kept keys; 0: there is no further tile
  int num_summary_steps;  ///< after them
  int valid[2];           ///< keys of the first step's chunks that exist; the others are masked
  uint32_t kept_bits, flags;
};

/// What the producer reads of a planned tile before its turn.
struct TileAhead {
  Tile tile;
  alignas(16) ChunkRange last_range;  ///< where the walk begins
};

/// Keys and values of all steps of all tiles go through one ring of slots, in the order in which they are used: keys of
/// a step, then values of the step before. Five slots let a copy start two and a half steps before its use; with four
/// the time it takes is not hidden whenever it comes from beyond the near half of the second-level cache.
struct RingPlace {
  static constexpr uint32_t kSlots = 5;
  uint32_t slot, phase;

  __device__ __forceinline__ explicit RingPlace(uint32_t number) : slot(number % kSlots), phase(number / kSlots & 1) {}
  static __device__ __forceinline__ RingPlace keys(uint32_t step) { return RingPlace(2 * step + 1); }
  static __device__ __forceinline__ RingPlace values(uint32_t step) { return RingPlace(2 * step + 4); }
  /// Numbers that are neither keys nor values: nothing comes before the first keys and between them and the second.
  static __device__ __forceinline__ bool is_gap(uint32_t number) { return number == 0 || number == 2; }
};

template <int kHeadDim>
struct SharedMemory {
  static constexpr int kPanels = kHeadDim / kPanelColumns;
  static constexpr int kQueryBytes = kPanels * kTileRows * kRowBytes;
  static constexpr int kStepBytes = kPanels * kStepKeys * kRowBytes;  ///< keys, or values, of a step

  /// A tile's queries; after its last scores, its output on the way out (the same rows by the same warps).
  alignas(1024) uint8_t queries[2][kPanels][kTileRows * kRowBytes];
  alignas(1024) uint8_t ring[RingPlace::kSlots][kPanels][kStepKeys * kRowBytes];
  TileHeader headers[4];  ///< one more lap than the queries: an epilogue still reads its own
  TileAhead tile_ahead;
  uint64_t queries_full[2], queries_empty[2];  ///< header and queries
  uint64_t full[RingPlace::kSlots], empty[RingPlace::kSlots];
};

/// Boxes of 64 tokens × 64 columns.
struct TensorMaps {
  CUtensorMap q, k, v, summary_k, summary_v;
};

/// Whether block energy is recorded, per step (block_k a multiple of it) or per chunk (block_k = 64).
enum class EnergyColumns { kNone, kSteps, kChunks };

struct KernelParams {
  AttentionArgs args;
  uint32_t tiles_per_batch;
  int rows_per_tile;                      ///< dense calls
  int num_chunks;                         ///< of all keys
  int energy_columns;                     ///< of a tile's notes (energy.cuh)
  float summary_bias, last_summary_bias;  ///< log(tokens of a block) in units of raw scores
};

}  // namespace calibatt::cuda::sm90
