#pragma once

#include <cuda_fp16.h>

#include "backend/cuda/attention/sm90/layout.cuh"
#include "backend/cuda/attention/sm90/softmax.cuh"
#include "backend/cuda/device/ptx/mbarrier.cuh"

/// Block energy in the same pass: while keys stream by, the sum of each row's weights on a column is noted; at the end
/// of the tile, when the rows' sums over everything are known, the mean over the rows of note / sum is the energy
/// (method paper, Eq. 5). Notes are relative to the row's reference, as the weights are; when that moves, which is
/// rare, the row's earlier notes are multiplied by the same factor as its output. They live in the workspace, 128 rows
/// × columns per resident block, in half precision: all blocks' notes together then leave room in the second-level
/// cache for keys and values (with floats, 40 MB at 75,600 tokens, reading them back was most of what the energy cost).
/// Sums are at most 2^14, and a note's rounding, 2^-12, is lost in the mean over the rows.
namespace calibatt::cuda::sm90 {

using EnergyNote = __half;

/// Columns of a tile's notes: steps, or chunks rounded up to whole steps.
__host__ __device__ inline int energy_columns(EnergyColumns kind, int num_chunks) {
  const int num_steps = (num_chunks + 1) / 2;
  return kind == EnergyColumns::kNone ? 0 : kind == EnergyColumns::kSteps ? num_steps : 2 * num_steps;
}
/// Bytes of workspace per resident block: notes [columns][128 rows], then two sets (tiles alternate) of the warps'
/// partial results, floats [8][columns]. A multiple of 16.
__host__ __device__ inline int64_t energy_bytes(int columns) {
  constexpr int kPartialBytes = 2 * kConsumerWarps * static_cast<int>(sizeof(float));
  return static_cast<int64_t>(columns) * (kTileRows * static_cast<int>(sizeof(EnergyNote)) + kPartialBytes);
}

/// One warp's notes on its 16 rows.
template <EnergyColumns kColumns>
class EnergyNotes {
 public:
  static constexpr int kColumnsPerStep = kColumns == EnergyColumns::kSteps ? 1 : 2;

  __device__ EnergyNotes(const KernelParams& params, int warp, int lane)
      : params_(params), warp_(warp), lane_(lane), in_row_(lane % 4) {}

  __device__ __forceinline__ void begin() {
    const int last_step = params_.energy_columns / kColumnsPerStep - 1;
    place_ = row_notes() + 8 * (in_row_ % 2) + static_cast<int64_t>(last_step * kColumnsPerStep) * kTileRows;
    if constexpr (kColumns == EnergyColumns::kChunks) {
      // Steps go down from the last chunk, and so do the chunks inside a step; but an odd number of chunks leaves the
      // first step's second chunk empty, and its first one is the lower column then.
      const int second = in_row_ / 2, odd = params_.num_chunks & 1;
      place_ += (second ^ 1 ^ odd) * kTileRows;
      move_ = -2 * kTileRows + (odd ? (1 - 2 * second) * kTileRows : 0);
    }
  }

  /// The next step's sums of weights, per row and chunk, this thread's columns. Four lanes share a row; they exchange
  /// halves, so that each ends up with one row (and chunk) to write.
  __device__ __forceinline__ void note(const float (&chunk_sum)[2][2]) {
    const bool odd = in_row_ % 2;
    const auto of_row = [&](float first, float second) {
      return (odd ? second : first) + __shfl_xor_sync(0xffffffffu, odd ? first : second, 1);
    };
    if constexpr (kColumns == EnergyColumns::kSteps) {
      float sum = of_row(chunk_sum[0][0] + chunk_sum[0][1], chunk_sum[1][0] + chunk_sum[1][1]);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if (in_row_ < 2) write(place_, sum);
      place_ -= kTileRows;
    } else {
      const float first = of_row(chunk_sum[0][0], chunk_sum[1][0]), second = of_row(chunk_sum[0][1], chunk_sum[1][1]);
      const bool high = in_row_ / 2;
      write(place_, (high ? second : first) + __shfl_xor_sync(0xffffffffu, high ? first : second, 2));
      place_ += move_;
      move_ = -2 * kTileRows;
    }
  }

  /// The references of this thread's two rows moved after `steps` steps were noted.
  __device__ __forceinline__ void rescale(const float (&factor)[2], int steps) {
    EnergyNote* notes = row_notes();
    const int end = params_.energy_columns;
    __syncwarp();
    // The same number of turns for all lanes: where they part, the compiler gives up uniform registers for the
    // mainloop.
    for (int first = end - steps * kColumnsPerStep; first < end; first += 4) {
      const int column = first + in_row_;
      if (column >= end) continue;
      EnergyNote* note = notes + static_cast<int64_t>(column) * kTileRows;
      write(note, read(note) * factor[0]);
      write(note + 8, read(note + 8) * factor[1]);
    }
    __syncwarp();
  }

