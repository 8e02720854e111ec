#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <limits>

#include "backend/cuda/attention/generic/attention_generic.h"
#include "backend/cuda/device/device.h"
#include "base/ceil_div.h"

namespace calibatt::cuda::generic {
namespace {

constexpr uint32_t kAllLanes = 0xffffffffu;
constexpr int kMaxWarps = 4;
constexpr int kSharedBytes = 48 * 1024;                                            // what every launch may have
constexpr int kMaxHeadDim = kSharedBytes / (2 * static_cast<int>(sizeof(float)));  // a query and an output row

struct KernelCall {
  AttentionArgs args;
  uint32_t tiles_per_head;  ///< dense calls: tiles of kTileRows query rows
  uint32_t num_query_blocks, num_key_blocks;
  float* log_sums;  ///< energy: [batch, num_heads, num_queries], log2 of each row's sum of weights
};

__device__ float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
__device__ float to_float(__half x) {
  return __half2float(x);
}
__device__ float to_float(float x) {
  return x;
}
__device__ void store(float* to, float x) {
  *to = x;
}
__device__ void store(__nv_bfloat16* to, float x) {
  *to = __float2bfloat16_rn(x);
}
__device__ void store(__half* to, float x) {
  *to = __float2half_rn(x);
}

__device__ int64_t head_offset(const DeviceHeads& array, int64_t batch, int64_t head) {
  return batch * array.batch_stride + head * array.head_stride;
}

__device__ float warp_max(float x) {
  for (int distance = 16; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, distance));
  return x;
}
__device__ float warp_sum(float x) {
  for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(kAllLanes, x, distance);
  return x;
}

/// Rows of keys and of values that belong together, as one head sees them.
template <class T>
struct Rows {
  const T* keys;
  const T* values;
  int64_t key_stride, value_stride;
};

template <class T>
__device__ Rows<T> rows_of(const DeviceHeads& keys, const DeviceHeads& values, int64_t batch, int64_t head) {
  return {static_cast<const T*>(keys.data) + head_offset(keys, batch, head),
          static_cast<const T*>(values.data) + head_offset(values, batch, head), keys.token_stride,
          values.token_stride};
}

/// Online softmax of one query row by one warp. query, output: head_dim floats of shared memory each.
struct RowSoftmax {
  const float* query;
  float* output;
  int head_dim, lane;
  float scale_log2;
  float maximum = -INFINITY, sum = 0;  // log2; alike in all lanes

