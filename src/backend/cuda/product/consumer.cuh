#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "backend/cuda/device/ptx/arithmetic.cuh"
#include "backend/cuda/device/ptx/stmatrix.cuh"
#include "backend/cuda/device/ptx/tma.cuh"
#include "backend/cuda/device/ptx/wgmma_bytes.cuh"
#include "backend/cuda/product/layout.cuh"

namespace calibatt::cuda::product {

/// A warp of one of the two warpgroups, each of which has 64 rows of the tile and all of its columns. They do not wait
/// for each other: while one writes its tile, the other has the tensor cores. kAdd: the copy engine adds what it writes
/// to what is there, so that no thread waits for what was there.
template <class Out, bool kAdd>
class Consumer {
 public:
  __device__ Consumer(const Params& params, Shared& shared)
      : params_(params),
        shared_(shared),
        warp_(__shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0) - 4),
        lane_(static_cast<int>(threadIdx.x) % 32) {}

  __device__ void run() {
    for_each_tile(params_, [&](const Tile& tile) {
      const float upper = row_scale(tile, 0), lower = row_scale(tile, 8);
      int32_t sums[kTileColumns / 2];
      multiply(sums);
      write(sums, tile, upper, lower);
    });
    if (lane_ == 0) ptx::bulk_wait();
  }

 private:
  static constexpr int kPartColumns = kPartRowBytes / sizeof(Out), kGroups = kPartColumns / 8;

  __device__ __forceinline__ float row_scale(const Tile& tile, int below) const {
    const int row = tile.row + warp_ * kWarpRows + lane_ / 4 + below;
    return row < params_.rows ? params_.row_scales[row] : 0;
  }

  /// This warp is done with a stage.
  __device__ __forceinline__ void release(uint32_t stage) const {
    if (lane_ == 0) ptx::mbarrier_arrive(&shared_.empty[stage]);
  }

  /// One step's products are always under way while the next step's are enqueued.
  __device__ __forceinline__ void multiply(int32_t (&sums)[kTileColumns / 2]) {
    const int steps = num_steps(params_), half = warp_ / 4;
    uint32_t last = 0;
    for (int step = 0; step < steps; ++step) {
      ptx::mbarrier_wait(&shared_.full[stage_.index], stage_.parity);
      const uint8_t* const rows = shared_.input[stage_.index] + half * kTileRows / 2 * kStepDepth;
      const ptx::RowDescriptor<kStepDepth> input(ptx::shared_address(rows));
      const ptx::RowDescriptor<kStepDepth> weight(ptx::shared_address(shared_.weight[stage_.index]));
      ptx::pin(sums);
      ptx::wgmma_fence();
#pragma unroll
      for (int i = 0; i < kStepDepth / 32; ++i) {
        ptx::wgmma_s8(sums, input.at(i * 32), weight.at(i * 32), step + i > 0);
      }
      ptx::wgmma_commit();
      ptx::pin(sums);
      ptx::wgmma_wait<1>();
      if (step > 0) release(last);
      last = stage_.index;
      stage_.advance();
    }
    ptx::wgmma_wait<0>();
    ptx::pin(sums);
    release(last);
  }

  /// Part by part, from two places of shared memory in turns.
  __device__ __forceinline__ void write(const int32_t (&sums)[kTileColumns / 2], const Tile& tile, float upper,
                                        float lower) {
    ptx::mbarrier_wait(&shared_.columns_full, columns_parity_);
    columns_parity_ ^= 1;
    const int row = tile.row + warp_ * kWarpRows;
#pragma unroll
    for (int part = 0; part < kTileColumns / kPartColumns; ++part) {
      const uint32_t to = ptx::shared_address(shared_.parts[warp_][part % 2]);
      float values[kGroups][4];
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
        const int group = part * kGroups + i;
        const ColumnPair& pair = shared_.columns[group * 4 + lane_ % 4];
        const float2 scale = pair.scale, bias = pair.bias;
        values[i][0] = fmaf(static_cast<float>(sums[4 * group]) * upper, scale.x, bias.x);
        values[i][1] = fmaf(static_cast<float>(sums[4 * group + 1]) * upper, scale.y, bias.y);
        values[i][2] = fmaf(static_cast<float>(sums[4 * group + 2]) * lower, scale.x, bias.x);
        values[i][3] = fmaf(static_cast<float>(sums[4 * group + 3]) * lower, scale.y, bias.y);
      }
      if (lane_ == 0) ptx::bulk_wait_read<1>();
      __syncwarp();
      store_part(values, to);
      ptx::fence_async_proxy();
      __syncwarp();
      if (lane_ == 0) {
        const int column = tile.column + part * kPartColumns;
        if (row < params_.rows && column < params_.out_features) {
          ptx::tma_store<kAdd>(&params_.out, to, column, row);
        }
        ptx::bulk_commit();
      }
    }
    if (lane_ == 0) ptx::mbarrier_arrive(&shared_.columns_empty);
  }

  /// In the copy engine's 128-byte swizzle.
  __device__ __forceinline__ void store_part(const float (&values)[kGroups][4], uint32_t to) const {
    if constexpr (sizeof(Out) == 2) {
      const int row = lane_ % 16;
#pragma unroll
      for (int i = 0; i < kGroups; i += 2) {
        const uint32_t four[4] = {ptx::pack_pair<Out>(values[i][0], values[i][1]),
                                  ptx::pack_pair<Out>(values[i][2], values[i][3]),
                                  ptx::pack_pair<Out>(values[i + 1][0], values[i + 1][1]),
                                  ptx::pack_pair<Out>(values[i + 1][2], values[i + 1][3])};
        ptx::stmatrix_x4(to + ptx::swizzled<kPartRowBytes>(row, i + lane_ / 16), four);
      }
    } else {
      // Rows in odd places write the groups in another order: so the 16 lanes of a turn touch every bank once.
      const int row = lane_ / 4;
      const bool odd = row % 2 != 0;
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
        const int group = odd ? i ^ 2 : i;
        const uint32_t at =
            to + ptx::swizzled<kPartRowBytes>(row, group * 2 + lane_ % 4 / 2) + lane_ % 2 * 2 * sizeof(float);
#pragma unroll
        for (int below = 0; below < 2; ++below) {
          const float a = odd ? values[i ^ 2][2 * below] : values[i][2 * below];
          const float b = odd ? values[i ^ 2][2 * below + 1] : values[i][2 * below + 1];
          asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(at + below * 8 * kPartRowBytes), "f"(a), "f"(b)
                       : "memory");
        }
      }
    }
  }

  const Params& params_;
  Shared& shared_;
  const int warp_, lane_;  // warp: of both warpgroups
  Stage stage_{0};
  uint32_t columns_parity_ = 0;
};

}  // namespace calibatt::cuda::product
