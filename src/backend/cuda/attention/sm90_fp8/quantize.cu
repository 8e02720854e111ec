// The inputs of a call in 8 bits: means and ranges of keys and values (two launches, the second small), the bytes, and
// what their rounding did to the values' mean (small).
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <type_traits>

#include "backend/cuda/attention/sm90_fp8/quantized.h"
#include "backend/cuda/device/device.h"
#include "backend/cuda/device/ptx/arithmetic.cuh"
#include "backend/cuda/device/ptx/wgmma_bytes.cuh"
#include "base/ceil_div.h"

namespace calibatt::cuda::sm90_fp8 {
namespace {

constexpr int kThreads = 256;
constexpr int kUnit = 8;             ///< elements of 16 bytes
constexpr int kTokensOfSplit = 768;  ///< at least, of what one block adds up
constexpr int kMostSplits = 64;
constexpr int kGroupsOfSums = 8;  ///< of threads that share a channel's chunks

template <class Type>
__device__ __forceinline__ void unpack(const uint4& unit, float (&x)[kUnit]) {
  const uint32_t words[4] = {unit.x, unit.y, unit.z, unit.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float2 pair;
    if constexpr (std::is_same_v<Type, __half>) {
      pair = __half22float2(reinterpret_cast<const __half2&>(words[i]));
    } else {
      pair = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(words[i]));
    }
    x[2 * i] = pair.x;
    x[2 * i + 1] = pair.y;
  }
}

/// The larger; NaN when one of them is (fmaxf would lose it).
__device__ __forceinline__ float max_or_nan(float a, float b) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
  return larger;
}

/// Eight integers of at most 127 as bytes.
__device__ __forceinline__ uint2 pack_bytes(const float (&x)[kUnit], float factor) {
  uint32_t words[2];
#pragma unroll
  for (int w = 0; w < 2; ++w) {
    words[w] = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) words[w] |= (__float2int_rn(x[4 * w + i] * factor) & 0xff) << (8 * i);
  }
  return make_uint2(words[0], words[1]);
}

/// What makes bytes of numbers up to `largest`; 0 of zeros alone.
__device__ __forceinline__ float byte_factor(float largest) {
  return largest == 0 ? 0 : kLargestByte / largest;
}

struct Inputs {
  AttentionArgs args;
  Quantized to;
};

/// Rows of keys, values, queries or summaries of one head.
struct Rows {
  const uint4* data;
  int64_t stride;  ///< of a row, in units
  int count;

  __device__ Rows(const DeviceHeads& heads, int count, int batch, int head)
      : data(reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(heads.data) + batch * heads.batch_stride +
                                            head * heads.head_stride)),
        stride(heads.token_stride / kUnit),
        count(count) {}
  /// Eight elements of a row; zeros behind the last row.
  __device__ uint4 unit(int row, int unit) const {
    return row < count ? __ldg(data + row * stride + unit) : make_uint4(0, 0, 0, 0);
  }
};

