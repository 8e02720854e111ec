#pragma once

#include <cuda.h>

#include <cstdint>

#include "backend/cuda/device/ptx/mbarrier.cuh"

/// Bulk tensor copies of sm_90 (PTX ISA, "cp.async.bulk.tensor", "cp.async.bulk").
namespace calibatt::cuda::ptx {

/// Copies one box of a 4-D tensor to shared memory; elements outside the tensor become zero. The barrier gets the
/// box's bytes. `c0` is the coordinate of the contiguous dimension.
__device__ __forceinline__ void tma_load(void* shared, const CUtensorMap* map, uint64_t* barrier, int c0, int c1,
                                         int c2, int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(shared_address(shared)),
      "l"(reinterpret_cast<uint64_t>(map)), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}

/// Copies `bytes` consecutive bytes to shared memory; both places and the number are multiples of 16. The barrier gets
/// the bytes.
__device__ __forceinline__ void bulk_load(void* shared, const void* global, uint32_t bytes, uint64_t* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}

/// Orders this thread's ordinary shared-memory writes before later reads by the tensor cores or the copy engine.
__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace calibatt::cuda::ptx
