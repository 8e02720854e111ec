#pragma once

#include <cstdint>

#include "backend/cuda/device/ptx/shared_address.cuh"

/// Blocks of a cluster (PTX ISA, "barrier.cluster", "mapa"; sm_90): they run at the same time and read each other's
/// shared memory.
namespace calibatt::cuda::ptx {

/// All threads of all blocks of the cluster meet; what they have written before is visible behind it.
__device__ __forceinline__ void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/// The float at the same place of block `rank`'s shared memory.
__device__ __forceinline__ float load_of_block(const float* here, uint32_t rank) {
  float value;
  asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %1, %2;\nld.shared::cluster.f32 %0, [there];\n}\n"
               : "=f"(value)
               : "r"(shared_address(here)), "r"(rank)
               : "memory");
  return value;
}

}  // namespace calibatt::cuda::ptx
