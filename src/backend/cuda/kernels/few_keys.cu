#include <type_traits>

#include "backend/cuda/device/device.h"
#include "backend/cuda/device/ptx/mma.cuh"
#include "backend/cuda/device/vector_access.cuh"
#include "backend/cuda/kernels/eight_bit.cuh"
#include "backend/cuda/kernels/few_keys.h"
#include "base/error.h"

// Memory-bound: rows are read once, results written once, in whole 32-byte sectors, straight from and to registers.
// What makes that possible is that a product's terms may be added in any order and its columns be any keys:
//   terms: lane t of the four that share a row takes elements 8t … 8t + 7 of every 32, 16 bytes, for two k16 steps;
//          keys are read from shared memory in the same way;
//   keys:  of every 16 keys (two groups of 8 columns) lane t gets the products with keys 4t … 4t + 3.
namespace calibatt::cuda {
namespace {

constexpr int kWarps = 8, kWarpRows = 16, kSlotStep = 16;
constexpr int kPaddingElements =
    32;  // 64 bytes: two neighbouring keys' elements, 64 bytes each, are in different banks

/// Logits of a row, which four lanes share, to softmax weights. product(n, c): this lane's c-th of group n.
template <int kSlots, class Product>
__device__ __forceinline__ void softmax_of_row(const FewKeysCall& call, int num_keys, int t, const Product& product) {
  float maximum = -INFINITY;
#pragma unroll
  for (int n = 0; n < kSlots / 8; ++n) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int key = n / 2 * 16 + 4 * t + n % 2 * 2 + c;
      const float bias = key == num_keys - 1 ? call.last_key_bias_log2 : 0.0f;
      product(n, c) = key < num_keys ? fmaf(product(n, c), call.scale_log2, bias) : -INFINITY;
      maximum = fmaxf(maximum, product(n, c));
    }
  }
  maximum = fmaxf(maximum, __shfl_xor_sync(kAllLanes, maximum, 1));
  maximum = fmaxf(maximum, __shfl_xor_sync(kAllLanes, maximum, 2));
  float sum = 0;
#pragma unroll
  for (int n = 0; n < kSlots / 8; ++n) {
#pragma unroll
    for (int c = 0; c < 2; ++c) sum += product(n, c) = ptx::exp2_unit(product(n, c) - maximum);
  }
  sum += __shfl_xor_sync(kAllLanes, sum, 1);
  sum += __shfl_xor_sync(kAllLanes, sum, 2);
  const float factor = 1 / sum;
#pragma unroll
  for (int n = 0; n < kSlots / 8; ++n) {
#pragma unroll
    for (int c = 0; c < 2; ++c) product(n, c) *= factor;
  }
}

/// In 8 bits times the inverse of all rows' scale.
template <class Out>
__device__ __forceinline__ void store_four(Out* to, const float (&four)[4]) {
  if constexpr (std::is_same_v<Out, e4m3>) {
    store_scaled(to, four, kE4M3Max);
  } else {
    store(to, four);
  }
}

/// Grid: heads × tiles of rows, heads first: what runs at a time reads neighbouring memory.
template <class T, class Out, int kHeadDim, int kSlots, bool kSoftmax>
__global__ void __launch_bounds__(32 * kWarps) few_keys_kernel(const __grid_constant__ FewKeysCall call) {
  constexpr int kGroups = kHeadDim / 32, kUnits = kHeadDim / 8, kKeyStride = kHeadDim + kPaddingElements;
  __shared__ __align__(16) T shared_keys[kSlots * kKeyStride];
  const int64_t head = blockIdx.x, num_rows = call.rows.num_tokens;
  const int num_keys = static_cast<int>(call.keys.num_tokens);
  const T* const keys = static_cast<const T*>(call.keys.data) + head * call.keys.head_stride;
  for (int i = static_cast<int>(threadIdx.x); i < kSlots * kUnits; i += 32 * kWarps) {
    const int key = i / kUnits, element = i % kUnits * 8;
    uint4 unit = {};
    if (key < num_keys) unit = *reinterpret_cast<const uint4*>(keys + key * call.keys.token_stride + element);
    *reinterpret_cast<uint4*>(shared_keys + key * kKeyStride + element) = unit;
  }

  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int64_t first_row = (int64_t{blockIdx.y} * kWarps + threadIdx.x / 32) * kWarpRows;
  const int64_t row[2] = {first_row + g, first_row + g + 8};
  uint4 a[2][kGroups];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    // Instead of a missing row the last: it is not written.
    const T* const from = static_cast<const T*>(call.rows.data) + head * call.rows.head_stride +
                          min(row[half], num_rows - 1) * call.rows.token_stride + 8 * t;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) a[half][group] = load_word<Reuse::kStream, uint4>(from + 32 * group);
  }
  __syncthreads();

  float products[kSlots / 8][4] = {};
  const T* const my_key = shared_keys + (g / 2 * 4 + g % 2) * kKeyStride + 8 * t;
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    const uint4 low = a[0][group], high = a[1][group];
    const uint32_t first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
    for (int n = 0; n < kSlots / 8; ++n) {
      const uint4 b = *reinterpret_cast<const uint4*>(my_key + (n / 2 * 16 + n % 2 * 2) * kKeyStride + 32 * group);
      ptx::mma_m16n8k16<T>(products[n], first, b.x, b.y);
      ptx::mma_m16n8k16<T>(products[n], second, b.z, b.w);
    }
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const auto product = [&](int n, int c) -> float& { return products[n][2 * half + c]; };
    if constexpr (kSoftmax) softmax_of_row<kSlots>(call, num_keys, t, product);
    if (row[half] >= num_rows) continue;
    if constexpr (std::is_same_v<Out, e4m3>) {
      if (head == 0 && t == 0) call.row_scales[row[half]] = 1 / kE4M3Max;
    }
    Out* const to = static_cast<Out*>(call.out) + (row[half] * call.num_heads + head) * kSlots + 4 * t;
