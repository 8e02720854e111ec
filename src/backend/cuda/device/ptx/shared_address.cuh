#pragma once

#include <cstdint>

namespace calibatt::cuda::ptx {

/// The 32-bit address that shared-memory instructions take.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

}  // namespace calibatt::cuda::ptx
