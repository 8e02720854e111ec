#include <algorithm>
#include <string>

#include "backend/cuda/device/device.h"
#include "backend/cuda/device/vector_access.cuh"
#include "backend/cuda/kernels/biased_attention.h"
#include "base/error.h"

namespace calibatt::cuda {
namespace {

constexpr int kMaxWarps = 4;
constexpr int64_t kSharedFloats = 48 * 1024 / sizeof(float);  // what every launch may have

struct Call {
  ConstHeadsView q, k, v;
  HeadsView out;
  const float* bias;
  int64_t num_tokens;
  int head_dim;
};

/// Row blockIdx.x · warps + warp of head blockIdx.y. The row's weights stand in shared memory.
template <class In, class Out>
__global__ void biased_attention_kernel(const __grid_constant__ Call call) {
  extern __shared__ float shared[];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t num_tokens = call.num_tokens, head = blockIdx.y;
  const int64_t row = int64_t{blockIdx.x} * (blockDim.x / 32) + warp;
  if (row >= num_tokens) return;  // a whole warp; no barrier of the block follows
  float* const weights = shared + warp * num_tokens;
  const In* const query = static_cast<const In*>(call.q.data) + row * call.q.token_stride + head * call.q.head_stride;
  const In* const keys = static_cast<const In*>(call.k.data) + head * call.k.head_stride;
  const In* const values = static_cast<const In*>(call.v.data) + head * call.v.head_stride;
  const float* const bias = call.bias + (head * num_tokens + row) * num_tokens;

  float maximum = -INFINITY;
  for (int64_t s = 0; s < num_tokens; ++s) {
    const In* const key = keys + s * call.k.token_stride;
    float product = 0;
    for (int d = lane; d < call.head_dim; d += 32) product += to_float(query[d]) * to_float(key[d]);
    const float logit = warp_sum(product) + bias[s];
    if (lane == 0) weights[s] = logit;
    maximum = fmaxf(maximum, logit);
  }
  __syncwarp();
  float sum = 0;
  for (int64_t s = lane; s < num_tokens; s += 32) {
    const float weight = expf(weights[s] - maximum);
    weights[s] = weight;
    sum += weight;
  }
  sum = warp_sum(sum);
  __syncwarp();
  Out* const out = static_cast<Out*>(call.out.data) + row * call.out.token_stride + head * call.out.head_stride;
  for (int d = lane; d < call.head_dim; d += 32) {
    float value = 0;
    for (int64_t s = 0; s < num_tokens; ++s) value += weights[s] * to_float(values[s * call.v.token_stride + d]);
    store_one(out + d, value / sum);
  }
}

}  // namespace

void biased_attention(ConstHeadsView q, ConstHeadsView k, ConstHeadsView v, const float* bias, int num_heads,
                      int head_dim, HeadsView out, cudaStream_t stream) {
  CALIBATT_ASSERT(k.dtype == q.dtype && v.dtype == q.dtype);
  const int64_t num_tokens = q.num_tokens;
  if (num_tokens == 0) return;
  if (num_tokens > kSharedFloats || num_heads > 65535) {
    throw Error(ErrorKind::kUsage, "attention with a bias: " + std::to_string(num_tokens) + " tokens and " +
                                       std::to_string(num_heads) + " heads; on CUDA up to " +
                                       std::to_string(kSharedFloats) + " and 65535 are computed");
  }
  const auto warps = std::min<int64_t>(kMaxWarps, kSharedFloats / num_tokens);
  const size_t shared_bytes = sizeof(float) * static_cast<size_t>(warps * num_tokens);
  const dim3 grid(static_cast<unsigned>((num_tokens + warps - 1) / warps), static_cast<unsigned>(num_heads));
  const Call call{q, k, v, out, bias, num_tokens, head_dim};
  const auto enqueue = [&](auto* kernel) {
    kernel<<<grid, static_cast<unsigned>(32 * warps), shared_bytes, stream>>>(call);
  };
  const bool out_f32 = out.dtype == DType::kF32;
  if (q.dtype == DType::kF32) {
    enqueue(out_f32 ? &biased_attention_kernel<float, float> : &biased_attention_kernel<float, __nv_bfloat16>);
  } else {
    enqueue(out_f32 ? &biased_attention_kernel<__nv_bfloat16, float>
                    : &biased_attention_kernel<__nv_bfloat16, __nv_bfloat16>);
  }
  check(cudaGetLastError(), "attention with a bias: launch");
}

}  // namespace calibatt::cuda