// ---- means and ranges
// ------------------------------------------------------------------------------------------------
/// Block (head, split, batch entry): sums of its tokens' keys and values, and the values' range, per channel.
template <int kHeadDim, class Type>
__global__ void __launch_bounds__(kThreads) measure_kernel(const __grid_constant__ Inputs in) {
  constexpr int kUnits = kHeadDim / kUnit, kGroups = kThreads / kUnits;
  __shared__ float shared[4][kGroups][kHeadDim];
  const AttentionArgs& args = in.args;
  const int head = blockIdx.x, split = blockIdx.y, batch = blockIdx.z;
  const int unit = static_cast<int>(threadIdx.x) % kUnits, group = static_cast<int>(threadIdx.x) / kUnits;
  const Rows keys(args.k, args.num_keys, batch, head), values(args.v, args.num_keys, batch, head);
  const int length = ceil_div(args.num_keys, in.to.num_splits);
  const int end = min(args.num_keys, (split + 1) * length);
  float sum_k[kUnit] = {}, sum_v[kUnit] = {}, least[kUnit], most[kUnit];
#pragma unroll
  for (int i = 0; i < kUnit; ++i) least[i] = INFINITY, most[i] = -INFINITY;
#pragma unroll 4
  for (int token = split * length + group; token < end; token += kGroups) {
    float k[kUnit], v[kUnit];
    unpack<Type>(keys.unit(token, unit), k);
    unpack<Type>(values.unit(token, unit), v);
#pragma unroll
    for (int i = 0; i < kUnit; ++i) {
      sum_k[i] += k[i];
      sum_v[i] += v[i];
      least[i] = fminf(least[i], v[i]);
      most[i] = fmaxf(most[i], v[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kUnit; ++i) {
    shared[0][group][unit * kUnit + i] = sum_k[i];
    shared[1][group][unit * kUnit + i] = sum_v[i];
    shared[2][group][unit * kUnit + i] = least[i];
    shared[3][group][unit * kUnit + i] = most[i];
  }
  __syncthreads();
  float* partial =
      in.to.partial + (static_cast<int64_t>(batch * args.num_heads + head) * in.to.num_splits + split) * (4 * kHeadDim);
  for (int i = static_cast<int>(threadIdx.x); i < 4 * kHeadDim; i += kThreads) {
    const int what = i / kHeadDim, channel = i % kHeadDim;
    float x = shared[what][0][channel];
    for (int g = 1; g < kGroups; ++g) {
      const float y = shared[what][g][channel];
      x = what < 2 ? x + y : what == 2 ? fminf(x, y) : fmaxf(x, y);
    }
    partial[i] = x;
  }
}

/// Block: a head of a batch entry; thread: a channel.
template <int kHeadDim>
__global__ void __launch_bounds__(kHeadDim) settle_kernel(const __grid_constant__ Inputs in) {
  const int64_t place = static_cast<int64_t>(blockIdx.x) * kHeadDim + threadIdx.x;
  const float* partial =
      in.to.partial + static_cast<int64_t>(blockIdx.x) * in.to.num_splits * (4 * kHeadDim) + threadIdx.x;
  float sum_k = 0, sum_v = 0, least = INFINITY, most = -INFINITY;
  for (int split = 0; split < in.to.num_splits; ++split, partial += 4 * kHeadDim) {
    sum_k += partial[0];
    sum_v += partial[kHeadDim];
    least = fminf(least, partial[2 * kHeadDim]);
    most = fmaxf(most, partial[3 * kHeadDim]);
  }
  const float count = static_cast<float>(in.args.num_keys), mean = sum_v / count;
  const float largest = fmaxf(most - mean, mean - least);
  in.to.k_mean[place] = sum_k / count;
  in.to.v_mean[place] = mean;
  in.to.v_scale[place] = largest > 1e-30f ? largest / kLargestE4m3 : 1.0f;  // of a constant channel: any
}

// ---- bytes
// -----------------------------------------------------------------------------------------------------------
template <int kHeadDim>
constexpr int kUnitsOf = kHeadDim / kUnit;
/// Rows of a chunk that a thread holds a unit of.
template <int kHeadDim>
constexpr int kRowsOf = kChunkKeys* kUnitsOf<kHeadDim> / kThreads;

/// A thread's units of chunk `chunk`, less `mean`.
template <int kHeadDim, class Type>
__device__ __forceinline__ void read_rows(const Rows& rows, int chunk, const float* mean,
                                          float (&x)[kRowsOf<kHeadDim>][kUnit]) {
  constexpr int kUnits = kUnitsOf<kHeadDim>;
  const int unit = static_cast<int>(threadIdx.x) % kUnits;
#pragma unroll
  for (int j = 0; j < kRowsOf<kHeadDim>; ++j) {
    const int row = chunk * kChunkKeys + static_cast<int>(threadIdx.x) / kUnits + j * (kThreads / kUnits);
    unpack<Type>(rows.unit(row, unit), x[j]);
    if (mean == nullptr || row >= rows.count) continue;
#pragma unroll
    for (int i = 0; i < kUnit; ++i) x[j][i] -= __ldg(mean + unit * kUnit + i);
  }
}

__device__ __forceinline__ float largest_of(const float (&x)[kUnit]) {
  float largest = 0;
#pragma unroll
  for (int i = 0; i < kUnit; ++i) largest = max_or_nan(largest, fabsf(x[i]));
  return largest;
}

template <int kHeadDim>
__device__ __forceinline__ void write_bytes(uint8_t* chunk, int j, const float (&x)[kUnit], float factor) {
  constexpr int kUnits = kUnitsOf<kHeadDim>;
  const int unit = static_cast<int>(threadIdx.x) % kUnits;
  const int row = static_cast<int>(threadIdx.x) / kUnits + j * (kThreads / kUnits);
  *reinterpret_cast<uint2*>(chunk + ptx::swizzled<kHeadDim>(row, unit / 2) + unit % 2 * 8) = pack_bytes(x, factor);
}

template <int kHeadDim, class Type>
__device__ void quantize_queries(const Inputs& in, int batch, int head, int chunk) {
  constexpr int kUnits = kUnitsOf<kHeadDim>;
  const AttentionArgs& args = in.args;
  const int64_t first = static_cast<int64_t>(batch * args.num_heads + head) * in.to.query_rows + chunk * kChunkKeys;
  float x[kRowsOf<kHeadDim>][kUnit];
  read_rows<kHeadDim, Type>(Rows(args.q, args.num_queries, batch, head), chunk, nullptr, x);
#pragma unroll
  for (int j = 0; j < kRowsOf<kHeadDim>; ++j) {
    float largest = largest_of(x[j]);
#pragma unroll
    for (int lane = 1; lane < kUnits; lane *= 2) {
      largest = max_or_nan(largest, __shfl_xor_sync(0xffffffffu, largest, lane));
    }
    write_bytes<kHeadDim>(in.to.q + first * kHeadDim, j, x[j], byte_factor(largest));
    if (threadIdx.x % kUnits == 0) {
      in.to.q_scale[first + threadIdx.x / kUnits + j * (kThreads / kUnits)] = largest / kLargestByte * args.scale_log2;
    }
  }
}

template <int kHeadDim, class Type>
__device__ void quantize_keys(const Inputs& in, const Rows& rows, int64_t index, int chunk, int to_chunk) {
  __shared__ float warps[kThreads / 32];
  float x[kRowsOf<kHeadDim>][kUnit];
  read_rows<kHeadDim, Type>(rows, chunk, in.to.k_mean + index * kHeadDim, x);
  float largest = 0;
#pragma unroll
  for (int j = 0; j < kRowsOf<kHeadDim>; ++j) largest = max_or_nan(largest, largest_of(x[j]));
#pragma unroll
  for (int lane = 1; lane < 32; lane *= 2) largest = max_or_nan(largest, __shfl_xor_sync(0xffffffffu, largest, lane));
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = largest;
  __syncthreads();
#pragma unroll
  for (int warp = 0; warp < kThreads / 32; ++warp) largest = max_or_nan(largest, warps[warp]);
  const int64_t place = index * in.to.num_chunks + to_chunk;
#pragma unroll
  for (int j = 0; j < kRowsOf<kHeadDim>; ++j) {
    write_bytes<kHeadDim>(in.to.k + place * (kChunkKeys * kHeadDim), j, x[j], byte_factor(largest));
  }
  if (threadIdx.x == 0) in.to.k_scale[place] = make_float4(largest / kLargestByte, 0, 0, 0);
}

/// Per channel, the sum of a chunk's bytes: exact in a float, as 64 numbers of e4m3 are 2^24 of its smallest at most.
template <int kHeadDim>
__device__ __forceinline__ void sum_values(const uint8_t* staged, float* sums) {
  constexpr int kThreadsOfRow = kThreads / kHeadDim, kPieces = kChunkKeys / 16 / kThreadsOfRow;
  const int channel = static_cast<int>(threadIdx.x) / kThreadsOfRow,
            part = static_cast<int>(threadIdx.x) % kThreadsOfRow;
  const uint4* pieces = reinterpret_cast<const uint4*>(staged + channel * kChunkKeys) + part * kPieces;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const uint4 piece = pieces[i];
    for (const uint32_t four : {piece.x, piece.y, piece.z, piece.w}) sum += ptx::sum_e4m3(four);
  }
#pragma unroll
  for (int lane = 1; lane < kThreadsOfRow; lane *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
  if (part == 0) sums[channel] = sum;
}

/// Transposes by way of shared memory. A thread makes, of 8 channels, the 4 keys that lie behind each other.
template <int kHeadDim, class Type>
__device__ void quantize_values(const Inputs& in, const Rows& rows, int64_t index, int chunk, int to_chunk) {
  constexpr int kUnits = kUnitsOf<kHeadDim>, kBytes = kChunkKeys * kHeadDim;
  __shared__ alignas(16) uint8_t staged[kBytes];
  // 4 units × 8 fours of keys a warp: 64 bytes of a row together, and few bank conflicts.
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int unit = lane % 4 + warp % (kUnits / 4) * 4;
  const int four = lane / 4 + warp / (kUnits / 4) * 8;  // slots 4·four … + 3 of the chunk
  if (four < kChunkKeys / 4) {
    float mean[kUnit], factor[kUnit];
#pragma unroll
    for (int i = 0; i < kUnit; ++i) {
      mean[i] = __ldg(in.to.v_mean + index * kHeadDim + unit * kUnit + i);
      factor[i] = 1.0f / __ldg(in.to.v_scale + index * kHeadDim + unit * kUnit + i);
    }
    const int first = chunk * kChunkKeys + four / 4 * 16 + four % 4 * 2;
    float x[4][kUnit];
#pragma unroll
    for (int j = 0; j < 4; ++j) {  // slot 4·four + j holds this key (ptx::key_slot)
      const int row = first + j / 2 * 8 + j % 2;
      unpack<Type>(rows.unit(row, unit), x[j]);
#pragma unroll
      for (int i = 0; i < kUnit; ++i) x[j][i] = row < rows.count ? (x[j][i] - mean[i]) * factor[i] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kUnit; ++i) {
      *reinterpret_cast<uint32_t*>(staged + ptx::swizzled<kChunkKeys>(unit * kUnit + i, four / 4) + four % 4 * 4) =
          ptx::pack_e4m3(x[0][i], x[1][i], x[2][i], x[3][i]);
    }
  }
  __syncthreads();
  if (to_chunk < in.to.key_chunks) {
    sum_values<kHeadDim>(staged, in.to.v_sum + (index * in.to.key_chunks + to_chunk) * kHeadDim);
  }
  uint4* to = reinterpret_cast<uint4*>(in.to.v + (index * in.to.num_chunks + to_chunk) * kBytes);
  for (int i = static_cast<int>(threadIdx.x); i < kBytes / 16; i += kThreads) {
    to[i] = reinterpret_cast<const uint4*>(staged)[i];
  }
}

/// Block: a head of a batch entry. What rounding has moved the values by in the mean goes into the mean that the output
/// gets back.
template <int kHeadDim>
__global__ void __launch_bounds__(kHeadDim* kGroupsOfSums) center_kernel(const __grid_constant__ Inputs in) {
  __shared__ float shared[kGroupsOfSums][kHeadDim];
  const int channel = static_cast<int>(threadIdx.x) % kHeadDim, group = static_cast<int>(threadIdx.x) / kHeadDim;
  const float* sums = in.to.v_sum + static_cast<int64_t>(blockIdx.x) * in.to.key_chunks * kHeadDim + channel;
  float sum = 0;
#pragma unroll 4
  for (int chunk = group; chunk < in.to.key_chunks; chunk += kGroupsOfSums) sum += sums[int64_t{chunk} * kHeadDim];
  shared[group][channel] = sum;
  __syncthreads();
  if (group != 0) return;
  for (int g = 1; g < kGroupsOfSums; ++g) sum += shared[g][channel];
  const int64_t place = static_cast<int64_t>(blockIdx.x) * kHeadDim + channel;
  in.to.v_mean[place] -= in.to.v_scale[place] * (sum / static_cast<float>(in.args.num_keys));
}

/// Block (head, job, batch entry): a chunk of queries, or of keys and their values, or of summaries. Heads first: in
/// [token, head, dim] order, neighbouring blocks then read neighbouring memory.
template <int kHeadDim, class Type>
__global__ void __launch_bounds__(kThreads) quantize_kernel(const __grid_constant__ Inputs in) {
  const AttentionArgs& args = in.args;
  const int head = blockIdx.x, batch = blockIdx.z, query_chunks = in.to.query_rows / kChunkKeys;
  const int job = static_cast<int>(blockIdx.y);
  if (job < query_chunks) {
    quantize_queries<kHeadDim, Type>(in, batch, head, job);
    return;
  }
  const int to_chunk = job - query_chunks;
  const int64_t index = batch * args.num_heads + head;
  const bool summaries = to_chunk >= in.to.key_chunks;
  const int chunk = summaries ? to_chunk - in.to.key_chunks : to_chunk;
  const int count = summaries ? args.num_summaries : args.num_keys;
  const Rows keys(summaries ? args.summary_k : args.k, count, batch, head);
  const Rows values(summaries ? args.summary_v : args.v, count, batch, head);
  quantize_keys<kHeadDim, Type>(in, keys, index, chunk, to_chunk);
  quantize_values<kHeadDim, Type>(in, values, index, chunk, to_chunk);
}

template <int kHeadDim, class Type>
void enqueue(const Inputs& in, cudaStream_t stream) {
  const auto heads = static_cast<unsigned>(in.args.num_heads), batch = static_cast<unsigned>(in.args.batch);
  const auto splits = static_cast<unsigned>(in.to.num_splits);
  const auto jobs = static_cast<unsigned>(in.to.query_rows / kChunkKeys + in.to.num_chunks);
  measure_kernel<kHeadDim, Type><<<dim3(heads, splits, batch), kThreads, 0, stream>>>(in);
  settle_kernel<kHeadDim><<<heads * batch, kHeadDim, 0, stream>>>(in);
  quantize_kernel<kHeadDim, Type><<<dim3(heads, jobs, batch), kThreads, 0, stream>>>(in);
  center_kernel<kHeadDim><<<heads * batch, kHeadDim * kGroupsOfSums, 0, stream>>>(in);
  check(cudaGetLastError(), "attention in 8 bits: quantising");
}

/// Hands out parts of a workspace, each at a multiple of 256 bytes.
class Places {
 public:
  explicit Places(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(int64_t count) {
    T* place = reinterpret_cast<T*>(base_ + used_);
    used_ += (static_cast<size_t>(count) * sizeof(T) + 255) / 256 * 256;
    return place;
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

Quantized place(const AttentionArgs& args, Places& places) {
  Quantized q;
  const int64_t heads = int64_t{args.batch} * args.num_heads, dim = args.head_dim;
  q.query_rows = ceil_div(args.num_queries, kChunkKeys) * kChunkKeys;
  q.key_chunks = ceil_div(args.num_keys, kChunkKeys);
  q.num_chunks = q.key_chunks + 2 * ceil_div(args.num_summaries, 2 * kChunkKeys);
  q.num_splits = std::min(kMostSplits, ceil_div(args.num_keys, kTokensOfSplit));
  const int64_t rows = heads * q.query_rows + kTileRows;  // the last tile's copy may end behind the last row
  q.q = places.take<uint8_t>(rows * dim);
  q.q_scale = places.take<float>(rows);
  q.k = places.take<uint8_t>(heads * q.num_chunks * kChunkKeys * dim);
  q.k_scale = places.take<float4>(heads * q.num_chunks);
  q.v = places.take<uint8_t>(heads * q.num_chunks * kChunkKeys * dim);
  q.v_scale = places.take<float>(heads * dim);
  q.k_mean = places.take<float>(heads * dim);
  q.v_mean = places.take<float>(heads * dim);
  q.v_sum = places.take<float>(heads * q.key_chunks * dim);
  q.partial = places.take<float>(heads * q.num_splits * 4 * dim);
  return q;
}

}  // namespace

Quantized place_quantized(const AttentionArgs& args, void* base) {
  Places places(base);
  return place(args, places);
}

size_t quantized_bytes(const AttentionArgs& args) {
  Places places(nullptr);
  place(args, places);
  return places.used();
}

void quantize(const AttentionArgs& args, const Quantized& to, cudaStream_t stream) {
  const Inputs in{args, to};
  const bool half = args.dtype == DType::kF16;
  if (args.head_dim == 64) {
    half ? enqueue<64, __half>(in, stream) : enqueue<64, __nv_bfloat16>(in, stream);
  } else {
    half ? enqueue<128, __half>(in, stream) : enqueue<128, __nv_bfloat16>(in, stream);
  }
}

}  // namespace calibatt::cuda::sm90_fp8
