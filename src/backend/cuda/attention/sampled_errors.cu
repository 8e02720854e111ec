#include <algorithm>

#include "backend/cuda/attention/sampled_errors.h"
#include "backend/cuda/attention/sampled_kernel.cuh"
#include "backend/cuda/device/device.h"
#include "base/error.h"

// At 14B and 720p (75,600 keys, 591 blocks, 40 heads, 4 rows a query block) a layer takes three products of 1.8 TFLOP:
// QKᵀ, PV and the changes times L; and the sums of the rungs, 512 bytes read and written for each row and block: 57 GB.

namespace calibatt::cuda {
namespace {

constexpr int kSumThreads = 128;
constexpr size_t kAlignment = 256;

size_t aligned(size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

/// Row blockIdx.x.
template <class From, class To>
__global__ void gather_kernel(const From* __restrict__ from, int64_t token_stride, const int32_t* __restrict__ tokens,
                              int width, To* __restrict__ out) {
  const From* row = from + tokens[blockIdx.x] * token_stride;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += static_cast<int>(blockDim.x)) {
    store_one(out + int64_t{blockIdx.x} * width + i, to_float(row[i]));
  }
}

/// Head blockIdx.x; a thread per channel. The Cholesky factor L of the metric, by columns: out[j, i] = L[i, j]. A
/// direction without weight (within rounding) gets zeros. metric null: the identity.
template <class T>
__global__ void factor_kernel(const float* __restrict__ metric, int dim, T* __restrict__ out) {
  extern __shared__ float shared[];  // [dim, dim + 1]: the lower triangle becomes L
  const int stride = dim + 1, i = static_cast<int>(threadIdx.x);
  T* to = out + int64_t{blockIdx.x} * dim * dim;
  if (metric == nullptr) {
    for (int j = 0; j < dim; ++j) store_one(to + j * dim + i, i == j ? 1.0f : 0.0f);
    return;
  }
  const float* from = metric + int64_t{blockIdx.x} * dim * dim;
  for (int r = 0; r < dim; ++r) shared[r * stride + i] = from[r * dim + i];
  __syncthreads();
  float largest = 0;
  for (int r = 0; r < dim; ++r) largest = fmaxf(largest, shared[r * stride + r]);
  __syncthreads();
  for (int j = 0; j < dim; ++j) {
    const float pivot = shared[j * stride + j];
    const float value = pivot > 1e-6f * largest && i >= j ? shared[i * stride + j] * rsqrtf(pivot) : 0.0f;
    __syncthreads();  // the pivot was read by all
    shared[i * stride + j] = value;
    __syncthreads();
    for (int c = j + 1; c <= i; ++c) shared[i * stride + c] -= value * shared[c * stride + j];
    __syncthreads();
  }
  for (int j = 0; j < dim; ++j) store_one(to + j * dim + i, shared[i * stride + j]);
}

/// Level blockIdx.x of head blockIdx.y: the sum over its rows.
__global__ void __launch_bounds__(kSumThreads)
    sum_rows_kernel(const float* __restrict__ row_errors, int rows, float* __restrict__ level_error) {
  __shared__ float warp_sums[kSumThreads / 32];
  const int64_t curve = int64_t{blockIdx.y} * gridDim.x + blockIdx.x;
  float sum = 0;
  for (int row = static_cast<int>(threadIdx.x); row < rows; row += kSumThreads) sum += row_errors[curve * rows + row];
  sum = block_sum(sum, warp_sums);
  if (threadIdx.x == 0) level_error[curve] = sum;
}

template <class T, int kDim>
using Large = sampled::Shape<T, kDim, 8, 2>;
template <class T, int kDim>
using Small = sampled::Shape<T, kDim, 4, 1>;  // for GPUs with 99 KB of shared memory a block

int shared_bytes_per_block() {
  int bytes = 0;
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, current_device().index),
        "reading the GPU's shared memory");
  return bytes;
}

/// visit(a Shape's value) for the shape that this GPU runs the call with.
template <class Visit>
auto with_shape(DType dtype, int head_dim, const Visit& visit) {
  const auto of_dim = [&]<int kDim>() {
    const auto of_type = [&]<class T>() {
      const bool large = Large<T, kDim>::kSharedBytes <= static_cast<size_t>(shared_bytes_per_block());
      return large ? visit(Large<T, kDim>()) : visit(Small<T, kDim>());
    };
    return dtype == DType::kF16 ? of_type.template operator()<__half>() : of_type.template operator()<__nv_bfloat16>();
  };
  return head_dim == 64 ? of_dim.template operator()<64>() : of_dim.template operator()<128>();
}

template <class S>
int num_blocks(const SampledRows& call) {
  const int tiles = (call.rows + S::kRows - 1) / S::kRows * call.heads;
  return std::min(tiles, current_device().num_sms);
}

/// Offsets into the workspace.
struct Workspace {
  size_t factor, row_errors, rung_sums, bytes;
};

