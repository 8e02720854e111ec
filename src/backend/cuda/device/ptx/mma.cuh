#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

/// Warp-wide matrix products of sm_80 (PTX ISA, "mma.m16n8k16"), 16-bit floats in, float accumulators.
///
/// What lane l of the warp holds, with g = l / 4 and t = l mod 4; each 32-bit register is two neighbours along k:
///   A (16×16, row-major): a[0] (g, 2t), a[1] (g + 8, 2t), a[2] (g, 2t + 8), a[3] (g + 8, 2t + 8)
///   B (16×8, by columns): b0 (k = 2t, n = g), b1 (k = 2t + 8, n = g)
///   C, D (16×8):          c[0], c[1] (g, 2t and 2t + 1), c[2], c[3] (g + 8, the same)
/// So the C of two neighbouring products, packed to 16 bits, is the A of the next product: softmax weights never leave
/// their registers.
namespace calibatt::cuda::ptx {

/// d += a · b.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    static_assert(std::is_same_v<T, __nv_bfloat16>);
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

}  // namespace calibatt::cuda::ptx
