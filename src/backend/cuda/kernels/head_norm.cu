#include <string>
#include <type_traits>

#include "backend/cuda/device/device.h"
#include "backend/cuda/device/vector_access.cuh"
#include "backend/cuda/kernels/head_norm.h"
#include "base/error.h"

namespace calibatt::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kMaxUnits = 8;  ///< of a lane
constexpr int64_t kMaxHeadDim = 512;

/// Rotates neighbouring pairs of channels by RopeFactors' angles; `frequencies` are the first pair's. Rounded as the
/// host's code rounds: a fused product would turn far columns by another angle.
template <int n>
__device__ __forceinline__ void rotate(const float* position, const float* frequencies, int64_t pairs,
                                       float (&values)[n]) {
#pragma unroll
  for (int j = 0; j < n; j += 2) {
    const float* const frequency = frequencies + j / 2;
    const float by_frame = __fmul_rn(position[0], frequency[0]), by_row = __fmul_rn(position[1], frequency[pairs]),
                by_column = __fmul_rn(position[2], frequency[2 * pairs]);
    float sin, cos;
    sincosf(__fadd_rn(__fadd_rn(by_frame, by_row), by_column), &sin, &cos);
    const float first = values[j], second = values[j + 1];
    values[j] = first * cos - second * sin;
    values[j + 1] = second * cos + first * sin;
  }
}

/// A head is cut into units of n channels; a lane holds the units lane, lane + 32, …
template <class T, int n, int kUnits>
__global__ void __launch_bounds__(kThreads) head_norm_kernel(const __grid_constant__ HeadNormCall call) {
  const int64_t index = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;  // of the head, through all tokens
  if (index >= call.tokens * call.heads) return;                          // a whole warp
  const int lane = static_cast<int>(threadIdx.x) % 32, head_dim = static_cast<int>(call.head_dim);
  const int64_t token = index / call.heads, head = index % call.heads;
  T* const x = static_cast<T*>(call.x) + token * call.token_stride + head * head_dim;

  float values[kUnits][n], square_sum = 0;
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    const int at = (lane + 32 * i) * n;
    if (at < head_dim) {
      load<Reuse::kStream>(x + at, values[i]);
#pragma unroll
      for (int j = 0; j < n; ++j) square_sum += values[i][j] * values[i][j];
    }
  }
  const float inverse = 1.0f / sqrtf(warp_sum(square_sum) / static_cast<float>(head_dim) + call.eps);
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    const int at = (lane + 32 * i) * n;
    if (at >= head_dim) continue;
    float weight[n];
    load<Reuse::kCached>(call.weight + at, weight);
#pragma unroll
    for (int j = 0; j < n; ++j) values[i][j] = values[i][j] * inverse * weight[j];
    if (call.positions != nullptr) {
      rotate(call.positions + 3 * token, call.frequencies + (head * head_dim + at) / 2, call.heads * head_dim / 2,
             values[i]);
    }
    store(x + at, values[i]);
  }
}

bool aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

template <class T>
void launch(const HeadNormCall& call, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>((call.tokens * call.heads + kWarps - 1) / kWarps);
  const auto enqueue = [&](auto n, auto units) {
    head_norm_kernel<T, n(), units()><<<blocks, kThreads, 0, stream>>>(call);
  };
  constexpr std::integral_constant<int, 4> kWide;
  constexpr std::integral_constant<int, 2> kPair;
  constexpr std::integral_constant<int, 1> kOne;
  constexpr std::integral_constant<int, kMaxUnits> kMost;
  const bool wide =
      call.head_dim % kWide() == 0 && call.token_stride % kWide() == 0 && aligned(call.x) && aligned(call.weight);
  if (wide && call.head_dim <= 32 * kWide()) {
    enqueue(kWide, kOne);
  } else if (wide) {
    enqueue(kWide, kMost);
  } else {
    enqueue(kPair, kMost);
  }
}

}  // namespace

void norm_heads(const HeadNormCall& call, cudaStream_t stream) {
  if (call.tokens * call.heads == 0) return;
  if (call.head_dim > kMaxHeadDim) {
    throw Error(ErrorKind::kUsage, "a norm of heads of " + std::to_string(call.head_dim) +
                                       " channels is wider than the CUDA kernels take; use the CPU backend");
  }
  if (call.dtype == DType::kF32) {
    launch<float>(call, stream);
  } else if (call.dtype == DType::kBF16) {
    launch<__nv_bfloat16>(call, stream);
  } else {
    CALIBATT_ASSERT(call.dtype == DType::kF16);
    launch<__half>(call, stream);
  }
  check(cudaGetLastError(), "norm of heads: launch");
}

}  // namespace calibatt::cuda