template <class S>
Workspace workspace_of(const SampledRows& call) {
  Workspace at{};
  at.row_errors = aligned(static_cast<size_t>(call.heads) * S::kDim * S::kDim * sizeof(typename S::T));
  const size_t curves = static_cast<size_t>(call.heads) * kMeasuredLevels * static_cast<size_t>(call.rows);
  at.rung_sums = at.row_errors + aligned(call.rungs == nullptr ? 0 : curves * sizeof(float));
  const size_t sums = static_cast<size_t>(num_blocks<S>(call)) * kMeasuredLevels * S::kRungFloats;
  at.bytes = at.rung_sums + aligned(call.rungs == nullptr ? 0 : sums * sizeof(float));
  return at;
}

template <class S>
void launch(const SampledRows& call, uint16_t* harm, float* level_error, char* workspace, cudaStream_t stream) {
  using T = typename S::T;
  const Workspace at = workspace_of<S>(call);
  auto* const factor = reinterpret_cast<T*>(workspace + at.factor);
  const size_t factor_bytes = static_cast<size_t>(S::kDim) * (S::kDim + 1) * sizeof(float);
  check(cudaFuncSetAttribute(factor_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(factor_bytes)),
        "factoring output metrics: shared memory");
  factor_kernel<T><<<static_cast<unsigned>(call.heads), S::kDim, factor_bytes, stream>>>(call.metric, S::kDim, factor);
  check(cudaGetLastError(), "factoring output metrics: launch");

  const sampled::Args args{call, factor, reinterpret_cast<float*>(workspace + at.rung_sums),
                           reinterpret_cast<float*>(workspace + at.row_errors), reinterpret_cast<__nv_bfloat16*>(harm)};
  check(cudaFuncSetAttribute(sampled::sampled_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(S::kSharedBytes)),
        "measuring harm: shared memory");
  sampled::sampled_kernel<S>
      <<<static_cast<unsigned>(num_blocks<S>(call)), S::kThreads, S::kSharedBytes, stream>>>(args);
  check(cudaGetLastError(), "measuring harm: launch");
  if (call.rungs == nullptr) return;
  const dim3 curves(kMeasuredLevels, static_cast<unsigned>(call.heads));
  sum_rows_kernel<<<curves, kSumThreads, 0, stream>>>(args.row_errors, call.rows, level_error);
  check(cudaGetLastError(), "adding level errors: launch");
}

template <class From>
void launch_gather(const void* from, int64_t token_stride, const int32_t* tokens, int num_rows, int width, void* out,
                   DType out_dtype, cudaStream_t stream) {
  const auto enqueue = [&]<class To>(To* to) {
    gather_kernel<<<static_cast<unsigned>(num_rows), 256, 0, stream>>>(static_cast<const From*>(from), token_stride,
                                                                       tokens, width, to);
  };
  if (out_dtype == DType::kF32) {
    enqueue(static_cast<float*>(out));
  } else {
    enqueue(static_cast<From*>(out));
  }
  check(cudaGetLastError(), "gathering rows: launch");
}

}  // namespace

void gather_rows(const void* from, DType from_dtype, int64_t token_stride, const int32_t* tokens, int num_rows,
                 int width, void* out, DType out_dtype, cudaStream_t stream) {
  CALIBATT_ASSERT(out_dtype == from_dtype || out_dtype == DType::kF32);
  if (from_dtype == DType::kF16) {
    launch_gather<__half>(from, token_stride, tokens, num_rows, width, out, out_dtype, stream);
  } else {
    CALIBATT_ASSERT(from_dtype == DType::kBF16);
    launch_gather<__nv_bfloat16>(from, token_stride, tokens, num_rows, width, out, out_dtype, stream);
  }
}

bool takes_sampled_errors(DType dtype, int head_dim, int block_k, int samples) {
  const bool sizes = (head_dim == 64 || head_dim == 128) && block_k % sampled::kChunk == 0;
  const bool power = samples == 1 || samples == 2 || samples == 4 || samples == 8;
  return (dtype == DType::kBF16 || dtype == DType::kF16) && sizes && power;
}

size_t sampled_errors_workspace_bytes(const SampledRows& call) {
  return with_shape(call.dtype, call.head_dim, [&]<class S>(S) { return workspace_of<S>(call).bytes; });
}

void sampled_errors(const SampledRows& call, uint16_t* harm, float* level_error, void* workspace, cudaStream_t stream) {
  CALIBATT_ASSERT(takes_sampled_errors(call.dtype, call.head_dim, call.block_k, call.samples));
  CALIBATT_ASSERT(call.rows > 0 && call.rows % call.samples == 0 && call.key_blocks >= 1);
  with_shape(call.dtype, call.head_dim,
             [&]<class S>(S) { launch<S>(call, harm, level_error, static_cast<char*>(workspace), stream); });
}

}  // namespace calibatt::cuda
