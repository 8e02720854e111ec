#pragma once

#include "backend/cuda/device/ptx/tma.cuh"
#include "backend/cuda/product/layout.cuh"

namespace calibatt::cuda::product {

/// One thread that keeps the copy engine busy, past the ends of tiles.
__device__ void produce(const Params& params, Shared& shared) {
  const int steps = num_steps(params);
  Stage stage(1);  // all are free at first
  uint32_t columns_parity = 1;
  for_each_tile(params, [&](const Tile& tile) {
    for (int step = 0; step < steps; ++step) {
      ptx::mbarrier_wait(&shared.empty[stage.index], stage.parity);
      uint64_t* const full = &shared.full[stage.index];
      ptx::mbarrier_arrive_expect(full, (kTileRows + kTileColumns) * kStepDepth);
      ptx::tma_load(shared.input[stage.index], &params.input, full, step * kStepDepth, tile.row);
      ptx::tma_load(shared.weight[stage.index], &params.weight, full, step * kStepDepth, tile.column);
      stage.advance();
    }
    // After the tile's operands, not before: the tile before may still be written with its own.
    ptx::mbarrier_wait(&shared.columns_empty, columns_parity);
    columns_parity ^= 1;
    const int pairs = min(kTileColumns, params.out_features - tile.column) / 2;
    const uint32_t bytes = static_cast<uint32_t>(pairs * sizeof(ColumnPair));
    ptx::mbarrier_arrive_expect(&shared.columns_full, bytes);
    ptx::bulk_load(shared.columns, params.columns + tile.column / 2, bytes, &shared.columns_full);
  });
}

}  // namespace calibatt::cuda::product
