// Attention for Hopper. One block of three warpgroups stays on each multiprocessor and takes tiles (up to 128 query
// rows of one head, and the keys they see) from a counter until none is left:
//   producer.cuh  one thread walks a tile's chunks of 64 keys and has the copy engine fill two stages of 128 keys and
//   values; consumer.cuh  two warpgroups of 64 rows: S = Q Kᵀ, softmax, O += P V; the next S is computed under this
//   softmax; softmax.cuh   on accumulators, with a reference that moves seldom; masks; the biases of summary tokens;
//   epilogue.cuh  normalised rows to their tokens (one, or all that copy an anchor);
//   energy.cuh    block energy in the same pass;
//   layout.cuh    sizes, shared memory, what passes between the roles.
// A skipped block costs nothing: it is never asked for. Any two chunks make a step, so masks may be as fine as 64 keys.
#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "backend/cuda/attention/sm90/attention_sm90.h"
#include "backend/cuda/attention/sm90/consumer.cuh"
#include "backend/cuda/attention/sm90/layout.cuh"
#include "backend/cuda/attention/sm90/producer.cuh"
#include "base/ceil_div.h"
#include "base/error.h"

namespace calibatt::cuda::sm90 {
namespace {

template <int kHeadDim, class Type, EnergyColumns kEnergyColumns>
__global__ void __launch_bounds__(kThreads, 1)
    attention_kernel(const __grid_constant__ KernelParams params, const __grid_constant__ TensorMaps maps) {
  extern __shared__ uint8_t raw[];
  using Shared = SharedMemory<kHeadDim>;
  Shared& shared = *reinterpret_cast<Shared*>(raw + (-ptx::shared_address(raw) & 1023));
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      ptx::mbarrier_init(&shared.queries_full[i], 1);
      ptx::mbarrier_init(&shared.queries_empty[i], kConsumerWarps);
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
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kProducerRegisters));
    if (threadIdx.x == 0) Producer(params, TensorCopies<kHeadDim>{maps, shared}).run();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kConsumerRegisters));
    Consumer<kHeadDim, Type, kEnergyColumns>(params, shared).run();
  }
}

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw Error(ErrorKind::kDevice, std::string("attention on the GPU: ") + what + ": " + cudaGetErrorString(status));
  }
}

/// Boxes of 64 tokens × 64 columns in the 128-byte swizzle; what lies outside reads as zero.
CUtensorMap tensor_map(const DeviceHeads& heads, const AttentionArgs& args, int num_tokens) {
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result),
          "looking up cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  if (encode == nullptr) throw Error(ErrorKind::kDevice, "attention on the GPU: the driver is older than CUDA 12");
  const cuuint64_t sizes[4] = {static_cast<cuuint64_t>(args.head_dim), static_cast<cuuint64_t>(num_tokens),
                               static_cast<cuuint64_t>(args.num_heads), static_cast<cuuint64_t>(args.batch)};
  // A stride along an axis of one element is never used, but must be valid.
  const auto bytes = [&](int64_t stride, int64_t count) {
    return static_cast<cuuint64_t>(count > 1 ? stride : args.head_dim) * dtype_size(args.dtype);
  };
  const cuuint64_t strides[3] = {bytes(heads.token_stride, num_tokens), bytes(heads.head_stride, args.num_heads),
                                 bytes(heads.batch_stride, args.batch)};
  const cuuint32_t box[4] = {kPanelColumns, kChunkKeys, 1, 1}, steps[4] = {1, 1, 1, 1};
  CUtensorMap map;
  const CUresult status =
      encode(&map, args.dtype == DType::kF16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4,
             heads.data, sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw Error(ErrorKind::kDevice,
                "attention on the GPU: cuTensorMapEncodeTiled failed with " + std::to_string(static_cast<int>(status)));
  }
  return map;
}

EnergyColumns energy_kind(const AttentionArgs& args) {
  if (args.block_energy == nullptr) return EnergyColumns::kNone;
  return args.block_k % kStepKeys == 0 ? EnergyColumns::kSteps : EnergyColumns::kChunks;
}

KernelParams make_params(const AttentionArgs& args) {
  KernelParams params = {.args = args};
  params.num_chunks = ceil_div(args.num_keys, kChunkKeys);
  params.rows_per_tile = args.block_energy != nullptr ? args.block_q : kTileRows;
  params.tiles_per_batch = args.schedule.tiles != nullptr ? args.schedule.num_tiles
                                                          : static_cast<uint32_t>(args.num_heads) *
                                                                ceil_div(args.num_queries, params.rows_per_tile);
  if (args.num_summaries > 0) {
    const int last_size = args.num_keys - (args.num_summaries - 1) * args.block_k;
    params.summary_bias = std::log2(static_cast<float>(args.block_k)) / args.scale_log2;
    params.last_summary_bias = std::log2(static_cast<float>(last_size)) / args.scale_log2;
  }
  params.last_key_bias = args.last_key_bias_log2 / args.scale_log2;
  params.energy_columns = energy_columns(energy_kind(args), params.num_chunks);
  return params;
}