  /// Rows [begin, end); bias(row) is added to their logits (log2); −∞: takes no part.
  template <class T, class Bias>
  __device__ void visit(const Rows<T>& rows, int64_t begin, int64_t end, const Bias& bias) {
    for (int64_t first = begin; first < end; first += 32) {
      const int num_rows = static_cast<int>(min(end - first, int64_t{32}));
      float logit = -INFINITY;  // of row first + lane
      for (int i = 0; i < num_rows; ++i) {
        const T* const key = rows.keys + (first + i) * rows.key_stride;
        float product = 0;
        for (int d = lane; d < head_dim; d += 32) product += query[d] * to_float(key[d]);
        product = warp_sum(product);
        if (lane == i) logit = product * scale_log2;
      }
      if (lane < num_rows) {
        const float row_bias = bias(first + lane);
        logit = row_bias == -INFINITY ? -INFINITY : logit + row_bias;  // also when the logit is not a number
      }
      const float raised = fmaxf(maximum, warp_max(logit));
      const float reference = raised == -INFINITY ? 0.0f : raised;  // −∞ − −∞ would be NaN
      const float factor = exp2f(maximum - reference), weight = exp2f(logit - reference);
      maximum = raised;
      sum = sum * factor + warp_sum(weight);
      for (int d = lane; d - lane < head_dim; d += 32) {  // each lane has other dims of the output
        float value = d < head_dim ? output[d] * factor : 0.0f;
        for (int i = 0; i < num_rows; ++i) {
          const float row_weight = __shfl_sync(kAllLanes, weight, i);
          // Weight 0: what takes no part has no say, whatever its value.
          if (d < head_dim && row_weight != 0) {
            value += row_weight * to_float(rows.values[(first + i) * rows.value_stride + d]);
          }
        }
        if (d < head_dim) output[d] = value;
      }
    }
  }
};

/// All keys of a tile's row that are kept, and the summaries of the others.
template <class T>
__device__ __forceinline__ void visit_keys(const AttentionArgs& args, const Tile& tile, int64_t batch,
                                           RowSoftmax& softmax) {
  const DeviceSchedule& schedule = args.schedule;
  const Rows<T> tokens = rows_of<T>(args.k, args.v, batch, tile.head);
  const auto no_bias = [](int64_t) { return 0.0f; };
  if (schedule.tiles == nullptr) {
    softmax.visit(tokens, 0, args.num_keys,
                  [&](int64_t key) { return key + 1 == args.num_keys ? args.last_key_bias_log2 : 0.0f; });
  } else {
    for (uint32_t i = tile.num_ranges; i-- > 0;) {
      const ChunkRange range = schedule.ranges[tile.first_range + i];
      softmax.visit(tokens, static_cast<int64_t>(range.begin) * kChunkKeys,
                    min(static_cast<int64_t>(range.end) * kChunkKeys, static_cast<int64_t>(args.num_keys)), no_bias);
    }
  }
  if (tile.flags & Tile::kSummaries) {
    softmax.visit(rows_of<T>(args.summary_k, args.summary_v, batch, tile.head), 0, args.num_summaries,
                  [&](int64_t block) {
                    const uint32_t word = schedule.kept_bits[tile.kept_bits + block / 32];
                    const int64_t first = block * args.block_k;
                    const int64_t count = min(static_cast<int64_t>(args.num_keys) - first, int64_t{args.block_k});
                    return word >> (block % 32) & 1 ? -INFINITY : log2f(static_cast<float>(count));
                  });
  }
}

/// A row's output to its token, or to all that copy it.
template <class T>
__device__ __forceinline__ void write_row(const AttentionArgs& args, const Tile& tile, int64_t batch, uint32_t row,
                                          int64_t token, const float* output, float sum) {
  const DeviceSchedule& schedule = args.schedule;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool anchor = tile.flags & Tile::kAnchors;
  const uint32_t first = anchor ? schedule.destination_offsets[row] : 0;
  const uint32_t last = anchor ? schedule.destination_offsets[row + 1] : 1;
  for (uint32_t i = first; i < last; ++i) {
    const int64_t to_token = anchor ? schedule.destinations[i] : token;
    const int64_t to = head_offset(args.out, batch, tile.head) + to_token * args.out.token_stride;
    for (int d = lane; d < args.head_dim; d += 32) {
      const float value = output[d] / sum;
      if (args.out_f32) {
        static_cast<float*>(args.out.data)[to + d] = value;
      } else {
        store(static_cast<T*>(args.out.data) + to + d, value);
      }
    }
  }
}

/// One tile per block (blockIdx.x, batch entry blockIdx.y), one query row per warp and turn.
template <class T>
__global__ void attention_kernel(const __grid_constant__ KernelCall call) {
  extern __shared__ float shared[];
  const AttentionArgs& args = call.args;
  const DeviceSchedule& schedule = args.schedule;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int num_warps = static_cast<int>(blockDim.x) / 32;
  float* const query = shared + 2 * warp * args.head_dim;
  float* const output = query + args.head_dim;
  const int64_t batch = blockIdx.y;

  const bool planned = schedule.tiles != nullptr;
  const auto num_queries = static_cast<uint32_t>(args.num_queries);
  Tile tile;
  if (planned) {
    tile = schedule.tiles[blockIdx.x];
  } else {
    tile.head = blockIdx.x / call.tiles_per_head;
    tile.first_row = blockIdx.x % call.tiles_per_head * kTileRows;
    tile.num_rows = min(static_cast<uint32_t>(kTileRows), num_queries - tile.first_row);
  }

  for (uint32_t row = tile.first_row + warp; row < tile.first_row + tile.num_rows; row += num_warps) {
    const int64_t token = tile.flags & Tile::kAnchors ? schedule.anchor_tokens[row] : static_cast<int64_t>(row);
    const T* const from =
        static_cast<const T*>(args.q.data) + head_offset(args.q, batch, tile.head) + token * args.q.token_stride;
    for (int d = lane; d < args.head_dim; d += 32) {
      query[d] = to_float(from[d]);
      output[d] = 0;
    }
    __syncwarp();

    RowSoftmax softmax{query, output, args.head_dim, lane, args.scale_log2};
    visit_keys<T>(args, tile, batch, softmax);

    if (lane == 0) {
      const int64_t number = (batch * args.num_heads + tile.head) * num_queries + row;
      const float log_sum = softmax.maximum + log2f(softmax.sum);
      if (call.log_sums != nullptr) call.log_sums[number] = log_sum;
      if (!planned && args.row_lse != nullptr) args.row_lse[number] = log_sum * 0.693147180559945f;  // ln 2
    }
    write_row<T>(args, tile, batch, row, token, output, softmax.sum);
    __syncwarp();  // query and output are the next row's now
  }
}

/// Block energy, from the rows' sums: a warp per key block blockIdx.y · warps + warp of query block blockIdx.x; batch
/// entries and heads in blockIdx.z. Computes all logits anew.
template <class T>
__global__ void energy_kernel(const __grid_constant__ KernelCall call) {
  const AttentionArgs& args = call.args;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t query_block = blockIdx.x;
  const uint32_t key_block = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32;
  if (key_block >= call.num_key_blocks) return;
  const int64_t head_of_call = blockIdx.z, batch = head_of_call / args.num_heads, head = head_of_call % args.num_heads;

  const int64_t first_row = static_cast<int64_t>(query_block) * args.block_q;
  const int64_t end_row = min(first_row + args.block_q, static_cast<int64_t>(args.num_queries));
  const int64_t first_key = static_cast<int64_t>(key_block) * args.block_k;
  const int64_t end_key = min(first_key + args.block_k, static_cast<int64_t>(args.num_keys));
  const T* const queries = static_cast<const T*>(args.q.data) + head_offset(args.q, batch, head);
  const T* const keys = static_cast<const T*>(args.k.data) + head_offset(args.k, batch, head);
  float mass = 0;
  for (int64_t row = first_row; row < end_row; ++row) {
    const float log_sum = call.log_sums[head_of_call * args.num_queries + row];
    const T* const query = queries + row * args.q.token_stride;
    for (int64_t s = first_key + lane; s < end_key; s += 32) {
      const T* const key = keys + s * args.k.token_stride;
      float product = 0;
      for (int d = 0; d < args.head_dim; ++d) product += to_float(query[d]) * to_float(key[d]);
      const float bias = s + 1 == args.num_keys ? args.last_key_bias_log2 : 0.0f;
      mass += exp2f(product * args.scale_log2 + bias - log_sum);
    }
  }
  mass = warp_sum(mass);
  if (lane == 0) {
    args.block_energy[(head_of_call * call.num_query_blocks + query_block) * call.num_key_blocks + key_block] =
        mass / static_cast<float>(end_row - first_row);
  }
}

uint32_t count_of(int64_t a, int64_t each) {
  return static_cast<uint32_t>(ceil_div(a, each));
}

int num_warps(const AttentionArgs& args) {
  return std::min(kMaxWarps, kMaxHeadDim / args.head_dim);
}

template <class T>
void launch_typed(const KernelCall& call, cudaStream_t stream) {
  const AttentionArgs& args = call.args;
  const unsigned num_tiles =
      args.schedule.tiles != nullptr ? args.schedule.num_tiles : call.tiles_per_head * args.num_heads;
  const int warps = num_warps(args);
  const size_t shared_bytes = sizeof(float) * 2 * args.head_dim * warps;
  attention_kernel<T><<<dim3(num_tiles, args.batch), 32 * warps, shared_bytes, stream>>>(call);
  check(cudaGetLastError(), "attention, generic kernel: launch");
  if (args.block_energy == nullptr) return;
  const dim3 grid(call.num_query_blocks, count_of(call.num_key_blocks, kMaxWarps), args.batch * args.num_heads);
  energy_kernel<T><<<grid, 32 * kMaxWarps, 0, stream>>>(call);
  check(cudaGetLastError(), "attention, generic kernel: launch for the block energy");
}

}  // namespace

