#pragma once

#include <cuda.h>

#include <cstdint>

/// What producer and consumers of a product share: sizes, places, order.
namespace calibatt::cuda::product {

/// A block's tile, and how much of the contraction a stage holds, in elements of a byte.
inline constexpr int kTileRows = 128, kTileColumns = 256, kStepDepth = 128;
inline constexpr int kStages = 4;
inline constexpr int kConsumerWarps = 8, kThreads = 128 + 32 * kConsumerWarps;
inline constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;  // of 65,536 in all
/// What a warp writes at a time: 128 bytes of each of its rows.
inline constexpr int kWarpRows = 16, kPartRowBytes = 128, kPartBytes = kWarpRows * kPartRowBytes;
/// Tiles are computed column by column within bands of so many tiles' rows, whose inputs stay in the second-level cache
/// meanwhile.
inline constexpr int kBandRows = 16;

/// What two columns' sums are multiplied with and what is then added.
struct ColumnPair {
  float2 scale, bias;
};

/// In this order: operands and parts lie at multiples of 1,024 bytes.
struct Shared {
  uint8_t input[kStages][kTileRows * kStepDepth];
  uint8_t weight[kStages][kTileColumns * kStepDepth];
  uint8_t parts[kConsumerWarps][2][kPartBytes];
  ColumnPair columns[kTileColumns / 2];
  uint64_t full[kStages], empty[kStages];
  uint64_t columns_full, columns_empty;
};

struct Params {
  CUtensorMap input, weight, out;
  const float* row_scales;
  const ColumnPair* columns;
  int rows, out_features, in_features;
  int row_tiles, column_tiles;
};

/// Where a tile begins.
struct Tile {
  int row, column;
};

__device__ __forceinline__ Tile tile_at(const Params& params, int index) {
  const int per_band = kBandRows * params.column_tiles, band = index / per_band, first = band * kBandRows;
  const int rows = min(params.row_tiles - first, kBandRows), within = index - band * per_band;
  const int column = within / rows;
  return {(first + within - column * rows) * kTileRows, column * kTileColumns};
}

/// fn(tile): of this block's tiles, one after the other.
template <class Fn>
__device__ __forceinline__ void for_each_tile(const Params& params, const Fn& fn) {
  const int tiles = params.row_tiles * params.column_tiles;
  for (int index = blockIdx.x; index < tiles; index += gridDim.x) fn(tile_at(params, index));
}

__device__ __forceinline__ int num_steps(const Params& params) {
  return (params.in_features + kStepDepth - 1) / kStepDepth;
}

/// A place in the ring of stages, and the parity of the barriers' phase there.
struct Stage {
  uint32_t index = 0, parity;

  __device__ explicit Stage(uint32_t parity) : parity(parity) {}
  __device__ __forceinline__ void advance() {
    if (++index == kStages) index = 0, parity ^= 1;
  }
};

}  // namespace calibatt::cuda::product
