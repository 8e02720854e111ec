#pragma once

#include <span>
#include <string_view>

#include "backend/attention_call.h"
#include "backend/cpu/attention/simd/tile_ops.h"

namespace calibatt::cpu {

/// An instruction set with tile kernels of its own.
struct SimdKernel {
  std::string_view name;
  bool (*cpu_supports)();  ///< whether this machine has the instructions
  TileOps (*ops)();        ///< only to be called where it has
};

/// Float arithmetic, F32 or BF16 inputs; the widest vectors first.
std::span<const SimdKernel> float_kernels();
/// BF16 inputs, products of BF16 pairs accumulated in float.
std::span<const SimdKernel> bf16_kernels();

TileOps avx512_bf16_tile_ops();  ///< only in builds with CALIBATT_HAVE_AVX512_BF16

/// Runs a valid call with these tiles: packs keys and values of a few heads at a time, then computes their query blocks
/// in parallel, the longest first. Memory beyond inputs and outputs stays below 32 MiB, or one head's packed keys and
/// values where those are larger.
void run_tiles(const AttentionCall& call, const TileOps& ops);

}  // namespace calibatt::cpu
