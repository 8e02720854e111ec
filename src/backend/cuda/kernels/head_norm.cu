#include <algorithm>
#include <string>
#include <type_traits>

#include "backend/cuda/device/device.h"
#include "backend/cuda/device/vector_access.cuh"
#include "backend/cuda/kernels/head_norm.h"
#include "base/error.h"

namespace calibatt::cuda {
namespace {

constexpr int kWarpSize = 32, kMaxThreads = 256;
constexpr int kMaxUnits = 8;         ///< of a lane
constexpr int kTokensPerThread = 4;  ///< for which a thread reads weights and frequencies once
constexpr int64_t kMaxHeadDim = 512;

/// Of one pair of channels at one place. Where 16 bits are kept, sine and cosine of the special-function unit are exact
/// enough (2⁻²¹ within half a turn).
template <bool kExact>
__device__ __forceinline__ void sine_and_cosine(float angle, float& sin, float& cos) {
  if constexpr (kExact) {
    sincosf(angle, &sin, &cos);
  } else {
    constexpr float kTurn = 6.28318548f, kTurnRest = -1.74845553e-7f;  // their sum is 2π
    const float turns = rintf(angle * 0.159154943f);
    const float rest = fmaf(-turns, kTurnRest, fmaf(-turns, kTurn, angle));
    sin = __sinf(rest);
    cos = __cosf(rest);
  }
}

template <int kLanes>
__device__ __forceinline__ float lanes_sum(float x) {
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(kAllLanes, x, distance);
  return x;
}

/// What a lane needs for a unit of n channels of one head, whatever the token.
template <int n>
struct UnitFactors {
  float weight[2][n];         // of the query's and the key's norm
  float frequency[3][n / 2];  // of each axis

  __device__ __forceinline__ void read(const HeadNormCall& call, int64_t head, int64_t at) {
#pragma unroll
    for (int part = 0; part < 2; ++part) load<Reuse::kCached>(call.weight[part] + at, weight[part]);
    if (call.positions == nullptr) return;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      const float* from = call.frequencies + ((axis * call.heads + head) * call.head_dim + at) / 2;
#pragma unroll
      for (int j = 0; j < n / 2; ++j) frequency[axis][j] = from[j];
    }
  }

  /// Angles are rounded as the host's code rounds: a fused product would turn far columns by another angle.
  template <bool kExact>
  __device__ __forceinline__ void rotate(const float (&position)[3], float (&values)[2][n]) const {
#pragma unroll
    for (int j = 0; j < n; j += 2) {
      const float by_frame = __fmul_rn(position[0], frequency[0][j / 2]),
                  by_row = __fmul_rn(position[1], frequency[1][j / 2]),
                  by_column = __fmul_rn(position[2], frequency[2][j / 2]);
      float sin, cos;
      sine_and_cosine<kExact>(__fadd_rn(__fadd_rn(by_frame, by_row), by_column), sin, cos);
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const float first = values[part][j], second = values[part][j + 1];
        values[part][j] = first * cos - second * sin;
        values[part][j + 1] = second * cos + first * sin;
      }
    }
  }
};

/// kLanes lanes have a head, of the query and of the key, which are turned alike. It is cut into units of n channels;
/// a lane holds the units lane, lane + kLanes, … No thread leaves before its warp's sums are made.
template <class T, int n, int kLanes, int kUnits>
__global__ void __launch_bounds__(kMaxThreads) head_norm_kernel(const __grid_constant__ HeadNormCall call) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes, heads_per_block = static_cast<int>(blockDim.x) / kLanes;
  const int64_t head = static_cast<int>(blockIdx.y) * heads_per_block + static_cast<int>(threadIdx.x) / kLanes;
  const auto is_mine = [&](int i) { return head < call.heads && (lane + kLanes * i) * n < call.head_dim; };
  UnitFactors<n> factors[kUnits];
#pragma unroll
  for (int i = 0; i < kUnits; ++i) {
    if (is_mine(i)) factors[i].read(call, head, (lane + kLanes * i) * n);
  }

  const int64_t begin = int64_t{blockIdx.x} * kTokensPerThread;
  const int64_t end = min(begin + kTokensPerThread, call.tokens);
  for (int64_t token = begin; token < end; ++token) {
    const int64_t at = token * call.token_stride + head * call.head_dim + lane * n;
    T* const x[2] = {static_cast<T*>(call.x[0]) + at, static_cast<T*>(call.x[1]) + at};
    float values[kUnits][2][n], inverse[2] = {}, position[3];
#pragma unroll
    for (int i = 0; i < 2 * kUnits; ++i) {
      if (is_mine(i / 2)) load<Reuse::kStream>(x[i % 2] + kLanes * (i / 2) * n, values[i / 2][i % 2]);
    }
    if (call.positions != nullptr) load<Reuse::kCached>(call.positions + 3 * token, position);
#pragma unroll
    for (int i = 0; i < 2 * kUnits; ++i) {
#pragma unroll
      for (int j = 0; j < n; ++j) {
        if (is_mine(i / 2)) inverse[i % 2] += values[i / 2][i % 2][j] * values[i / 2][i % 2][j];
      }
    }
#pragma unroll
    for (float& part : inverse) {
      part = 1.0f / sqrtf(lanes_sum<kLanes>(part) / static_cast<float>(call.head_dim) + call.eps);
    }
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      if (!is_mine(i)) continue;
#pragma unroll
      for (int j = 0; j < 2 * n; ++j) values[i][j % 2][j / 2] *= inverse[j % 2] * factors[i].weight[j % 2][j / 2];
      if (call.positions != nullptr) factors[i].template rotate<sizeof(T) == 4>(position, values[i]);
      store(x[0] + kLanes * i * n, values[i][0]);
      store(x[1] + kLanes * i * n, values[i][1]);
    }
  }
}

bool aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

template <class T, int n, int kLanes, int kUnits>
void enqueue(const HeadNormCall& call, cudaStream_t stream) {
  constexpr int64_t kMostHeads = kMaxThreads / kLanes;
  const int64_t parts = (call.heads + kMostHeads - 1) / kMostHeads, heads = (call.heads + parts - 1) / parts;
  const auto threads = static_cast<unsigned>((heads * kLanes + kWarpSize - 1) / kWarpSize * kWarpSize);
  const int64_t heads_per_block = threads / kLanes;
  const dim3 grid(static_cast<unsigned>((call.tokens + kTokensPerThread - 1) / kTokensPerThread),
                  static_cast<unsigned>((call.heads + heads_per_block - 1) / heads_per_block));
  head_norm_kernel<T, n, kLanes, kUnits><<<grid, threads, 0, stream>>>(call);
}

template <class T>
void launch(const HeadNormCall& call, cudaStream_t stream) {
  constexpr int kWide = 16 / sizeof(T);
  const bool wide = call.head_dim % kWide == 0 && call.token_stride % kWide == 0 && aligned(call.x[0]) &&
                    aligned(call.x[1]) && aligned(call.weight[0]) && aligned(call.weight[1]);
  if (wide && call.head_dim <= 16 * kWide) {
    enqueue<T, kWide, 16, 1>(call, stream);
  } else if (wide && call.head_dim <= 32 * kWide) {
    enqueue<T, kWide, 32, 1>(call, stream);
  } else {
    enqueue<T, 2, 32, kMaxUnits>(call, stream);
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
