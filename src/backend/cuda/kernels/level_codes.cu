#include <algorithm>
#include <cub/block/block_radix_sort.cuh>
#include <cub/block/block_scan.cuh>

#include "backend/cuda/device.h"
#include "backend/cuda/kernels/level_codes.h"
#include "base/error.h"

namespace calibatt::cuda {
namespace {

constexpr int kThreads = 256;
constexpr uint32_t kKeyMask = 0x7fffffffu;
constexpr float kOne = 0x1p30f;           // 1.0 in fixed point
constexpr float kLargest = 1.0f + 1e-3f;  // rounding may lift a mean of softmax masses a little above 1

struct Levels {
  uint32_t values[kMaxLevels];
  int count;
};

/// A block of threads per row; thread t has the elements t·kItems … of the row and then, sorted, of the ranking.
template <int kItems>
__global__ void __launch_bounds__(kThreads)
    encode_levels_kernel(const float* energy, int columns, const __grid_constant__ Levels levels, uint8_t* codes) {
  using Sum = unsigned long long;
  using Sort = cub::BlockRadixSort<uint32_t, kThreads, kItems, uint16_t>;
  using Scan = cub::BlockScan<Sum, kThreads>;
  __shared__ union {
    typename Sort::TempStorage sort;
    typename Scan::TempStorage scan;
  } scratch;
  __shared__ uint8_t row_codes[kThreads * kItems];
  energy += int64_t{blockIdx.x} * columns;
  const int row_bytes = (columns + 1) / 2, first = static_cast<int>(threadIdx.x) * kItems;
  codes += int64_t{blockIdx.x} * row_bytes;

  uint32_t keys[kItems];  // rising keys are falling energies; behind them what is no element
  uint16_t indices[kItems];
  bool valid = true;
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const float value = first + i < columns ? energy[first + i] : 0.0f;
    valid = valid && value >= 0 && value <= kLargest;  // false for NaN
    keys[i] = first + i < columns ? kKeyMask - __float2uint_rn(value * kOne) : 0xffffffffu;
    indices[i] = static_cast<uint16_t>(first + i);
  }
  if (!__syncthreads_and(valid)) {
    for (int i = static_cast<int>(threadIdx.x); i < row_bytes; i += kThreads) codes[i] = 0xff;
    return;
  }
  Sort(scratch.sort).Sort(keys, indices);  // stable: equal keys stay in the order of their indices
  __syncthreads();

  Sum sum = 0, before = 0, total = 0;
#pragma unroll
  for (int i = 0; i < kItems; ++i) sum += first + i < columns ? kKeyMask - keys[i] : 0u;
  Scan(scratch.scan).ExclusiveSum(sum, before, total);
  const bool all_zero = total == 0;
  if (all_zero) {
    total = static_cast<Sum>(columns);
    before = static_cast<Sum>(first);
  }
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    if (first + i < columns) {
      int code = 0;
      for (int level = 0; level < levels.count; ++level) code += levels.values[level] * total <= before << 16;
      row_codes[indices[i]] = static_cast<uint8_t>(code);
      before += all_zero ? 1u : kKeyMask - keys[i];
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < row_bytes; i += kThreads) {
    const uint8_t high = 2 * i + 1 < columns ? row_codes[2 * i + 1] : 0xf;
    codes[i] = static_cast<uint8_t>(row_codes[2 * i] | high << 4);
  }
}

}  // namespace

void encode_levels(const float* energy, int64_t rows, int columns, std::span<const uint32_t> levels, uint8_t* codes,
                   cudaStream_t stream) {
  CALIBATT_ASSERT(columns >= 1 && columns <= kMaxLevelColumns && levels.size() <= kMaxLevels);
  if (rows == 0) return;
  Levels parameter{};
  std::copy(levels.begin(), levels.end(), parameter.values);
  parameter.count = static_cast<int>(levels.size());
  const auto enqueue = [&](auto* kernel) {
    kernel<<<static_cast<unsigned>(rows), kThreads, 0, stream>>>(energy, columns, parameter, codes);
  };
  if (columns <= 2 * kThreads) {
    enqueue(&encode_levels_kernel<2>);
  } else if (columns <= 5 * kThreads) {  // 1,182 blocks of 64 tokens are 720p × 81 frames
    enqueue(&encode_levels_kernel<5>);
  } else {
    static_assert(16 * kThreads == kMaxLevelColumns);
    enqueue(&encode_levels_kernel<16>);
  }
  check(cudaGetLastError(), "level codes: launch");
}

}  // namespace calibatt::cuda