std::string refusal(const AttentionArgs& args) {
  constexpr int64_t kMaxGrid = 65535;  // of y and z
  if (args.head_dim > kMaxHeadDim) return "it has head dims up to " + std::to_string(kMaxHeadDim);
  if (args.batch > kMaxGrid) return "it has up to " + std::to_string(kMaxGrid) + " batch entries";
  if (args.schedule.tiles == nullptr &&
      int64_t{count_of(args.num_queries, kTileRows)} * args.num_heads > std::numeric_limits<int32_t>::max()) {
    return "it has more tiles than a grid has blocks";
  }
  if (args.block_energy != nullptr && (int64_t{args.batch} * args.num_heads > kMaxGrid ||
                                       count_of(args.num_keys, int64_t{args.block_k} * kMaxWarps) > kMaxGrid)) {
    return "it has more heads or key blocks than a grid has blocks";
  }
  return {};
}

size_t workspace_bytes(const AttentionArgs& args, int) {
  if (args.block_energy == nullptr) return 0;
  return sizeof(float) * static_cast<size_t>(args.batch) * args.num_heads * args.num_queries;
}

void launch(const AttentionArgs& args, int, cudaStream_t stream) {
  KernelCall call{};
  call.args = args;
  call.tiles_per_head = count_of(args.num_queries, kTileRows);
  call.num_query_blocks = count_of(args.num_queries, args.block_q);
  call.num_key_blocks = count_of(args.num_keys, args.block_k);
  call.log_sums = args.block_energy != nullptr ? static_cast<float*>(args.workspace) : nullptr;
  if (args.dtype == DType::kF32) {
    launch_typed<float>(call, stream);
  } else if (args.dtype == DType::kF16) {
    launch_typed<__half>(call, stream);
  } else {
    launch_typed<__nv_bfloat16>(call, stream);
  }
}

}  // namespace calibatt::cuda::generic
