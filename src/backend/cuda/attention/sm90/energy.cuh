#pragma once

#include "backend/cuda/attention/sm90/layout.cuh"
#include "backend/cuda/attention/sm90/softmax.cuh"
#include "backend/cuda/ptx/mbarrier.cuh"

/// Block energy in the same pass: while keys stream by, log2(sum of a row's weights on a column) + reference is noted
/// per row; at the end of the tile, when the rows' log-sum-exp is known, the mean of exp2(note − lse) over the rows is
/// the energy (method paper, Eq. 5). Notes live in the workspace: 128 rows × columns per resident block, which stays in
/// L2.
namespace calibatt::cuda::sm90 {

/// The block's own notes [columns][128 rows], then the warps' partial results [8][columns].
__device__ __forceinline__ float* energy_notes(const KernelParams& params) {
  constexpr int64_t kCounterFloats = 64;
  return static_cast<float*>(params.args.workspace) + kCounterFloats +
         blockIdx.x * static_cast<int64_t>(params.energy_columns) * (kTileRows + kConsumerWarps);
}

template <EnergyColumns kColumns>
__device__ __forceinline__ void record_energy(const KernelParams& params, const TileHeader& header, int step,
                                              const float (&reference)[2], const float (&chunk_sum)[2][2], int warp,
                                              int lane) {
  float* notes = energy_notes(params) + warp * 16 + lane / 4;
  const auto note = [&](int column, const float(&sums)[2]) {
    const float whole[2] = {sum_of_row(sums[0]), sum_of_row(sums[1])};
    const int r = lane % 4;
    if (r == 0) __stcg(notes + static_cast<int64_t>(column) * kTileRows, ptx::log2_unit(whole[0]) + reference[0]);
    if (r == 1) __stcg(notes + static_cast<int64_t>(column) * kTileRows + 8, ptx::log2_unit(whole[1]) + reference[1]);
  };
  if constexpr (kColumns == EnergyColumns::kSteps) {
    const float sums[2] = {chunk_sum[0][0] + chunk_sum[0][1], chunk_sum[1][0] + chunk_sum[1][1]};
    note(header.num_steps - 1 - step, sums);
  } else {
    // Steps go down from the last chunk; an odd number of chunks leaves one alone in the first step.
    const int odd = params.num_chunks & 1;
    const int high = step == 0 ? params.num_chunks - 1 : params.num_chunks - 1 - 2 * step + odd;
    const float first[2] = {chunk_sum[0][0], chunk_sum[1][0]}, second[2] = {chunk_sum[0][1], chunk_sum[1][1]};
    note(high, first);
    if (step > 0 || !odd) note(high - 1, second);
  }
}

template <EnergyColumns kColumns>
__device__ __forceinline__ void reduce_energy(const KernelParams& params, const TileHeader& header,
                                              const float (&lse)[2], int warp, int lane) {
  const AttentionArgs& args = params.args;
  const int columns = params.energy_columns;
  float* all_notes = energy_notes(params);
  float* partial = all_notes + static_cast<int64_t>(columns) * kTileRows;

  float row_lse[16];  // of the warp's rows; rows that do not exist weigh nothing
#pragma unroll
  for (int row = 0; row < 16; ++row) {
    const float value = __shfl_sync(0xffffffffu, lse[row / 8], row % 8 * 4);
    row_lse[row] = 16 * warp + row < header.num_rows ? value : INFINITY;
  }
  __syncwarp();
#pragma unroll 2
  for (int column = lane; column < columns; column += 32) {
    const float4* notes =
        reinterpret_cast<const float4*>(all_notes + static_cast<int64_t>(column) * kTileRows + 16 * warp);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 note = __ldcg(notes + i);
      sum += ptx::exp2_unit(note.x - row_lse[4 * i]) + ptx::exp2_unit(note.y - row_lse[4 * i + 1]) +
             ptx::exp2_unit(note.z - row_lse[4 * i + 2]) + ptx::exp2_unit(note.w - row_lse[4 * i + 3]);
    }
    __stcg(partial + static_cast<int64_t>(warp) * columns + column, sum);
  }
  ptx::named_barrier_sync(kEnergyNotes, 128 * kGroups);

  const int columns_per_block =
      kColumns == EnergyColumns::kSteps ? args.block_k / kStepKeys : args.block_k / kChunkKeys;
  const int num_key_blocks = (args.num_keys + args.block_k - 1) / args.block_k;
  const int num_query_blocks = (args.num_queries + args.block_q - 1) / args.block_q;
  const int64_t row = (static_cast<int64_t>(header.batch) * args.num_heads + header.head) * num_query_blocks +
                      header.first_row / args.block_q;
  float* energy = args.block_energy + row * num_key_blocks;
  const float share = 1.0f / static_cast<float>(header.num_rows);
  for (int block = static_cast<int>(threadIdx.x) - 128; block < num_key_blocks; block += 128 * kGroups) {
    float sum = 0;
    const int end = min((block + 1) * columns_per_block, columns);
    for (int column = block * columns_per_block; column < end; ++column) {
#pragma unroll
      for (int i = 0; i < kConsumerWarps; ++i) sum += __ldcg(partial + static_cast<int64_t>(i) * columns + column);
    }
    energy[block] = sum * share;
  }
  ptx::named_barrier_sync(kEnergyNotes, 128 * kGroups);  // before the next tile's notes
}

}  // namespace calibatt::cuda::sm90
