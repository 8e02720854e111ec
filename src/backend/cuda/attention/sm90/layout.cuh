#pragma once

#include <cuda.h>

#include <cstdint>

#include "backend/cuda/attention/attention_args.h"

/// Sizes, and what lies where in shared memory.
namespace calibatt::cuda::sm90 {

/// Keys of one step of the mainloop: two chunks, which need not be neighbours. 128 keys and two stages leave room for a
/// second set of queries (so that a tile's first copies do not wait for the last product of the tile before) and for
/// outputs of their own; 176 keys do not.
inline constexpr int kStepKeys = 2 * kChunkKeys;
inline constexpr int kStages = 2;
inline constexpr int kGroupRows = 64;  ///< query rows of a consumer warpgroup: wgmma's M
inline constexpr int kGroups = kTileRows / kGroupRows;
inline constexpr int kConsumerWarps = 4 * kGroups;
inline constexpr int kThreads = 128 * (1 + kGroups);  ///< a producer warpgroup, then the consumers
inline constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;

inline constexpr int kPanelColumns = 64;  ///< 128 bytes: the swizzle's row. Tiles are stored panel by panel
inline constexpr int kRowBytes = 128;     ///< of a panel
inline constexpr int kElementBytes = kRowBytes / kPanelColumns;  ///< of q, k, v, and of outputs of their type

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

template <int kHeadDim>
struct SharedMemory {
  static constexpr int kPanels = kHeadDim / kPanelColumns;
  static constexpr int kQueryBytes = kPanels * kTileRows * kRowBytes;
  static constexpr int kStepBytes = kPanels * kStepKeys * kRowBytes;  ///< keys, or values, of a step
  static constexpr int kOutBytes = 16 * kHeadDim * kElementBytes;     ///< a warp's 16 rows

  alignas(1024) uint8_t queries[2][kPanels][kTileRows * kRowBytes];
  alignas(1024) uint8_t keys[kStages][kPanels][kStepKeys * kRowBytes];
  alignas(1024) uint8_t values[kStages][kPanels][kStepKeys * kRowBytes];
  alignas(1024) uint8_t out[kConsumerWarps][kOutBytes];
  TileHeader headers[4];  ///< one more lap than the queries: an epilogue still reads its own
  TileAhead tile_ahead;
  uint64_t queries_full[2], queries_empty[2];  ///< header and queries
  uint64_t keys_full[kStages], keys_empty[kStages];
  uint64_t values_full[kStages], values_empty[kStages];
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
  float last_key_bias;                    ///< dense calls: of the last key, in the same units
};

}  // namespace calibatt::cuda::sm90
