#pragma once

#include "backend/activation.h"

namespace calibatt::cuda {

__device__ __forceinline__ float activated(Activation activation, float x) {
  if (activation == Activation::kSiLU) return x / (1.0f + expf(-x));
  if (activation == Activation::kTanh) return tanhf(x);
  if (activation == Activation::kGeluTanh) {
    return 0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
  }
  return x;
}

}  // namespace calibatt::cuda
