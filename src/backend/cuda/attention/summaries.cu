#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>

#include "backend/cuda/attention/summaries.h"
#include "backend/cuda/device/device.h"
#include "base/error.h"

namespace calibatt::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kUnit = 8;  ///< elements of 16 bytes

struct Summaries {
  DeviceHeads rows, out;
  int num_heads, head_dim, num_tokens, block_k;
};

__device__ __forceinline__ float2 to_floats(__nv_bfloat162 pair) {
  return __bfloat1622float2(pair);
}
__device__ __forceinline__ float2 to_floats(__half2 pair) {
  return __half22float2(pair);
}
__device__ __forceinline__ float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
__device__ __forceinline__ float to_float(__half x) {
  return __half2float(x);
}
__device__ __forceinline__ float to_float(float x) {
  return x;
}
__device__ __forceinline__ void store(float* to, float x) {
  *to = x;
}
__device__ __forceinline__ void store(__nv_bfloat16* to, float x) {
  *to = __float2bfloat16_rn(x);
}
__device__ __forceinline__ void store(__half* to, float x) {
  *to = __float2half_rn(x);
}

/// sum += the eight elements of a unit.
template <class T>
__device__ __forceinline__ void add(const uint4& unit, float (&sum)[kUnit]) {
  using Pair = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;
  Pair pairs[kUnit / 2];
  static_assert(sizeof(pairs) == sizeof(unit));
  memcpy(&pairs, &unit, sizeof(unit));
#pragma unroll
  for (int i = 0; i < kUnit / 2; ++i) {
    const float2 pair = to_floats(pairs[i]);
    sum[2 * i] += pair.x;
    sum[2 * i + 1] += pair.y;
  }
}

/// What a block of threads works on: one head's rows of one key block, blockIdx.x = key block · num_heads + head (heads
/// first: in [token, head, dim] order, neighbouring blocks then read neighbouring memory), batch entry blockIdx.y.
template <class T>
struct Work {
  const T* rows;
  T* out;
  int num_rows;

  __device__ explicit Work(const Summaries& s) {
    const auto head = static_cast<int64_t>(blockIdx.x) % s.num_heads,
               block = static_cast<int64_t>(blockIdx.x) / s.num_heads;
    const int64_t batch = blockIdx.y, first = block * s.block_k;
    num_rows = static_cast<int>(min(static_cast<int64_t>(s.num_tokens) - first, static_cast<int64_t>(s.block_k)));
    rows = static_cast<const T*>(s.rows.data) + batch * s.rows.batch_stride + head * s.rows.head_stride +
           first * s.rows.token_stride;
    out = static_cast<T*>(s.out.data) + batch * s.out.batch_stride + head * s.out.head_stride +
          block * s.out.token_stride;
  }
};

/// Memory-bound, so wide: a thread adds up one 16-byte unit of every (threads / units)-th row, then the threads of a
/// unit meet in shared memory. 32 registers: 2,048 threads of a multiprocessor have 32 KB under way, more than latency
/// needs. head_dim ≤ kUnit · kThreads.
template <class T>
__global__ void __launch_bounds__(kThreads) summaries_kernel(const __grid_constant__ Summaries s) {
  __shared__ float partial_sums[kThreads * kUnit];  // [group][head_dim]
  const Work<T> work(s);
  const int units = s.head_dim / kUnit, groups = kThreads / units;
  const int unit = static_cast<int>(threadIdx.x) % units, group = static_cast<int>(threadIdx.x) / units;
  if (group < groups) {
    float sum[kUnit] = {};
#pragma unroll 4
    for (int row = group; row < work.num_rows; row += groups) {
      add<T>(__ldg(reinterpret_cast<const uint4*>(work.rows + row * s.rows.token_stride) + unit), sum);
    }
#pragma unroll
    for (int i = 0; i < kUnit; ++i) partial_sums[group * s.head_dim + unit * kUnit + i] = sum[i];
  }
  __syncthreads();
  for (int d = static_cast<int>(threadIdx.x); d < s.head_dim; d += kThreads) {
    float sum = 0;
    for (int g = 0; g < groups; ++g) sum += partial_sums[g * s.head_dim + d];
    store(work.out + d, sum / static_cast<float>(work.num_rows));
  }
}

/// For rows that cannot be read 16 bytes at a time, and for F32 (where speed does not matter): a thread per dim.
template <class T>
__global__ void __launch_bounds__(kThreads) unaligned_summaries_kernel(const __grid_constant__ Summaries s) {
  const Work<T> work(s);
  for (int d = static_cast<int>(threadIdx.x); d < s.head_dim; d += kThreads) {
    float sum = 0;
    for (int row = 0; row < work.num_rows; ++row) sum += to_float(work.rows[row * s.rows.token_stride + d]);
    store(work.out + d, sum / static_cast<float>(work.num_rows));
  }
}

bool rows_are_aligned(const DeviceHeads& array) {
  return reinterpret_cast<uintptr_t>(array.data) % 16 == 0 && array.batch_stride % kUnit == 0 &&
         array.token_stride % kUnit == 0 && array.head_stride % kUnit == 0;
}

}  // namespace

void make_summaries(const DeviceHeads& keys_or_values, DeviceHeads out, DType dtype, int batch, int num_heads,
                    int head_dim, int num_tokens, int block_k, cudaStream_t stream) {
  const int64_t num_blocks = (static_cast<int64_t>(num_tokens) + block_k - 1) / block_k;
  if (num_blocks * num_heads > std::numeric_limits<int32_t>::max() || batch > 65535) {
    throw Error(ErrorKind::kUsage, "summaries of " + std::to_string(num_blocks) + " key blocks, " +
                                       std::to_string(num_heads) + " heads and " + std::to_string(batch) +
                                       " batch entries: more than a grid holds");
  }
  const Summaries summaries{keys_or_values, out, num_heads, head_dim, num_tokens, block_k};
  const bool wide = rows_are_aligned(keys_or_values) && head_dim % kUnit == 0 && head_dim <= kUnit * kThreads;
  const auto enqueue = [&](auto* kernel) {
    const dim3 grid(static_cast<unsigned>(num_blocks * num_heads), static_cast<unsigned>(batch));
    kernel<<<grid, kThreads, 0, stream>>>(summaries);
  };
  if (dtype == DType::kF32) {
    enqueue(&unaligned_summaries_kernel<float>);
  } else if (dtype == DType::kF16) {
    enqueue(wide ? &summaries_kernel<__half> : &unaligned_summaries_kernel<__half>);
  } else {
    enqueue(wide ? &summaries_kernel<__nv_bfloat16> : &unaligned_summaries_kernel<__nv_bfloat16>);
  }
  check(cudaGetLastError(), "summaries: launch");
}

}  // namespace calibatt::cuda