#pragma unroll
    for (int n = 0; n < kSlots / 8; n += 2) {
      const float four[4] = {product(n, 0), product(n, 1), product(n + 1, 0), product(n + 1, 1)};
      store_four(to + 8 * n, four);
    }
  }
}

template <class T, int kHeadDim, int kSlots>
void launch(const FewKeysCall& call, cudaStream_t stream) {
  constexpr int kRows = kWarps * kWarpRows;
  const int64_t tiles = (call.rows.num_tokens + kRows - 1) / kRows;
  CALIBATT_ASSERT(tiles <= 65535);
  const dim3 grid(static_cast<unsigned>(call.num_heads), static_cast<unsigned>(tiles));
  if (call.row_scales != nullptr) {
    few_keys_kernel<T, e4m3, kHeadDim, kSlots, true><<<grid, 32 * kWarps, 0, stream>>>(call);
  } else if (call.softmax) {
    few_keys_kernel<T, T, kHeadDim, kSlots, true><<<grid, 32 * kWarps, 0, stream>>>(call);
  } else {
    few_keys_kernel<T, T, kHeadDim, kSlots, false><<<grid, 32 * kWarps, 0, stream>>>(call);
  }
}

/// kSlots: the least that is tried.
template <class T, int kHeadDim, int kSlots = kSlotStep>
void choose(const FewKeysCall& call, cudaStream_t stream) {
  if (call.keys.num_tokens <= kSlots) return launch<T, kHeadDim, kSlots>(call, stream);
  if constexpr (kSlots + kSlotStep < kHeadDim) choose<T, kHeadDim, kSlots + kSlotStep>(call, stream);
}

template <class T>
void choose_head_dim(const FewKeysCall& call, cudaStream_t stream) {
  call.head_dim == 64 ? choose<T, 64>(call, stream) : choose<T, 128>(call, stream);
}

bool is_aligned(const ConstHeadsView& view) {
  constexpr int kElements = 8;
  return reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && view.token_stride % kElements == 0 &&
         view.head_stride % kElements == 0;
}

}  // namespace

int few_keys_slots(DType dtype, int head_dim, int64_t num_keys) {
  if ((dtype != DType::kBF16 && dtype != DType::kF16) || (head_dim != 64 && head_dim != 128)) return 0;
  const int64_t slots = (num_keys + kSlotStep - 1) / kSlotStep * kSlotStep;
  return slots < head_dim ? static_cast<int>(slots) : 0;
}

void few_keys(const FewKeysCall& call, cudaStream_t stream) {
  CALIBATT_ASSERT(call.rows.dtype == call.keys.dtype && is_aligned(call.rows) && is_aligned(call.keys));
  CALIBATT_ASSERT(few_keys_slots(call.rows.dtype, call.head_dim, call.keys.num_tokens) > 0);
  CALIBATT_ASSERT(call.row_scales == nullptr || call.softmax);
  if (call.rows.num_tokens == 0) return;
  if (call.rows.dtype == DType::kF16) {
    choose_head_dim<__half>(call, stream);
  } else {
    choose_head_dim<__nv_bfloat16>(call, stream);
  }
  check(cudaGetLastError(), "attention to a few keys: launch");
}

}  // namespace calibatt::cuda
