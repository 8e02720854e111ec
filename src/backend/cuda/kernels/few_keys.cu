#include <algorithm>
#include <type_traits>

#include "backend/cuda/device/ptx/cp_async.cuh"
#include "backend/cuda/device/ptx/mma.cuh"
#include "backend/cuda/device/ptx/shared_address.cuh"
#include "backend/cuda/device/vector_access.cuh"
#include "backend/cuda/kernels/eight_bit.cuh"
#include "backend/cuda/kernels/few_keys.h"
#include "backend/cuda/kernels/resident_blocks.h"
#include "base/error.h"

// Memory-bound: rows are read once, results written once, in whole 32-byte sectors, from and to registers. Blocks stay:
// one has the keys of a head in shared memory and takes tiles of rows, of which the next is on its way to shared memory
// while one is worked on. What makes the rest possible is that a product's terms may be added in any order and its
// columns be any keys:
//   terms: lane t of the four that share a row takes elements 8t … 8t + 7 of every 32, 16 bytes, for two k16 steps;
//          keys are read from shared memory in the same way;
//   keys:  of all kSlots keys lane t gets the products with a quarter, from the (kSlots/4 · t)th on.
namespace calibatt::cuda {
namespace {

constexpr int kWarps = 8, kWarpRows = 16, kTileRows = kWarps * kWarpRows, kStages = 2;
constexpr int kPaddingElements =
    32;  // 64 bytes: two neighbouring keys' elements, 64 bytes each, are in different banks

template <int kHeadDim, int kSlots>
struct Memory {
  static constexpr int kKeyStride = kHeadDim + kPaddingElements;
  static constexpr int kKeyBytes = kSlots * kKeyStride * 2, kRowBytes = kTileRows * kHeadDim * 2;
  static constexpr int kBytes = kKeyBytes + kStages * kRowBytes;
};

/// Logits of a row, which four lanes share, to softmax weights. bias: of this lane's keys, −∞ behind the last.
template <int kKeys>
__device__ __forceinline__ void softmax_of_row(float scale, const float (&bias)[kKeys], float (&weights)[kKeys]) {
  float maximum = -INFINITY;
#pragma unroll
  for (int i = 0; i < kKeys; ++i) {
    weights[i] = fmaf(weights[i], scale, bias[i]);
    maximum = fmaxf(maximum, weights[i]);
  }
  maximum = fmaxf(maximum, __shfl_xor_sync(kAllLanes, maximum, 1));
  maximum = fmaxf(maximum, __shfl_xor_sync(kAllLanes, maximum, 2));
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kKeys; ++i) sum += weights[i] = ptx::exp2_unit(weights[i] - maximum);
  sum += __shfl_xor_sync(kAllLanes, sum, 1);
  sum += __shfl_xor_sync(kAllLanes, sum, 2);
  const float factor = 1 / sum;
#pragma unroll
  for (int i = 0; i < kKeys; ++i) weights[i] *= factor;
}

/// In 8 bits times the inverse of all rows' scale.
template <class Out, int kKeys>
__device__ __forceinline__ void store_keys(Out* to, const float (&values)[kKeys]) {
  constexpr bool kEightBits = std::is_same_v<Out, e4m3>;
  constexpr int kWidth = kEightBits && kKeys % 16 == 0 ? 16 : kKeys % 8 == 0 ? 8 : 4;
#pragma unroll
  for (int i = 0; i < kKeys; i += kWidth) {
    float some[kWidth];
#pragma unroll
    for (int j = 0; j < kWidth; ++j) some[j] = values[i + j];
    if constexpr (kEightBits) {
      store_scaled(to + i, some, kE4M3Max);
    } else {
      store(to + i, some);
    }
  }
}

/// A thread's part of tiles of rows of one head, which it copies to shared memory itself: no barrier is needed. Two
/// rows, 8 apart, of each 16; [kStages][2][kHeadDim / 32][threads] units of 16 bytes.
template <class T, int kHeadDim>
class TileStream {
 public:
  static constexpr int kGroups = kHeadDim / 32;

