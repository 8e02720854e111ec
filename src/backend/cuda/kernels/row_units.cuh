#pragma once

#include <cstdint>
#include <string>
#include <type_traits>

#include "base/error.h"

/// How kernels that hold a whole row in registers share it out: it is cut into units of n elements; thread t of a block
/// holds the units t, t + threads, …, kUnits of them. Five units of 256 threads are the 5,120 channels of the 14B model
/// in F32; many small blocks hide each other's reductions.
namespace calibatt::cuda {

inline constexpr int kUsualThreads = 256, kMaxThreads = 512, kMaxUnits = 8, kMaxWarps = kMaxThreads / 32;

constexpr int max_threads(int units) {
  return units == kMaxUnits ? kMaxThreads : kUsualThreads;
}

template <int value>
using Int = std::integral_constant<int, value>;

/// enqueue(Int<units per thread>, threads) with the fewest units that 256 threads can do with, or 8 and more threads.
/// kOnlyMost: 8 in any case, for forms too rare to be compiled for every number. Throws Error(kUsage) for rows that are
/// wider than that; what: of what kind they are.
template <bool kOnlyMost, class Enqueue>
void with_units(int64_t units, int64_t channels, const char* what, const Enqueue& enqueue) {
  const auto threads_for = [units](int64_t each) {
    return static_cast<unsigned>(((units + each - 1) / each + 31) / 32 * 32);
  };
  if (threads_for(kMaxUnits) > kMaxThreads) {
    throw Error(ErrorKind::kUsage, std::string(what) + " of " + std::to_string(channels) +
                                       " channels is wider than the CUDA kernels take; use the CPU backend");
  }
  if constexpr (!kOnlyMost) {
    if (threads_for(1) <= kUsualThreads) return enqueue(Int<1>(), threads_for(1));
    if (threads_for(2) <= kUsualThreads) return enqueue(Int<2>(), threads_for(2));
    if (threads_for(3) <= kUsualThreads) return enqueue(Int<3>(), threads_for(3));
    if (threads_for(5) <= kUsualThreads) return enqueue(Int<5>(), threads_for(5));
  }
  enqueue(Int<kMaxUnits>(), threads_for(kMaxUnits));
}

/// This thread's i-th unit, and whether the row has it: with_units leaves all threads all units but the last, save in
/// the widest form.
__device__ __forceinline__ int unit_of(int i) {
  return static_cast<int>(threadIdx.x + i * blockDim.x);
}
template <int kUnits>
__device__ __forceinline__ bool has_unit(int i, int units) {
  return (i < kUnits - 1 && kUnits != kMaxUnits) || unit_of(i) < units;
}

inline bool aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

}  // namespace calibatt::cuda
