#pragma once

#include "backend/cuda/attention/sm80/shared_rows.cuh"
#include "backend/cuda/attention/sm80/softmax.cuh"

/// Writing a tile's results.
namespace calibatt::cuda::sm80 {

/// 16 bytes to an address that is aligned to them, or only to its elements.
template <class Element>
__device__ __forceinline__ void store_16_bytes(Element* to, const uint4& value, bool aligned) {
  if (aligned) {
    *reinterpret_cast<uint4*>(to) = value;
    return;
  }
  const uint32_t words[4] = {value.x, value.y, value.z, value.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(Element) == 4) {
      to[i] = __uint_as_float(words[i]);
    } else {
      auto* halves = reinterpret_cast<uint16_t*>(to);
      halves[2 * i] = static_cast<uint16_t>(words[i] & 0xffffu);
      halves[2 * i + 1] = static_cast<uint16_t>(words[i] >> 16);
    }
  }
}

/// A row's output to all tokens that receive it. row: as Tile::first_row counts.
template <class Element>
__device__ __forceinline__ void store_to_receivers(const KernelCall& call, const Tile& tile, char* head, uint32_t row,
                                                   int first_dim, const uint4& value) {
  const int64_t stride = call.args.out.token_stride;
  auto* const out = reinterpret_cast<Element*>(head) + first_dim;
  if ((tile.flags & Tile::kAnchors) == 0) {
    store_16_bytes(out + row * stride, value, call.out_rows_aligned);
    return;
  }
  const DeviceSchedule& schedule = call.args.schedule;
  const uint32_t end = __ldg(schedule.destination_offsets + row + 1);
#pragma unroll 1
  for (uint32_t d = __ldg(schedule.destination_offsets + row); d < end; ++d) {
    store_16_bytes(out + __ldg(schedule.destinations + d) * stride, value, call.out_rows_aligned);
  }
}

/// The warp's output, times `factor` per row, as Element (T or float). It goes through the warp's own part of the
/// queries' shared memory, 16 rows at a time, so that whole rows are written. first_row: of the warp, in the tile.
template <class Shape, class T, class Element>
__device__ __forceinline__ void store_output(const KernelCall& call, const Tile& tile, char* head, char* stage,
                                             int first_row, const float (&output)[2][Shape::kDimGroups][4],
                                             const float (&factor)[4]) {
  constexpr int kRowBytes = Shape::kHeadDim * static_cast<int>(sizeof(Element));
  constexpr int kUnits = kRowBytes / 16, kRowsPerStep = 32 / kUnits;
  const int lane = recomputed(static_cast<int>(threadIdx.x) % 32), column = lane % 4;
  // This lane's place in row lane / 4, for n = 0; that for other n differs in the unit alone.
  constexpr int kUnitsPerGroup = static_cast<int>(sizeof(Element)) / 2;  // n8 columns: 1 or 2 units
  const int place = swizzled<kRowBytes>(lane / 4, kUnitsPerGroup == 2 ? column / 2 : 0) +
                    (kUnitsPerGroup == 2 ? column % 2 * 8 : column * 4);
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    __syncwarp();
#pragma unroll
    for (int n = 0; n < Shape::kDimGroups; ++n) {
      const int unit = n * kUnitsPerGroup;
      char* const to = stage + (place ^ ((unit & 7) << 4)) + (unit >> 3) * 128;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float low = output[m][n][2 * h] * factor[2 * m + h], high = output[m][n][2 * h + 1] * factor[2 * m + h];
        if constexpr (sizeof(Element) == 4) {
          *reinterpret_cast<float2*>(to + 8 * h * kRowBytes) = {low, high};
        } else {
          *reinterpret_cast<uint32_t*>(to + 8 * h * kRowBytes) = ptx::pack_pair<T>(low, high);
        }
      }
    }
    __syncwarp();
#pragma unroll 1
    for (int row = lane / kUnits; row < 16; row += kRowsPerStep) {
      const int row_of_tile = first_row + 16 * m + row, unit = lane % kUnits;
      if (row_of_tile >= static_cast<int>(tile.num_rows)) break;
      const uint4 value = *reinterpret_cast<const uint4*>(stage + swizzled<kRowBytes>(row, unit));
      store_to_receivers<Element>(call, tile, head, tile.first_row + row_of_tile,
                                  unit * (16 / static_cast<int>(sizeof(Element))), value);
    }
  }
}

/// Block energy of a tile, which is one query block: from each row's log2 weight per chunk and its log2 sum over all
/// keys. All threads of the block. log_sums: in shared memory, of the tile's rows.
template <class Shape>
__device__ __forceinline__ void store_energy(const KernelCall& call, const WorkUnit& work, const float* log_sums) {
  constexpr int kColumns = 4;  // of a warp at a time, for as many loads in flight
  const AttentionArgs& args = call.args;
  const auto num_rows = static_cast<int>(work.tile.num_rows), num_chunks = static_cast<int>(call.num_chunks);
  const int thread = recomputed(static_cast<int>(threadIdx.x)), lane = thread % 32, warp = thread / 32;
  const int chunks_per_block = args.block_k / kChunkKeys;
  const int num_blocks = (args.num_keys + args.block_k - 1) / args.block_k;
  const int64_t energy_row =
      (static_cast<int64_t>(work.batch) * args.num_heads + work.tile.head) * call.tiles_per_head + work.number_in_head;
  const float* const chunk_weights = call.chunk_weights + static_cast<int64_t>(blockIdx.x) * num_chunks * kTileRows;
  float* const energy = args.block_energy + energy_row * num_blocks;

  const float4 log_sum = reinterpret_cast<const float4*>(log_sums)[lane];
  const int my_rows = num_rows - 4 * lane;  // of the four that this lane adds up
  const float mean = 1.0f / static_cast<float>(num_rows);
  for (int first = warp * kColumns; first < num_blocks; first += Shape::kWarps * kColumns) {
    float sum[kColumns] = {};
    for (int i = 0; i < chunks_per_block; ++i) {
      float4 weight[kColumns];
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const int chunk = (first + j) * chunks_per_block + i;
        weight[j] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
        if (chunk < num_chunks && my_rows > 0) {
          weight[j] = reinterpret_cast<const float4*>(chunk_weights + static_cast<int64_t>(chunk) * kTileRows)[lane];
        }
      }
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        if (my_rows > 0) sum[j] += ptx::exp2_unit(weight[j].x - log_sum.x);
        if (my_rows > 1) sum[j] += ptx::exp2_unit(weight[j].y - log_sum.y);
        if (my_rows > 2) sum[j] += ptx::exp2_unit(weight[j].z - log_sum.z);
        if (my_rows > 3) sum[j] += ptx::exp2_unit(weight[j].w - log_sum.w);
      }
    }
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
#pragma unroll
      for (int distance = 16; distance > 0; distance /= 2) sum[j] += __shfl_xor_sync(kAllLanes, sum[j], distance);
      if (lane == j && first + j < num_blocks) energy[first + j] = sum[j] * mean;
    }
  }
}

}  // namespace calibatt::cuda::sm80