  __device__ TileStream(const FewKeysCall& call, int64_t head, uint4* shared)
      : rows_(static_cast<const T*>(call.rows.data) + head * call.rows.head_stride + threadIdx.x % 4 * 8),
        stride_(call.rows.token_stride),
        num_rows_(call.rows.num_tokens),
        mine_(shared + threadIdx.x) {}

  __device__ __forceinline__ int num_tiles() const { return static_cast<int>((num_rows_ + kTileRows - 1) / kTileRows); }
  __device__ __forceinline__ int64_t row_of(int tile, int half) const {
    return int64_t{tile} * kTileRows + threadIdx.x / 32 * kWarpRows + threadIdx.x % 32 / 4 + 8 * half;
  }
  /// Closes a group of copies, of nothing behind the last tile.
  __device__ __forceinline__ void fetch(int stage, int tile) {
    if (tile < num_tiles()) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const T* const from = rows_ + min(row_of(tile, half), num_rows_ - 1) * stride_;  // a missing row is not written
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
          ptx::cp_async_16(ptx::shared_address(mine_ + at(stage, half, group)), from + 32 * group);
        }
      }
    }
    ptx::cp_async_commit();
  }
  __device__ __forceinline__ uint4 unit(int stage, int half, int group) const {
    return mine_[at(stage, half, group)];
  }

 private:
  static __device__ __forceinline__ int at(int stage, int half, int group) {
    return ((stage * 2 + half) * kGroups + group) * 32 * kWarps;
  }

  const T* rows_;
  int64_t stride_, num_rows_;
  uint4* mine_;
};

/// To shared memory, zeros behind the last.
template <class T, int kHeadDim, int kSlots>
__device__ __forceinline__ void load_keys(const FewKeysCall& call, int64_t head, T* shared_keys) {
  constexpr int kUnits = kHeadDim / 8;
  const T* const keys = static_cast<const T*>(call.keys.data) + head * call.keys.head_stride;
  for (int i = static_cast<int>(threadIdx.x); i < kSlots * kUnits; i += 32 * kWarps) {
    const int key = i / kUnits, element = i % kUnits * 8;
    uint4 unit = {};
    if (key < call.keys.num_tokens) {
      unit = *reinterpret_cast<const uint4*>(keys + key * call.keys.token_stride + element);
    }
    *reinterpret_cast<uint4*>(shared_keys + key * Memory<kHeadDim, kSlots>::kKeyStride + element) = unit;
  }
}

/// Grid: heads × blocks for each, heads first: what runs at a time reads neighbouring memory.
template <class T, class Out, int kHeadDim, int kSlots, bool kSoftmax>
__global__ void __launch_bounds__(32 * kWarps, kSlots <= 64 ? 2 : 1)
    few_keys_kernel(const __grid_constant__ FewKeysCall call) {
  constexpr int kKeyStride = Memory<kHeadDim, kSlots>::kKeyStride, kKeys = kSlots / 4;
  extern __shared__ uint4 few_keys_memory[];
  T* const shared_keys = reinterpret_cast<T*>(few_keys_memory);
  const int64_t head = blockIdx.x;
  const int g = static_cast<int>(threadIdx.x) % 32 / 4, t = static_cast<int>(threadIdx.x) % 4;
  TileStream<T, kHeadDim> tiles(call, head, few_keys_memory + Memory<kHeadDim, kSlots>::kKeyBytes / 16);
  tiles.fetch(0, static_cast<int>(blockIdx.y));
  load_keys<T, kHeadDim, kSlots>(call, head, shared_keys);
  float bias[kKeys];
#pragma unroll
  for (int i = 0; i < kKeys; ++i) {
    const int64_t key = kKeys * t + i, last = call.keys.num_tokens - 1;
    bias[i] = key < last ? 0.0f : key == last ? call.last_key_bias_log2 : -INFINITY;
  }
  __syncthreads();

  // Column g of the nth group of 8 is the key whose product lane g / 2 gets as its (2n + g % 2)th.
  const T* const my_key = shared_keys + (g / 2 * kKeys + g % 2) * kKeyStride + 8 * t;
  int stage = 0;
  for (int tile = static_cast<int>(blockIdx.y); tile < tiles.num_tiles(); tile += static_cast<int>(gridDim.y)) {
    tiles.fetch(stage ^ 1, tile + static_cast<int>(gridDim.y));
    ptx::cp_async_wait<kStages - 1>();
    float products[kSlots / 8][4] = {};
#pragma unroll
    for (int group = 0; group < kHeadDim / 32; ++group) {
      const uint4 low = tiles.unit(stage, 0, group), high = tiles.unit(stage, 1, group);
      const uint32_t first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
      for (int n = 0; n < kSlots / 8; ++n) {
        const uint4 b = *reinterpret_cast<const uint4*>(my_key + 2 * n * kKeyStride + 32 * group);
        ptx::mma_m16n8k16<T>(products[n], first, b.x, b.y);
        ptx::mma_m16n8k16<T>(products[n], second, b.z, b.w);
      }
    }
    stage ^= 1;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float values[kKeys];
#pragma unroll
      for (int i = 0; i < kKeys; ++i) values[i] = products[i / 2][2 * half + i % 2];
      if constexpr (kSoftmax) softmax_of_row(call.scale_log2, bias, values);
      const int64_t row = tiles.row_of(tile, half);
      if (row >= call.rows.num_tokens) continue;
      if constexpr (std::is_same_v<Out, e4m3>) {
        if (head == 0 && t == 0) call.row_scales[row] = 1 / kE4M3Max;
      }
      store_keys(static_cast<Out*>(call.out) + (row * call.num_heads + head) * kSlots + kKeys * t, values);
    }
  }
}

