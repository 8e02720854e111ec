#pragma once

#include "clock.h"

namespace calibatt::bench {

/// Floating-point operations per second of nothing but independent float fused multiply-adds in registers, on all
/// threads, with the widest vectors this processor has.
double fma_peak(Clock clock);

/// The same of bfloat16 dot products (AVX-512 BF16); 0 where there are none.
double bf16_peak(Clock clock);

}  // namespace calibatt::bench
