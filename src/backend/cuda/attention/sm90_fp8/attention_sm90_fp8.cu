// Attention for Hopper in 8 bits. First the inputs are quantised into the workspace (quantize.cu); then the kernel
// below, which is built as the one in 16 bits (sm90/attention_sm90.cu): a producer thread and two consumer warpgroups
// of 64 rows stay on each multiprocessor and take tiles from a counter. What differs:
//   quantized.h    the types and scales of the bytes, and how chunks lie in memory;
//   copies.cuh     copies are runs of bytes, because the chunks were stored as they lie in shared memory;
//   consumer.cuh   S in integers, exact; twice the stages; the short sums of the tensor core go to float sums in time;
//   softmax.cuh    the scales are folded into the exponent's argument; weights stay in the range of e4m3.
// A step's products take 512 cycles instead of 1,024, as long as its exponentials take alone: both must overlap.
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "backend/cuda/attention/sm90/attention_sm90.h"
#include "backend/cuda/attention/sm90_fp8/attention_sm90_fp8.h"
#include "backend/cuda/attention/sm90_fp8/consumer.cuh"
#include "backend/cuda/attention/sm90_fp8/copies.cuh"
#include "backend/cuda/attention/sm90_fp8/layout.cuh"
#include "backend/cuda/attention/sm90_fp8/quantize.h"
#include "backend/cuda/attention/sm90_fp8/quantize_normed.h"
#include "backend/cuda/device/device.h"
#include "base/ceil_div.h"

namespace calibatt::cuda::sm90_fp8 {
namespace {

template <int kHeadDim, class Type>
__global__ void __launch_bounds__(sm90::kThreads, 1) attention_kernel(const __grid_constant__ KernelParams params) {
  extern __shared__ uint8_t raw[];
  using Shared = SharedMemory<kHeadDim>;
  Shared& shared = *reinterpret_cast<Shared*>(raw + (-ptx::shared_address(raw) & 1023));
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      ptx::mbarrier_init(&shared.queries_full[i], 1);
      ptx::mbarrier_init(&shared.queries_empty[i], 32 * kConsumerWarps);
    }
    for (int i = 0; i < kStages; ++i) {
      ptx::mbarrier_init(&shared.keys_full[i], 1);
      ptx::mbarrier_init(&shared.keys_empty[i], kConsumerWarps);
      ptx::mbarrier_init(&shared.values_full[i], 1);
      ptx::mbarrier_init(&shared.values_empty[i], kConsumerWarps);
    }
    ptx::mbarrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(sm90::kProducerRegisters));
    if (threadIdx.x == 0) sm90::Producer(params.base, ChunkCopies<kHeadDim>{params, shared}).run();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(sm90::kConsumerRegisters));
    Consumer<kHeadDim, Type>(params, shared).run();
  }
}

template <int kHeadDim, class Type>
void launch_kernel(const KernelParams& params, int num_blocks, cudaStream_t stream) {
  constexpr int kBytes = sizeof(SharedMemory<kHeadDim>) + 1024;  // to align
  static_assert(kBytes <= 227 * 1024);
  const auto kernel = attention_kernel<kHeadDim, Type>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
        "attention in 8 bits: reserving shared memory");
  kernel<<<num_blocks, sm90::kThreads, kBytes, stream>>>(params);
  check(cudaGetLastError(), "attention in 8 bits: launch");
}

}  // namespace

namespace {

std::string normed_refusal(const AttentionArgs& args) {
  if (args.batch > 1) return "queries and keys of several batch entries are normalised beforehand";
  if (!fits_normed(args.num_heads, args.head_dim)) {
    return std::to_string(args.num_heads) + " heads are too many to be normalised in the pass that makes their bytes";
  }
  const bool packed = args.q.head_stride == args.head_dim && args.k.head_stride == args.head_dim;
  if (!packed && args.num_heads > 1) return "heads to be normalised together do not lie behind each other";
  for (const float* pointer : {args.norm.query_weight, args.norm.key_weight, args.norm.cos, args.norm.signed_sin}) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) return "a norm's weight or rotation is not aligned to 16 bytes";
  }
  return {};
}

}  // namespace

std::string refusal(const AttentionArgs& args) {
  if (args.block_energy != nullptr) return "block energy is measured in 16 bits";
  if (args.row_lse != nullptr) return "row sums are measured in 16 bits";
  if (std::string reason = sm90::refusal(args); !reason.empty()) return reason;
  if (args.norm.pending) {
    if (std::string reason = normed_refusal(args); !reason.empty()) return reason;
  }
  const Quantized sizes = place_quantized(args, nullptr);
  if (sizes.query_rows / kChunkKeys + sizes.num_chunks > 65535 || args.batch > 65535) {
    return "it has more tokens or batch entries than a grid holds";
  }
  return {};
}

KernelParams prepare(const AttentionArgs& args, cudaStream_t stream) {
  KernelParams params = {};
  params.base.args = args;
  params.base.num_chunks = ceil_div(args.num_keys, kChunkKeys);
  params.base.rows_per_tile = kTileRows;
  params.base.tiles_per_batch = args.schedule.tiles != nullptr
                                    ? args.schedule.num_tiles
                                    : static_cast<uint32_t>(args.num_heads) * ceil_div(args.num_queries, kTileRows);
  if (args.num_summaries > 0) {
    const int last_size = args.num_keys - (args.num_summaries - 1) * args.block_k;
    params.summary_bias = std::log2(static_cast<float>(args.block_k));
    params.last_summary_bias = std::log2(static_cast<float>(last_size));
  }
  params.inputs = place_quantized(args, static_cast<char*>(args.workspace) + kCounterBytes);
  check(cudaMemsetAsync(args.workspace, 0, sizeof(uint32_t), stream), "attention in 8 bits: clearing the tile counter");
  quantize(args, params.inputs, stream);
  return params;
}

void launch(const AttentionArgs& args, int num_multiprocessors, cudaStream_t stream) {
  const KernelParams params = prepare(args, stream);
  const int64_t units = static_cast<int64_t>(params.base.tiles_per_batch) * args.batch;
  const int num_blocks = static_cast<int>(std::min<int64_t>(units, num_multiprocessors));
  const bool half = args.dtype == DType::kF16;
  if (args.head_dim == 64) {
    half ? launch_kernel<64, __half>(params, num_blocks, stream)
         : launch_kernel<64, __nv_bfloat16>(params, num_blocks, stream);
  } else {
    half ? launch_kernel<128, __half>(params, num_blocks, stream)
         : launch_kernel<128, __nv_bfloat16>(params, num_blocks, stream);
  }
}

}  // namespace calibatt::cuda::sm90_fp8
