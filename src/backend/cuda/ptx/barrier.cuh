#pragma once

/// Barriers among the warps of a block (PTX ISA, "bar.sync", any architecture).
namespace calibatt::cuda::ptx {

/// All kThreads threads of a block, from wherever in the code each warp comes. __syncthreads() must not be used for
/// that: it has to be one call that everybody reaches.
template <int kThreads>
__device__ __forceinline__ void block_barrier() {
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
}

}  // namespace calibatt::cuda::ptx
