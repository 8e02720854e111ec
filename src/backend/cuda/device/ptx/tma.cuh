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

/// The same of a matrix.
__device__ __forceinline__ void tma_load(void* shared, const CUtensorMap* map, uint64_t* barrier, int c0, int c1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          shared_address(shared)),
      "l"(reinterpret_cast<uint64_t>(map)), "r"(shared_address(barrier)), "r"(c0), "r"(c1)
      : "memory");
}

/// Writes one box of a matrix from shared memory, or (F32) adds it to what is there; elements outside the matrix are
/// left out. fence_async_proxy comes before, by the threads that made the box. Belongs to this thread's bulk group.
template <bool kAdd>
__device__ __forceinline__ void tma_store(const CUtensorMap* map, uint32_t shared, int c0, int c1) {
  if constexpr (kAdd) {
    asm volatile("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.bulk_group [%0, {%2, %3}], [%1];" ::"l"(
                     reinterpret_cast<uint64_t>(map)),
                 "r"(shared), "r"(c0), "r"(c1)
                 : "memory");
  } else {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(
                     reinterpret_cast<uint64_t>(map)),
                 "r"(shared), "r"(c0), "r"(c1)
                 : "memory");
  }
}

/// Closes a group of this thread's stores; it may be empty.
__device__ __forceinline__ void bulk_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
/// Until at most the kNewer newest groups may still read shared memory.
template <int kNewer>
__device__ __forceinline__ void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kNewer) : "memory");
}
/// Until all groups are written.
__device__ __forceinline__ void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
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
