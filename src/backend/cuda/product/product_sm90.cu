// Products of int8 matrices for Hopper. A block stays on each multiprocessor and takes tiles of 128 × 256. One thread
// copies operands to a ring of stages (producer.cuh), two warpgroups multiply what is there, scale the sums and hand
// them to the copy engine (consumer.cuh).
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "backend/cuda/device/device.h"
#include "backend/cuda/product/consumer.cuh"
#include "backend/cuda/product/producer.cuh"
#include "backend/cuda/product/product_sm90.h"
#include "base/ceil_div.h"
#include "base/error.h"

namespace calibatt::cuda::product {
namespace {

constexpr int kCapability = 90;
constexpr int kColumnThreads = 256;

__global__ void __launch_bounds__(kColumnThreads)
    columns_kernel(const float* scales, const float* bias, const float* gate, ColumnPair* out, int pairs) {
  const int i = static_cast<int>(blockIdx.x) * kColumnThreads + static_cast<int>(threadIdx.x);
  if (i >= pairs) return;
  const auto pair = [i](const float* from, float otherwise) {
    return from != nullptr ? make_float2(from[2 * i], from[2 * i + 1]) : make_float2(otherwise, otherwise);
  };
  const float2 scale = pair(scales, 1), add = pair(bias, 0), by = pair(gate, 1);
  out[i] = {{scale.x * by.x, scale.y * by.y}, {add.x * by.x, add.y * by.y}};
}

template <class Out, bool kAdd>
__global__ void __launch_bounds__(kThreads, 1) product_kernel(const __grid_constant__ Params params) {
  extern __shared__ __align__(1024) uint8_t raw[];
  Shared& shared = *reinterpret_cast<Shared*>(raw);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      ptx::mbarrier_init(&shared.full[i], 1);
      ptx::mbarrier_init(&shared.empty[i], kConsumerWarps);
    }
    ptx::mbarrier_init(&shared.columns_full, 1);
    ptx::mbarrier_init(&shared.columns_empty, kConsumerWarps);
    ptx::mbarrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kProducerRegisters));
    if (threadIdx.x == 0) produce(params, shared);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kConsumerRegisters));
    Consumer<Out, kAdd>(params, shared).run();
  }
}

/// Boxes whose rows are 128 bytes, in the swizzle of as many.
CUtensorMap tensor_map(const void* data, DType dtype, int64_t rows, int64_t columns, int box_rows) {
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result),
          "looking up cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  if (encode == nullptr) throw Error(ErrorKind::kDevice, "products on the GPU: the driver is older than CUDA 12");
  const CUtensorMapDataType type = dtype == DType::kF32    ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
                                   : dtype == DType::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                   : dtype == DType::kF16  ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                           : CU_TENSOR_MAP_DATA_TYPE_UINT8;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {sizes[0] * dtype_size(dtype)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(kPartRowBytes / dtype_size(dtype)),
                             static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  CUtensorMap map;
  const CUresult status =
      encode(&map, type, 2, const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status == CUDA_SUCCESS) return map;
  throw Error(ErrorKind::kDevice,
              "products on the GPU: cuTensorMapEncodeTiled failed with " + std::to_string(static_cast<int>(status)));
}

template <class Out, bool kAdd>
void launch(const Params& params, cudaStream_t stream) {
  const auto kernel = product_kernel<Out, kAdd>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared)),
        "products: reserving shared memory");
  const int blocks = std::min(current_device().num_sms, params.row_tiles * params.column_tiles);
  kernel<<<blocks, kThreads, sizeof(Shared), stream>>>(params);
  check(cudaGetLastError(), "products: launch");
}

}  // namespace

void require_device(const DeviceInfo& device) {
  if (device.compute_capability == kCapability) return;
  throw Error(ErrorKind::kUsage,
              "--weights-dtype int8: its products are for Hopper (compute capability 9.0, such as the "
              "H100 and H200), and " +
                  device.name + " has " + std::to_string(device.compute_capability / 10) + "." +
                  std::to_string(device.compute_capability % 10) + "; use --weights-dtype fp8 or bf16");
}

std::string refusal(const ProductCall& call, int compute_capability) {
  if (compute_capability != kCapability) return "the GPU is no Hopper";
  if (call.in_features % 16 != 0) return "its inputs are no multiple of 16";
  if (call.out_features % 8 != 0) return "its outputs are no multiple of 8";
  const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  if (!aligned(call.input) || !aligned(call.weight) || !aligned(call.out)) {
    return "a matrix does not start at a multiple of 16 bytes";
  }
  return {};
}

size_t workspace_bytes(const ProductCall& call) {
  return static_cast<size_t>(call.out_features) / 2 * sizeof(ColumnPair);
}

void run(const ProductCall& call, cudaStream_t stream) {
  CALIBATT_ASSERT(!call.accumulate || call.out_dtype == DType::kF32);
  CALIBATT_ASSERT(refusal(call, current_device().compute_capability).empty());
  if (call.rows == 0) return;
  auto* const columns = static_cast<ColumnPair*>(call.workspace);
  const int pairs = static_cast<int>(call.out_features / 2);
  columns_kernel<<<static_cast<unsigned>(ceil_div(pairs, kColumnThreads)), kColumnThreads, 0, stream>>>(
      call.weight_scales, call.bias, call.gate, columns, pairs);
  check(cudaGetLastError(), "scales of columns: launch");

  Params params = {};
  params.input = tensor_map(call.input, DType::kI8, call.rows, call.in_features, kTileRows);
  params.weight = tensor_map(call.weight, DType::kI8, call.out_features, call.in_features, kTileColumns);
  params.out = tensor_map(call.out, call.out_dtype, call.rows, call.out_features, kWarpRows);
  params.row_scales = call.input_scales;
  params.columns = columns;
  params.rows = static_cast<int>(call.rows);
  params.out_features = static_cast<int>(call.out_features);
  params.in_features = static_cast<int>(call.in_features);
  params.row_tiles = ceil_div(params.rows, kTileRows);
  params.column_tiles = ceil_div(params.out_features, kTileColumns);
  if (call.out_dtype == DType::kBF16) return launch<__nv_bfloat16, false>(params, stream);
  if (call.out_dtype == DType::kF16) return launch<__half, false>(params, stream);
  CALIBATT_ASSERT(call.out_dtype == DType::kF32);
  call.accumulate ? launch<float, true>(params, stream) : launch<float, false>(params, stream);
}

}  // namespace calibatt::cuda::product
