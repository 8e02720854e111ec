// Attention in 8 bits with three consumer warpgroups, for head dim 128: two warps on each scheduler leave its units
// idle half of the time (docs/decisions/0008-eight-bit-attention.md), three fill more of it. What that changes:
//   layout.cuh     tiles of three times 64 rows (WideTile), which need not see the same chunks; stages of one chunk;
//   producer.cuh   chunks that any group sees are copied once, with a word that says which groups do;
//   consumer.cuh   queries in registers; the last product with values, then scores, and both are waited for;
//   softmax.cuh    the tensor core adds up the weights.
#include <algorithm>

#include "backend/cuda/attention/sm90_fp8/attention_sm90_fp8.h"
#include "backend/cuda/attention/sm90_fp8/wide/attention_wide.h"
#include "backend/cuda/attention/sm90_fp8/wide/consumer.cuh"
#include "backend/cuda/attention/sm90_fp8/wide/layout.cuh"
#include "backend/cuda/attention/sm90_fp8/wide/producer.cuh"
#include "backend/cuda/device/device.h"
#include "base/ceil_div.h"

namespace calibatt::cuda::sm90_fp8::wide {
namespace {

/// Row j has a one for every eighth key, from key j on. (The swizzle moves pieces of 16 keys, which are all alike.)
__device__ void fill_ones(SharedMemory& shared) {
  constexpr int kWords = kOnes * kChunkKeys / 4, kWordsOfRow = kChunkKeys / 4;
  for (int i = static_cast<int>(threadIdx.x); i < kStages * kWords; i += kThreads) {
    const int row = i % kWords / kWordsOfRow, first_key = i % 2 * 4, byte = row - first_key;
    const uint32_t one = byte >= 0 && byte < 4 ? 0x38u << 8 * byte : 0;  // in e4m3
    reinterpret_cast<uint32_t*>(shared.values[i / kWords] + kChunkBytes)[i % kWords] = one;
  }
  ptx::fence_async_proxy();
}

template <bool kPlanned, class Type>
__global__ void __launch_bounds__(kThreads, 1) attention_kernel(const __grid_constant__ KernelParams params) {
  extern __shared__ uint8_t raw[];
  SharedMemory& shared = *reinterpret_cast<SharedMemory*>(raw + (-ptx::shared_address(raw) & 1023));
  if (threadIdx.x == 0) {
    constexpr int kConsumerThreads = 128 * kGroups;
    ptx::mbarrier_init(&shared.queries_full, 1);
    ptx::mbarrier_init(&shared.queries_empty, kConsumerThreads);
    for (int i = 0; i < kStages; ++i) {
      ptx::mbarrier_init(&shared.full[i], 1);
      ptx::mbarrier_init(&shared.empty[i], kConsumerThreads);
    }
    ptx::mbarrier_init_fence();
  }
  fill_ones(shared);
  __syncthreads();
  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kProducerRegisters));
    if (threadIdx.x < 32) Producer(params, shared).run();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kConsumerRegisters));
    Consumer<kPlanned, Type>(params, shared).run();
  }
}

template <bool kPlanned, class Type>
void launch_kernel(const KernelParams& params, int num_blocks, cudaStream_t stream) {
  constexpr int kBytes = sizeof(SharedMemory) + 1024;  // to align
  static_assert(kBytes <= 227 * 1024);
  const auto kernel = attention_kernel<kPlanned, Type>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
        "attention in 8 bits: reserving shared memory");
  kernel<<<num_blocks, kThreads, kBytes, stream>>>(params);
  check(cudaGetLastError(), "attention in 8 bits: launch");
}

}  // namespace

std::string refusal(const AttentionArgs& args) {
  if (std::string reason = sm90_fp8::refusal(args); !reason.empty()) return reason;
  return args.head_dim == kHeadDim ? "" : "head_dim is not 128";
}

bool is_faster(const AttentionArgs& args) {
  constexpr float kLeastSharing = 1.9f;  // measured at 75,600 tokens: 7 % fewer cycles at 2.09, as many at 1.85
  return args.schedule.tiles == nullptr || args.schedule.sharing >= kLeastSharing;
}

void launch(const AttentionArgs& args, int num_multiprocessors, cudaStream_t stream) {
  KernelParams params = prepare(args, stream);
  const bool planned = args.schedule.tiles != nullptr;
  params.base.tiles_per_batch =
      planned ? args.schedule.num_wide_tiles
              : static_cast<uint32_t>(args.num_heads) * ceil_div(args.num_queries, kGroups * kGroupRows);
  const int64_t units = static_cast<int64_t>(params.base.tiles_per_batch) * args.batch;
  const int num_blocks = static_cast<int>(std::min<int64_t>(units, num_multiprocessors));
  if (args.dtype == DType::kF16) {
    planned ? launch_kernel<true, __half>(params, num_blocks, stream)
            : launch_kernel<false, __half>(params, num_blocks, stream);
  } else {
    planned ? launch_kernel<true, __nv_bfloat16>(params, num_blocks, stream)
            : launch_kernel<false, __nv_bfloat16>(params, num_blocks, stream);
  }
}

}  // namespace calibatt::cuda::sm90_fp8::wide