/// As many blocks as the device holds at a time, the same number for each head.
template <class T, class Out, int kHeadDim, int kSlots, bool kSoftmax>
void enqueue(const FewKeysCall& call, cudaStream_t stream) {
  constexpr auto kKernel = few_keys_kernel<T, Out, kHeadDim, kSlots, kSoftmax>;
  constexpr int kBytes = Memory<kHeadDim, kSlots>::kBytes;
  const int64_t tiles = (call.rows.num_tokens + kTileRows - 1) / kTileRows;
  const unsigned resident = resident_blocks(kKernel, 32 * kWarps, kBytes);
  const int64_t of_head = std::min(tiles, std::max<int64_t>(1, resident / call.num_heads));
  const dim3 grid(static_cast<unsigned>(call.num_heads), static_cast<unsigned>(of_head));
  kKernel<<<grid, 32 * kWarps, kBytes, stream>>>(call);
}

template <class T, int kHeadDim, int kSlots>
void launch(const FewKeysCall& call, cudaStream_t stream) {
  if (call.row_scales != nullptr) {
    enqueue<T, e4m3, kHeadDim, kSlots, true>(call, stream);
  } else if (call.softmax) {
    enqueue<T, T, kHeadDim, kSlots, true>(call, stream);
  } else {
    enqueue<T, T, kHeadDim, kSlots, false>(call, stream);
  }
}

/// kSlots: the least that is tried.
template <class T, int kHeadDim, int kSlots = kFewKeysStep>
void choose(const FewKeysCall& call, cudaStream_t stream) {
  if (call.keys.num_tokens <= kSlots) return launch<T, kHeadDim, kSlots>(call, stream);
  if constexpr (kSlots + kFewKeysStep < kHeadDim) choose<T, kHeadDim, kSlots + kFewKeysStep>(call, stream);
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

void few_keys(const FewKeysCall& call, cudaStream_t stream) {
  CALIBATT_ASSERT(call.rows.dtype == call.keys.dtype && is_aligned(call.rows) && is_aligned(call.keys));
  CALIBATT_ASSERT(few_keys_slots(call.rows.dtype, call.head_dim, call.keys.num_tokens) > 0);
  CALIBATT_ASSERT(call.row_scales == nullptr || call.softmax);
  CALIBATT_ASSERT(reinterpret_cast<uintptr_t>(call.out) % 16 == 0 && call.rows.num_tokens < int64_t{1} << 30);
  if (call.rows.num_tokens == 0) return;
  if (call.rows.dtype == DType::kF16) {
    choose_head_dim<__half>(call, stream);
  } else {
    choose_head_dim<__nv_bfloat16>(call, stream);
  }
  check(cudaGetLastError(), "attention to a few keys: launch");
}

}  // namespace calibatt::cuda
