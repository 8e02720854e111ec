#include <cstdint>

#include "backend/cuda/attention/energy_levels.h"
#include "backend/cuda/device/device.h"
#include "base/error.h"

// One block of threads per row, and no sorting: with energies as integers, what comes before a key block is a sum over
// all blocks in any order, C additions for each of C blocks. At 591 blocks that is 8.3e9 additions for a layer of 40
// heads, a few milliseconds, beside some 200 ms of attention.

namespace calibatt::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int kColumnsPerThread = 5;  // 640 columns at a time: 591, those of Wan at 720p, are nearly all of them
constexpr int kNumLevels = 15;
constexpr float kOne = 0x1p30f, kLargest = 1.0f + 1e-3f;
constexpr unsigned long long kMostTotal = 1ull << 31;  // a row's sum is about 2³⁰; so sums fit into 32 bits

struct Ladder {
  uint32_t levels[kNumLevels];
};

/// Sum of all threads' totals; `valid` becomes whether it is so in all of them.
__device__ __forceinline__ unsigned long long block_total(unsigned long long total, bool& valid,
                                                          unsigned long long* warp_totals) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) total += __shfl_xor_sync(0xffffffffu, total, lane);
  if (threadIdx.x % 32 == 0) warp_totals[threadIdx.x / 32] = total;
  valid = __syncthreads_and(valid) != 0;
  total = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) total += warp_totals[warp];
  return total;
}

/// The codes of all columns. fixed: [padded], a multiple of four.
__device__ __forceinline__ void encode_columns(const uint32_t* fixed, const uint4* four_fixed, int num_columns,
                                               int padded, const unsigned long long* thresholds, uint8_t* code) {
  for (int first = 0; first < num_columns; first += kThreads * kColumnsPerThread) {
    uint32_t own[kColumnsPerThread], before[kColumnsPerThread];
    int column[kColumnsPerThread];
#pragma unroll
    for (int k = 0; k < kColumnsPerThread; ++k) {
      column[k] = first + k * kThreads + static_cast<int>(threadIdx.x);
      own[k] = column[k] < num_columns ? fixed[column[k]] : 0;
      before[k] = 0;
    }
    for (int j = 0; j < padded; j += 4) {
      const uint4 four = four_fixed[j / 4];  // the same address in all threads
      const uint32_t others[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int k = 0; k < kColumnsPerThread; ++k) {
          // Greater, or equal and at a lower index.
          const uint32_t lifted = others[i] + (j + i < column[k] ? 1u : 0u);
          before[k] += lifted > own[k] ? others[i] : 0u;
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kColumnsPerThread; ++k) {
      if (column[k] >= num_columns) continue;
      const unsigned long long scaled = static_cast<unsigned long long>(before[k]) << 16;
      int levels_passed = 0;
#pragma unroll
      for (int i = 0; i < kNumLevels; ++i) levels_passed += thresholds[i] <= scaled ? 1 : 0;
      code[column[k]] = static_cast<uint8_t>(levels_passed);
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    encode_kernel(const float* __restrict__ energy, int num_columns, Ladder ladder, uint8_t* __restrict__ codes) {
  extern __shared__ uint4 shared[];
  __shared__ unsigned long long warp_totals[kWarps], thresholds[kNumLevels];
  const int padded = (num_columns + 3) / 4 * 4;
  auto* fixed = reinterpret_cast<uint32_t*>(shared);        // [padded]; zeros after the row
  auto* code = reinterpret_cast<uint8_t*>(fixed + padded);  // [num_columns + 1]
  const int row_bytes = (num_columns + 1) / 2;
  const float* row = energy + int64_t{blockIdx.x} * num_columns;
  uint8_t* out = codes + int64_t{blockIdx.x} * row_bytes;

  unsigned long long total = 0;
  bool valid = true;
  for (int c = threadIdx.x; c < padded; c += kThreads) {
    const float value = c < num_columns ? row[c] : 0.0f;
    const bool in_range = value >= 0.0f && value <= kLargest;  // false for NaN
    valid &= in_range;
    const uint32_t q = in_range ? __float2uint_rn(value * kOne) : 0;
    fixed[c] = q;
    total += q;
  }
  total = block_total(total, valid, warp_totals);
  if (!valid || total >= kMostTotal) {
    for (int i = threadIdx.x; i < row_bytes; i += kThreads) out[i] = 0xff;
    return;  // the whole block
  }
  if (total == 0) {  // nothing attends anywhere: every block is worth as much as any other
    for (int c = threadIdx.x; c < num_columns; c += kThreads) fixed[c] = 1;
    total = num_columns;
  }
  if (threadIdx.x < kNumLevels) thresholds[threadIdx.x] = ladder.levels[threadIdx.x] * total;
  __syncthreads();

  encode_columns(fixed, shared, num_columns, padded, thresholds, code);
  if (threadIdx.x == 0) code[num_columns] = 15;  // the half byte left over
  __syncthreads();
  for (int i = threadIdx.x; i < row_bytes; i += kThreads) {
    out[i] = static_cast<uint8_t>(code[2 * i] | (code[2 * i + 1] << 4));
  }
}

/// Row blockIdx.x.
__global__ void __launch_bounds__(kThreads)
    video_energy_kernel(const float* __restrict__ energy, int64_t energy_columns, const float* __restrict__ tail,
                        int64_t tail_columns, int64_t num_columns, float* __restrict__ video) {
  const int64_t row = blockIdx.x;
  for (int64_t c = threadIdx.x; c < num_columns; c += kThreads) {
    const float share = tail != nullptr && c + 1 == num_columns ? tail[row * tail_columns] : 1.0f;
    video[row * num_columns + c] = energy[row * energy_columns + c] * share;
  }
}

}  // namespace

void take_video_energy(const float* energy, int64_t energy_columns, const float* tail, int64_t tail_columns,
                       int64_t num_rows, int64_t num_columns, float* video, cudaStream_t stream) {
  CALIBATT_ASSERT(num_rows >= 1 && num_rows < (int64_t{1} << 31));
  video_energy_kernel<<<static_cast<unsigned>(num_rows), kThreads, 0, stream>>>(energy, energy_columns, tail,
                                                                                tail_columns, num_columns, video);
  check(cudaGetLastError(), "energies of the video: launch");
}

void encode_energy_levels(const float* energy, int64_t num_rows, int num_columns, std::span<const uint32_t> ladder,
                          uint8_t* codes, cudaStream_t stream) {
  CALIBATT_ASSERT(ladder.size() == kNumLevels && num_columns >= 1 && num_columns <= kMostEncodedColumns);
  CALIBATT_ASSERT(num_rows >= 1 && num_rows < (int64_t{1} << 31));
  Ladder levels{};
  for (int i = 0; i < kNumLevels; ++i) levels.levels[i] = ladder[static_cast<size_t>(i)];
  const size_t padded = (static_cast<size_t>(num_columns) + 3) / 4 * 4;
  const size_t shared_bytes = padded * sizeof(uint32_t) + padded + 4;  // 41 KB at most: no opt-in needed
  encode_kernel<<<static_cast<unsigned>(num_rows), kThreads, shared_bytes, stream>>>(energy, num_columns, levels,
                                                                                     codes);
  check(cudaGetLastError(), "encoding energy levels: launch");
}

}  // namespace calibatt::cuda