template <int kHeadDim, class Type, EnergyColumns kEnergyColumns>
void launch_kernel(const KernelParams& params, const TensorMaps& maps, int num_blocks, cudaStream_t stream) {
  constexpr int kBytes = sizeof(SharedMemory<kHeadDim>) + 1024;  // to align
  const auto kernel = attention_kernel<kHeadDim, Type, kEnergyColumns>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes), "reserving shared memory");
  kernel<<<num_blocks, kThreads, kBytes, stream>>>(params, maps);
  check(cudaGetLastError(), "launch");
}

/// Run-time values become template arguments: visit(head dim, input type, energy kind).
template <class Visit>
void dispatch(const AttentionArgs& args, Visit visit) {
  const auto with_energy = [&](auto head_dim, auto type) {
    switch (energy_kind(args)) {
      case EnergyColumns::kNone:
        return visit(head_dim, type, std::integral_constant<EnergyColumns, EnergyColumns::kNone>{});
      case EnergyColumns::kSteps:
        return visit(head_dim, type, std::integral_constant<EnergyColumns, EnergyColumns::kSteps>{});
      case EnergyColumns::kChunks:
        return visit(head_dim, type, std::integral_constant<EnergyColumns, EnergyColumns::kChunks>{});
    }
  };
  const auto with_type = [&](auto head_dim) {
    return args.dtype == DType::kF16 ? with_energy(head_dim, __half{}) : with_energy(head_dim, __nv_bfloat16{});
  };
  return args.head_dim == 64 ? with_type(std::integral_constant<int, 64>{})
                             : with_type(std::integral_constant<int, 128>{});
}

std::string view_refusal(const DeviceHeads& heads, const char* name, DType dtype) {
  const int64_t align = 16 / static_cast<int64_t>(dtype_size(dtype));
  if (reinterpret_cast<uintptr_t>(heads.data) % 16 != 0 || heads.token_stride % align != 0 ||
      heads.head_stride % align != 0 || heads.batch_stride % align != 0) {
    return std::string("rows of ") + name + " do not start at multiples of 16 bytes";
  }
  return {};
}

}  // namespace

std::string refusal(const AttentionArgs& args) {
  if (args.head_dim != 64 && args.head_dim != 128) return "head_dim is neither 64 nor 128";
  if (!(args.scale_log2 > 0)) return "the scale is not positive";
  for (const auto& [heads, name] : {std::pair{&args.q, "q"}, std::pair{&args.k, "k"}, std::pair{&args.v, "v"}}) {
    if (std::string reason = view_refusal(*heads, name, args.dtype); !reason.empty()) return reason;
  }
  if (std::string reason = view_refusal(args.out, "out", args.out_dtype()); !reason.empty()) return reason;
  if (args.block_energy != nullptr) {
    if (args.block_k % kStepKeys != 0 && args.block_k != kChunkKeys) {
      return "block energy needs key blocks of 64 tokens or a multiple of 128";
    }
    if (args.block_q > kTileRows) return "block energy needs query blocks of at most 128 tokens";
  }
  return {};
}

size_t workspace_bytes(const AttentionArgs& args, int num_multiprocessors) {
  const KernelParams params = make_params(args);
  return 256 + static_cast<size_t>(num_multiprocessors * energy_bytes(params.energy_columns));
}

void launch(const AttentionArgs& args, int num_multiprocessors, cudaStream_t stream) {
  const KernelParams params = make_params(args);
  TensorMaps maps = {};
  maps.q = tensor_map(args.q, args, args.num_queries);
  maps.k = tensor_map(args.k, args, args.num_keys);
  maps.v = tensor_map(args.v, args, args.num_keys);
  if (args.num_summaries > 0) {
    maps.summary_k = tensor_map(args.summary_k, args, args.num_summaries);
    maps.summary_v = tensor_map(args.summary_v, args, args.num_summaries);
  }
  check(cudaMemsetAsync(args.workspace, 0, sizeof(uint32_t), stream), "clearing the tile counter");
  const int64_t units = static_cast<int64_t>(params.tiles_per_batch) * args.batch;
  const int num_blocks = static_cast<int>(std::min<int64_t>(units, num_multiprocessors));
  dispatch(args, [&](auto head_dim, auto type, auto energy) {
    launch_kernel<head_dim(), decltype(type), energy()>(params, maps, num_blocks, stream);
  });
}

}  // namespace calibatt::cuda::sm90
