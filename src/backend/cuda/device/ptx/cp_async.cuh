#pragma once

#include <cstdint>

/// Copies global → shared memory behind the thread's back (PTX ISA, "cp.async", sm_80). 16 bytes each (or 8), both
/// sides aligned to as much; those of 16 bytes go past the first-level cache.
namespace calibatt::cuda::ptx {

__device__ __forceinline__ void cp_async_16(uint32_t shared, const void* global) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}

__device__ __forceinline__ void cp_async_8(uint32_t shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(shared), "l"(global) : "memory");
}

/// Writes 16 zero bytes when not `wanted`; then `global` is not read, but must still be a valid address.
__device__ __forceinline__ void cp_async_16_or_zero(uint32_t shared, const void* global, bool wanted) {
  const int bytes = wanted ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(bytes)
               : "memory");
}

/// Closes a group: this thread's copies since the last one. A group may be empty.
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

/// Waits until at most the kNewer newest groups of this thread are still under way. Other threads' copies are visible
/// only behind a barrier that follows.
template <int kNewer>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kNewer) : "memory");
}

/// Waits for all of this thread's copies, whether a group was closed or not.
__device__ __forceinline__ void cp_async_wait_all() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

}  // namespace calibatt::cuda::ptx
