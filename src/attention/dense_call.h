#pragma once

#include <cmath>

#include "backend/attention_call.h"
#include "sparsity/geometry.h"

namespace calibatt {

/// Every head attends to everything.
inline AttentionCall dense_call(const AttentionGeometry& geometry, ConstHeadsView q, ConstHeadsView k, ConstHeadsView v,
                                HeadsView out) {
  AttentionCall call;
  call.q = q;
  call.k = k;
  call.v = v;
  call.out = out;
  call.num_heads = geometry.heads;
  call.head_dim = geometry.head_dim;
  call.scale = 1.0f / std::sqrt(static_cast<float>(geometry.head_dim));
  call.block_q = geometry.block_q;
  call.block_k = geometry.block_k;
  return call;
}

}  // namespace calibatt
