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
  float inverse = 1;
  if (call.weight != nullptr) inverse = 1.0f / sqrtf(warp_sum(square_sum) / static_cast<float>(head_dim) + call.eps);
  const int64_t angle = token * call.angles + (call.angles == head_dim ? 0 : head * head_dim);
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    const int at = (lane + 32 * i) * n;
    if (at >= head_dim) continue;
    if (call.weight != nullptr) {
      float weight[n];
      load<Reuse::kCached>(call.weight + at, weight);
#pragma unroll
      for (int j = 0; j < n; ++j) values[i][j] = values[i][j] * inverse * weight[j];
    }
    if (call.cos != nullptr) {
      float cos[n], signed_sin[n];
      load<Reuse::kStream>(call.cos + angle + at, cos);
      load<Reuse::kStream>(call.signed_sin + angle + at, signed_sin);
#pragma unroll
      for (int j = 0; j < n; j += 2) {
        const float first = values[i][j], second = values[i][j + 1];
        values[i][j] = first * cos[j] + second * signed_sin[j];
        values[i][j + 1] = second * cos[j + 1] + first * signed_sin[j + 1];
      }
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
  const bool wide = call.head_dim % kWide() == 0 && call.token_stride % kWide() == 0 && aligned(call.x) &&
                    aligned(call.weight) && aligned(call.cos) && aligned(call.signed_sin);
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
