// The inputs of a call in 8 bits: means and ranges of sampled keys and values (two launches, the second small), the
// bytes, those of values again whose range the sample did not show (most often nothing), and what their rounding did to
// the values' mean (small).
#include "backend/cuda/attention/sm90_fp8/quantize.h"
#include "backend/cuda/attention/sm90_fp8/quantize_keys.cuh"
#include "backend/cuda/attention/sm90_fp8/quantize_normed.h"
#include "backend/cuda/attention/sm90_fp8/quantize_summaries.h"
#include "backend/cuda/attention/sm90_fp8/quantize_values.cuh"
#include "backend/cuda/device/device.h"
#include "base/ceil_div.h"

namespace calibatt::cuda::sm90_fp8 {
namespace {

constexpr int kGroupsOfSums = 8;   ///< of threads that share a channel's parts
constexpr int kRepairBlocks = 32;  ///< of a head
static_assert(sizeof(float4) == kKeyScaleBytes);

// ---- means and ranges
// ------------------------------------------------------------------------------------------------
/// Block (head, split, batch entry): sums of its sampled tokens' keys and values, and the values' range, per channel.
template <int kHeadDim, class Type>
__global__ void __launch_bounds__(kThreads) measure_kernel(const __grid_constant__ Inputs in) {
  constexpr int kUnits = kUnitsOf<kHeadDim>, kGroups = kThreads / kUnits;
  __shared__ float shared[4][kGroups][kHeadDim];
  const AttentionArgs& args = in.args;
  const int head = blockIdx.x, split = blockIdx.y, batch = blockIdx.z;
  const int unit = static_cast<int>(threadIdx.x) % kUnits, group = static_cast<int>(threadIdx.x) / kUnits;
  const Rows keys(args.k, args.num_keys, batch, head), values(args.v, args.num_keys, batch, head);
  const bool with_keys = !args.norm.pending;
  const int count = in.to.sample.count(), length = ceil_div(count, in.to.num_splits);
  const int end = min(count, (split + 1) * length);
  float sum_k[kUnit] = {}, sum_v[kUnit] = {}, least[kUnit], most[kUnit];
#pragma unroll
  for (int i = 0; i < kUnit; ++i) least[i] = INFINITY, most[i] = -INFINITY;
#pragma unroll 4
  for (int i = split * length + group; i < end; i += kGroups) {
    const int token = in.to.sample.token(i);
    float k[kUnit], v[kUnit];
    unpack<Type>(with_keys ? keys.unit(token, unit) : make_uint4(0, 0, 0, 0), k);
    unpack<Type>(values.unit(token, unit), v);
#pragma unroll
    for (int c = 0; c < kUnit; ++c) {
      sum_k[c] += k[c];
      sum_v[c] += v[c];
      least[c] = fminf(least[c], v[c]);
      most[c] = fmaxf(most[c], v[c]);
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
  const int64_t part = static_cast<int64_t>(batch * args.num_heads + head) * in.to.num_splits + split;
  for (int i = static_cast<int>(threadIdx.x); i < 4 * kHeadDim; i += kThreads) {
    const int what = i / kHeadDim, channel = i % kHeadDim;
    float x = shared[what][0][channel];
    for (int g = 1; g < kGroups; ++g) {
      const float y = shared[what][g][channel];
      x = what < 2 ? x + y : what == 2 ? fminf(x, y) : fmaxf(x, y);
    }
    if (what == 0) {
      if (with_keys) in.to.k_partial[part * kHeadDim + channel] = x;
    } else {
      in.to.v_partial[(part * 3 + what - 1) * kHeadDim + channel] = x;
    }
  }
}

/// Block: a head of a batch entry; thread: of a channel, one part in eight.
template <int kHeadDim>
__global__ void __launch_bounds__(kHeadDim* kGroupsOfSums) settle_kernel(const __grid_constant__ Inputs in) {
  __shared__ float shared[4][kGroupsOfSums][kHeadDim];
  const int channel = static_cast<int>(threadIdx.x) % kHeadDim, group = static_cast<int>(threadIdx.x) / kHeadDim;
  const int64_t head = blockIdx.x;
  const float* keys = in.to.k_partial + head * in.to.key_parts * kHeadDim + channel;
  const float* values = in.to.v_partial + head * in.to.num_splits * (3 * kHeadDim) + channel;
  float sum_k = 0, sum_v = 0, least = INFINITY, most = -INFINITY;
#pragma unroll 4
  for (int part = group; part < in.to.key_parts; part += kGroupsOfSums) sum_k += keys[int64_t{part} * kHeadDim];
  for (int split = group; split < in.to.num_splits; split += kGroupsOfSums) {
    const float* of = values + int64_t{split} * (3 * kHeadDim);
    sum_v += of[0];
    least = fminf(least, of[kHeadDim]);
    most = fmaxf(most, of[2 * kHeadDim]);
  }
  shared[0][group][channel] = sum_k;
  shared[1][group][channel] = sum_v;
  shared[2][group][channel] = least;
  shared[3][group][channel] = most;
  __syncthreads();
  if (group != 0) return;
  for (int g = 1; g < kGroupsOfSums; ++g) {
    sum_k += shared[0][g][channel];
    sum_v += shared[1][g][channel];
    least = fminf(least, shared[2][g][channel]);
    most = fmaxf(most, shared[3][g][channel]);
  }
  // Less the least and the largest: one value that outweighs all others would move the mean away from these, and what
  // each is less than it grows in the tensor core's short sum (of a channel that is 0 but for one key, 25 % too large).
  const int count = in.to.sample.count();
  const float mean =
      count > 2 ? (sum_v - least - most) / static_cast<float>(count - 2) : sum_v / static_cast<float>(count);
  const float room = in.to.sample.stride > 1 ? kRoom : 1.0f;
  const int64_t place = head * kHeadDim + channel;
  in.to.k_mean[place] = sum_k / static_cast<float>(in.to.key_sample.count());
  in.to.v_mean[place] = mean;
  // Of a channel that is constant in the sample: so small a scale that a value that differs is told of.
  in.to.v_scale[place] = fmaxf(fmaxf(most - mean, mean - least) * (room / kLargestE4m3), 1e-30f);
  in.to.v_peak[place] = 0;
}

// ---- bytes
// -----------------------------------------------------------------------------------------------------------
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
__device__ void quantize_keys(const Inputs& in, const Rows& rows, int64_t index, int chunk) {
  __shared__ float sums[kThreads / 32][kHeadDim];
  float x[kRowsOf<kHeadDim>][kUnit];
  read_rows<kHeadDim, Type>(rows, chunk, in.to.k_mean + index * kHeadDim, x);
  write_keys<kHeadDim>(in.to, x, index, chunk);
  if (in.to.k_sum == nullptr) return;
  sum_rows<kHeadDim>(x, sums, in.to.k_sum + (index * in.to.key_chunks + chunk) * kHeadDim);
}

/// Block (head, one in kRepairBlocks, batch entry): where a value lay beyond its channel's scale, the head's values
/// again.
template <int kHeadDim, class Type>
__global__ void __launch_bounds__(kThreads) repair_kernel(const __grid_constant__ Inputs in) {
  const AttentionArgs& args = in.args;
  const int head = blockIdx.x, batch = blockIdx.z;
  const int64_t index = batch * args.num_heads + head;
  const int channel = static_cast<int>(threadIdx.x) % kHeadDim;
  if (!__syncthreads_or(in.to.v_peak[index * kHeadDim + channel] > 0)) return;
  const Rows values(args.v, args.num_keys, batch, head);
  for (int chunk = static_cast<int>(blockIdx.y); chunk < in.to.key_chunks; chunk += kRepairBlocks) {
    quantize_values<kHeadDim, Type, true>(in, values, index, chunk);
    __syncthreads();  // what is staged has been copied
  }
}

/// Block: a head of a batch entry. What rounding has moved the values by in the mean goes into the mean that the output
/// gets back.
template <int kHeadDim>
__global__ void __launch_bounds__(kHeadDim* kGroupsOfSums) center_kernel(const __grid_constant__ Inputs in) {
  __shared__ float shared[kGroupsOfSums][kHeadDim];
  const int channel = static_cast<int>(threadIdx.x) % kHeadDim, group = static_cast<int>(threadIdx.x) / kHeadDim;
  const float* errors = in.to.v_error + static_cast<int64_t>(blockIdx.x) * in.to.key_chunks * kHeadDim + channel;
  float sum = 0;
#pragma unroll 16
  for (int chunk = group; chunk < in.to.key_chunks; chunk += kGroupsOfSums) sum += errors[int64_t{chunk} * kHeadDim];
  shared[group][channel] = sum;
  __syncthreads();
  if (group != 0) return;
  for (int g = 1; g < kGroupsOfSums; ++g) sum += shared[g][channel];
  const int64_t place = static_cast<int64_t>(blockIdx.x) * kHeadDim + channel;
  const float scale = true_scale(in.to, place);
  in.to.v_scale[place] = scale;
  in.to.v_mean[place] += scale * (sum / static_cast<float>(in.args.num_keys));
}

/// Block (head, job, batch entry): a chunk of queries, or of keys and their values. Heads first: in [token, head, dim]
/// order, neighbouring blocks then read neighbouring memory.
template <int kHeadDim, class Type>
__global__ void __launch_bounds__(kThreads, 4) quantize_kernel(const __grid_constant__ Inputs in) {
  const AttentionArgs& args = in.args;
  const int head = blockIdx.x, batch = blockIdx.z;
  const bool normed = args.norm.pending;  // then queries and keys are made elsewhere (quantize_normed.h)
  const int query_chunks = normed ? 0 : in.to.query_rows / kChunkKeys;
  const int job = static_cast<int>(blockIdx.y);
  if (job < query_chunks) {
    quantize_queries<kHeadDim, Type>(in, batch, head, job);
    return;
  }
  const int chunk = job - query_chunks;
  const int64_t index = batch * args.num_heads + head;
  if (!normed) quantize_keys<kHeadDim, Type>(in, Rows(args.k, args.num_keys, batch, head), index, chunk);
  quantize_values<kHeadDim, Type, false>(in, Rows(args.v, args.num_keys, batch, head), index, chunk);
}

template <int kHeadDim, class Type>
void enqueue(const Inputs& in, cudaStream_t stream) {
  const auto heads = static_cast<unsigned>(in.args.num_heads), batch = static_cast<unsigned>(in.args.batch);
  const auto splits = static_cast<unsigned>(in.to.num_splits);
  const bool normed = in.args.norm.pending;
  const auto jobs = static_cast<unsigned>((normed ? 0 : in.to.query_rows / kChunkKeys) + in.to.key_chunks);
  if (normed) sample_normed_keys(in.args, in.to, stream);
  measure_kernel<kHeadDim, Type><<<dim3(heads, splits, batch), kThreads, 0, stream>>>(in);
  settle_kernel<kHeadDim><<<heads * batch, kHeadDim * kGroupsOfSums, 0, stream>>>(in);
  if (normed) {
    quantize_normed_queries(in.args, in.to, stream);
    quantize_normed_keys(in.args, in.to, stream);
  }
  quantize_kernel<kHeadDim, Type><<<dim3(heads, jobs, batch), kThreads, 0, stream>>>(in);
  if (in.to.sample.stride > 1) {
    repair_kernel<kHeadDim, Type><<<dim3(heads, kRepairBlocks, batch), kThreads, 0, stream>>>(in);
  }
  if (in.args.num_summaries > 0) quantize_summaries(in.args, in.to, stream);
  center_kernel<kHeadDim><<<heads * batch, kHeadDim * kGroupsOfSums, 0, stream>>>(in);
  check(cudaGetLastError(), "attention in 8 bits: quantising");
}

}  // namespace

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