  /// Energies of the tile. factors: one over the sum of this thread's two rows; use: number of the tile in this block.
  __device__ __forceinline__ void reduce(const TileHeader& header, const float (&factors)[2], uint32_t use) const {
    const AttentionArgs& args = params_.args;
    const int columns = params_.energy_columns;
    float* partial = reinterpret_cast<float*>(block_notes() + static_cast<int64_t>(columns) * kTileRows) +
                     static_cast<int64_t>(columns) * ((use & 1) * kConsumerWarps);

    // Two lanes share a column, 8 rows each: 16 bytes a lane, and a warp reads whole sectors.
    const int half = lane_ % 2;
    const float share = 1.0f / static_cast<float>(header.num_rows);
    float weight[8];  // of this lane's rows; rows that do not exist weigh nothing
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float low = __shfl_sync(0xffffffffu, factors[0], i * 4), high = __shfl_sync(0xffffffffu, factors[1], i * 4);
      weight[i] = 16 * warp_ + 8 * half + i < header.num_rows ? (half ? high : low) * share : 0.0f;
    }
    __syncwarp();
    const EnergyNote* notes = block_notes() + 16 * warp_ + 8 * half;
#pragma unroll 4
    for (int first = 0; first < columns; first += 16) {
      const int column = min(first + lane_ / 2, columns - 1);  // all lanes take part in the exchange
      const uint4 word = __ldcg(reinterpret_cast<const uint4*>(notes + static_cast<int64_t>(column) * kTileRows));
      const uint32_t pairs[4] = {word.x, word.y, word.z, word.w};
      float sum = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = __half22float2(reinterpret_cast<const __half2&>(pairs[i]));
        sum += pair.x * weight[2 * i] + pair.y * weight[2 * i + 1];
      }
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      if (half == 0) __stcg(partial + warp_ * columns + column, sum);
    }
    // One barrier a tile: the next tile's partial results go to the other set, and notes are the warp's own.
    ptx::named_barrier_sync(kEnergyNotes, 128 * kGroups);

    const int columns_per_block = kColumns == EnergyColumns::kSteps ? args.block_k / kStepKeys : 1;
    const int num_key_blocks = (args.num_keys + args.block_k - 1) / args.block_k;
    const int num_query_blocks = (args.num_queries + args.block_q - 1) / args.block_q;
    const int64_t row = (static_cast<int64_t>(header.batch) * args.num_heads + header.head) * num_query_blocks +
                        header.first_row / args.block_q;
    float* energy = args.block_energy + row * num_key_blocks;
    for (int block = static_cast<int>(threadIdx.x) - 128; block < num_key_blocks; block += 128 * kGroups) {
      float sum = 0;
      const int end = min((block + 1) * columns_per_block, columns);
      for (int column = block * columns_per_block; column < end; ++column) {
#pragma unroll
        for (int i = 0; i < kConsumerWarps; ++i) sum += __ldcg(partial + i * columns + column);
      }
      energy[block] = sum;
    }
  }

 private:
  static __device__ __forceinline__ void write(EnergyNote* place, float note) {
    __stcg(reinterpret_cast<unsigned short*>(place), __half_as_ushort(__float2half_rn(note)));
  }
  static __device__ __forceinline__ float read(const EnergyNote* place) {
    return __half2float(__ushort_as_half(__ldcg(reinterpret_cast<const unsigned short*>(place))));
  }
  __device__ __forceinline__ EnergyNote* block_notes() const {
    constexpr int64_t kCounterBytes = 256;
    return reinterpret_cast<EnergyNote*>(static_cast<char*>(params_.args.workspace) + kCounterBytes +
                                         blockIdx.x * energy_bytes(params_.energy_columns));
  }
  /// The first of this thread's two rows in column 0.
  __device__ __forceinline__ EnergyNote* row_notes() const {
    return block_notes() + 16 * warp_ + lane_ / 4;
  }

  const KernelParams& params_;
  const int warp_, lane_, in_row_;  ///< in_row_: which of the four lanes of a row
  EnergyNote* place_ = nullptr;     ///< of this lane's next note
  int move_ = 0;                    ///< kChunks: to the one after
};

template <>
class EnergyNotes<EnergyColumns::kNone> {
 public:
  __device__ EnergyNotes(const KernelParams&, int, int) {}
  __device__ void begin() {}
  __device__ void note(const float (&)[2][2]) {}
  __device__ void rescale(const float (&)[2], int) {}
  __device__ void reduce(const TileHeader&, const float (&)[2], uint32_t) const {}
};

}  // namespace calibatt::cuda::sm90
