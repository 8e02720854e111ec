#pragma once

#include <cuda_runtime_api.h>

#include <span>

#include "backend/head_rows.h"

namespace calibatt::cuda {

/// to[t, move.to, :] = from[t, move.from, :] for every token and move: one type, as many tokens, no overlap.
struct HeadCopy {
  ConstHeadsView from;
  HeadsView to;
  std::span<const HeadMove> moves;
};

/// All of them at the same time, by a kernel on the stream. `from` may be memory of another GPU that this one may read:
/// copies that begin there and copies that begin here then go on beside each other. Rows and strides of any size.
void copy_heads(std::span<const HeadCopy> copies, int head_dim, cudaStream_t stream);

}  // namespace calibatt::cuda
