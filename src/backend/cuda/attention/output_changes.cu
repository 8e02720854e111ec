#include <string>

#include "backend/cuda/attention/output_changes.h"
#include "backend/cuda/device/device.h"
#include "backend/cuda/device/vector_access.cuh"
#include "base/error.h"

// Both are small products in float32 (7 and 10 GFLOP a layer of the 14B model, beside 29,000 of its attention), so
// plain multiply-adds from shared memory do.

namespace calibatt::cuda {
namespace {

constexpr int kTile = 32;      ///< of the metric: kTile × kTile entries a block
constexpr int kThreads = 128;  ///< of the metric: each has 8 entries of one column
constexpr int kEntries = kTile * kTile / kThreads;
constexpr int kRowsAtATime = 16;  ///< of the changes: rows that share one reading of the metric
constexpr int kMaxHeadDim = 256;

/// Tile blockIdx.x of head blockIdx.y: M[i, j] = Σ_o gate_o² W[o, i] W[o, j].
template <class T>
__global__ void __launch_bounds__(kThreads)
    metric_kernel(const T* __restrict__ weight, const float* __restrict__ gate, int out, int num_heads, int head_dim,
                  float* __restrict__ metric) {
  __shared__ float left[kTile][kTile], right[kTile][kTile];  // [row of the weight][channel]; left: times gate²
  const int tiles = (head_dim + kTile - 1) / kTile, head = blockIdx.y;
  const int first_i = blockIdx.x / tiles * kTile, first_j = blockIdx.x % tiles * kTile;
  const int column = static_cast<int>(threadIdx.x) % kTile, part = static_cast<int>(threadIdx.x) / kTile;
  const int64_t width = int64_t{num_heads} * head_dim;
  float sums[kEntries] = {};
  for (int first = 0; first < out; first += kTile) {
    for (int r = part; r < kTile; r += kThreads / kTile) {
      const int row = first + r;
      const T* from = weight + row * width + int64_t{head} * head_dim;
      const float g = row < out ? gate[row] : 0.0f;
      left[r][column] = row < out && first_i + column < head_dim ? g * g * to_float(from[first_i + column]) : 0.0f;
      right[r][column] = row < out && first_j + column < head_dim ? to_float(from[first_j + column]) : 0.0f;
    }
    __syncthreads();
#pragma unroll 8
    for (int r = 0; r < kTile; ++r) {
      const float w = right[r][column];
#pragma unroll
      for (int e = 0; e < kEntries; ++e) sums[e] += left[r][part * kEntries + e] * w;
    }
    __syncthreads();
  }
  if (first_j + column >= head_dim) return;
#pragma unroll
  for (int e = 0; e < kEntries; ++e) {
    const int i = first_i + part * kEntries + e;
    if (i < head_dim) metric[(int64_t{head} * head_dim + i) * head_dim + first_j + column] = sums[e];
  }
}

/// Group blockIdx.x of head blockIdx.y; a thread per channel. Σ over rows of d·M·dᵀ.
__global__ void changes_kernel(const float* __restrict__ outputs, const float* __restrict__ metric, int groups,
                               int64_t rows, int num_heads, int head_dim, float* __restrict__ changes) {
  __shared__ float d[kRowsAtATime][kMaxHeadDim];
  __shared__ float warp_sums[kMaxHeadDim / 32];
  const int channel = threadIdx.x, group = blockIdx.x, head = blockIdx.y;
  const int64_t width = int64_t{num_heads} * head_dim, offset = int64_t{head} * head_dim + channel;
  const float* own = outputs + group * rows * width;
  const float* reference = outputs + groups * rows * width;
  const float* m = metric == nullptr ? nullptr : metric + int64_t{head} * head_dim * head_dim;
  float sum = 0;
  for (int64_t first = 0; first < rows; first += kRowsAtATime) {
    float mine[kRowsAtATime], weighted[kRowsAtATime] = {};
#pragma unroll
    for (int r = 0; r < kRowsAtATime; ++r) {
      const bool exists = channel < head_dim && first + r < rows;
      const int64_t at = (first + r) * width + offset;
      mine[r] = exists ? own[at] - reference[at] : 0.0f;
      d[r][channel] = mine[r];
    }
    __syncthreads();
    if (m == nullptr) {
#pragma unroll
      for (int r = 0; r < kRowsAtATime; ++r) weighted[r] = mine[r];
    } else if (channel < head_dim) {
      for (int k = 0; k < head_dim; ++k) {
        const float factor = m[int64_t{k} * head_dim + channel];
#pragma unroll
        for (int r = 0; r < kRowsAtATime; ++r) weighted[r] += d[r][k] * factor;
      }
    }
#pragma unroll
    for (int r = 0; r < kRowsAtATime; ++r) sum += mine[r] * weighted[r];
    __syncthreads();
  }
  sum = block_sum(sum, warp_sums);
  if (channel == 0) changes[int64_t{head} * groups + group] = fmaxf(sum, 0.0f);
}

template <class T>
void launch_metric(const void* weight, const float* gate, int out, int num_heads, int head_dim, float* metric,
                   cudaStream_t stream) {
  const int tiles = (head_dim + kTile - 1) / kTile;
  const dim3 grid(static_cast<unsigned>(tiles * tiles), static_cast<unsigned>(num_heads));
  metric_kernel<<<grid, kThreads, 0, stream>>>(static_cast<const T*>(weight), gate, out, num_heads, head_dim, metric);
}

}  // namespace

void output_metric(const void* weight, DType dtype, const float* gate, int out, int num_heads, int head_dim,
                   float* metric, cudaStream_t stream) {
  switch (dtype) {
    case DType::kF32:
      launch_metric<float>(weight, gate, out, num_heads, head_dim, metric, stream);
      break;
    case DType::kBF16:
      launch_metric<__nv_bfloat16>(weight, gate, out, num_heads, head_dim, metric, stream);
      break;
    default:
      CALIBATT_ASSERT(dtype == DType::kF16);
      launch_metric<__half>(weight, gate, out, num_heads, head_dim, metric, stream);
  }
  check(cudaGetLastError(), "weighing output channels: launch");
}

void squared_changes(const float* outputs, const float* metric, int groups, int64_t rows, int num_heads, int head_dim,
                     float* changes, cudaStream_t stream) {
  if (head_dim > kMaxHeadDim) {
    throw Error(ErrorKind::kUsage, "output errors of heads of " + std::to_string(head_dim) +
                                       " channels; on CUDA they have at most " + std::to_string(kMaxHeadDim));
  }
  const dim3 grid(static_cast<unsigned>(groups), static_cast<unsigned>(num_heads));
  const int threads = (head_dim + 31) / 32 * 32;
  changes_kernel<<<grid, static_cast<unsigned>(threads), 0, stream>>>(outputs, metric, groups, rows, num_heads,
                                                                      head_dim, changes);
  check(cudaGetLastError(), "measuring output changes: launch");
}

}  // namespace calibatt::cuda
