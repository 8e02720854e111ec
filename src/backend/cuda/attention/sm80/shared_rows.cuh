#pragma once

#include <cstdint>

#include "backend/cuda/attention/sm80/work.cuh"
#include "backend/cuda/device/ptx/cp_async.cuh"
#include "backend/cuda/device/ptx/ldmatrix.cuh"

/// Rows of head_dim 16-bit elements in shared memory, and how they get there.
///
/// Unit u (16 bytes) of row r lies at unit u ^ (r mod 8) of the row: the same unit of eight consecutive rows, which is
/// what ldmatrix reads, then falls into eight different groups of banks.
namespace calibatt::cuda::sm80 {

template <int kRowBytes>
__device__ __forceinline__ uint32_t swizzled(int row, int unit) {
  return static_cast<uint32_t>(row * kRowBytes + ((unit ^ (row & 7)) << 4));
}

/// From a lane's address of units 0 and 1 to that of units 2·step and 2·step + 1 of the same row (step: a compile-time
/// constant after unrolling). Addresses have the swizzle in their bits 4 to 6, so rows must start at multiples of 128.
__device__ __forceinline__ uint32_t at_unit_pair(uint32_t address, int step) {
  return (address ^ static_cast<uint32_t>((step & 3) << 5)) + static_cast<uint32_t>((step >> 2) << 7);
}

/// Copies of 64 rows (a chunk) by the whole block: a thread copies the same 16-byte unit of every kRowsPerStep-th row.
/// Everything about the thread is worked out anew each time, which costs less than the registers to keep it.
template <class Shape>
struct ChunkCopy {
  static constexpr int kUnits = Shape::kRowBytes / 16;
  static constexpr int kRowsPerStep = Shape::kThreads / kUnits;
  static constexpr int kSteps = kChunkKeys / kRowsPerStep;
  static_assert(kRowsPerStep % 8 == 0, "the swizzle of a thread's rows is then always the same");

  /// Rows first_row … first_row + 63 of a head, which all exist.
  __device__ static __forceinline__ void whole(uint32_t slot, const char* head, int token_bytes, uint32_t first_row) {
    const int thread = recomputed(static_cast<int>(threadIdx.x)), row = thread / kUnits, unit = thread % kUnits;
    slot += swizzled<Shape::kRowBytes>(row, unit);
    const char* source = head + static_cast<int64_t>(first_row + row) * token_bytes + unit * 16;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      ptx::cp_async_16(slot + step * kRowsPerStep * Shape::kRowBytes, source);
      source += static_cast<int64_t>(token_bytes) * kRowsPerStep;
    }
  }

  /// The same, but rows from first_row + num_rows on (num_rows ≥ 1) do not exist and become zeros. Kept small.
  __device__ static __forceinline__ void partial(uint32_t slot, const char* head, int token_bytes, uint32_t first_row,
                                                 int num_rows) {
    const int thread = recomputed(static_cast<int>(threadIdx.x)), unit = thread % kUnits;
    slot += swizzled<Shape::kRowBytes>(thread / kUnits, unit);
#pragma unroll 1
    for (int row = thread / kUnits; row < kChunkKeys; row += kRowsPerStep) {
      // Instead of a missing row the first one: its address is valid, and it is not read.
      const bool exists = row < num_rows;
      const char* source = head + static_cast<int64_t>(first_row + (exists ? row : 0)) * token_bytes + unit * 16;
      ptx::cp_async_16_or_zero(slot, source, exists);
      slot += kRowsPerStep * Shape::kRowBytes;
    }
  }
};

/// A warp's 32 query rows, from first_row of the tile on, of which num_rows (≤ 0: none) exist; the others become zeros.
template <class Shape>
__device__ __forceinline__ void copy_query_rows(uint32_t destination, const AttentionArgs& args, const WorkUnit& work,
                                                int first_row, int num_rows) {
  constexpr int kUnits = Shape::kRowBytes / 16, kRowsPerStep = 32 / kUnits;
  const int lane = recomputed(static_cast<int>(threadIdx.x) % 32), unit = lane % kUnits;
  // Lane l knows the token of row l. Instead of a missing row the tile's first: a valid address, not read.
  const uint32_t my_row = work.tile.first_row + (lane < num_rows ? first_row + lane : 0);
  const int my_token =
      work.tile.flags & Tile::kAnchors ? __ldg(args.schedule.anchor_tokens + my_row) : static_cast<int>(my_row);
  const char* const head = head_of(args.q, work.batch, work.tile.head);
#pragma unroll 4
  for (int first = 0; first < Shape::kWarpRows; first += kRowsPerStep) {
    const int row = first + lane / kUnits;
    const int64_t token = __shfl_sync(kAllLanes, my_token, row);
    const char* source = head + token * args.q.token_stride * kElementBytes + unit * 16;
    ptx::cp_async_16_or_zero(destination + swizzled<Shape::kRowBytes>(row, unit), source, row < num_rows);
  }
}

}  // namespace calibatt::cuda::sm80
