#pragma once

#include <cstdint>

#include "backend/cuda/device/ptx/shared_address.cuh"

/// Shared memory → matrix fragments (PTX ISA, "ldmatrix", sm_75): four 8×8 matrices of 16-bit elements at once. Lane l
/// gives the address of row l mod 8 of matrix l / 8 (16 bytes, 16-byte aligned); register i receives, of matrix i, the
/// elements (l / 4, 2 (l mod 4) and the next), or with `trans` those of its transpose.
namespace calibatt::cuda::ptx {

__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

}  // namespace calibatt::cuda::ptx
