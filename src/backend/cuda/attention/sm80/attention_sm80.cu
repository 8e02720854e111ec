#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "backend/cuda/attention/sm80/attention_kernel.cuh"
#include "backend/cuda/attention/sm80/attention_sm80.h"
#include "backend/cuda/device/device.h"
#include "base/ceil_div.h"

namespace calibatt::cuda::sm80 {
namespace {

constexpr int64_t kScratchOffset = 256;                                  ///< of the workspace: behind the tile counter
constexpr int64_t kMaxTokenBytes = std::numeric_limits<int32_t>::max();  ///< from token to token

/// Calls visit(kernel, shape) with the kernel for the call's types and sizes.
template <class Visit>
void visit_kernel(const AttentionArgs& args, const Visit& visit) {
  const auto by_energy = [&]<class T, class Shape>(T*, Shape shape) {
    if (args.block_energy != nullptr) {
      visit(&attention_kernel<Shape, T, true>, shape);
    } else {
      visit(&attention_kernel<Shape, T, false>, shape);
    }
  };
  const auto by_type = [&](auto shape) {
    if (args.dtype == DType::kF16) {
      by_energy(static_cast<__half*>(nullptr), shape);
    } else {
      by_energy(static_cast<__nv_bfloat16*>(nullptr), shape);
    }
  };
  if (args.head_dim == 64) {
    by_type(TileShape<64>{});
  } else {
    by_type(TileShape<128>{});
  }
}

int64_t tiles_per_head(const AttentionArgs& args) {
  return ceil_div(args.num_queries, args.block_energy != nullptr ? args.block_q : kTileRows);
}

int64_t num_units(const AttentionArgs& args) {
  return args.batch * (args.schedule.tiles != nullptr ? static_cast<int64_t>(args.schedule.num_tiles)
                                                      : args.num_heads * tiles_per_head(args));
}

int64_t grid_size(const AttentionArgs& args, int num_sms) {
  const bool energy = args.block_energy != nullptr;
  const int blocks_per_sm =
      args.head_dim == 64 ? TileShape<64>::blocks_per_sm(energy) : TileShape<128>::blocks_per_sm(energy);
  return std::min(num_units(args), static_cast<int64_t>(num_sms) * blocks_per_sm);
}

/// Whether every row begins at a multiple of 16 bytes.
bool rows_are_aligned(const DeviceHeads& array, DType dtype) {
  const auto aligned = [&](int64_t stride) { return stride * static_cast<int64_t>(dtype_size(dtype)) % 16 == 0; };
  return reinterpret_cast<uintptr_t>(array.data) % 16 == 0 && aligned(array.batch_stride) &&
         aligned(array.token_stride) && aligned(array.head_stride);
}

bool tokens_are_too_far(const DeviceHeads& array, DType dtype) {
  return array.token_stride > kMaxTokenBytes / static_cast<int64_t>(dtype_size(dtype));
}

KernelCall kernel_call(const AttentionArgs& args) {
  KernelCall call{};
  call.args = args;
  const auto element_bytes = static_cast<int64_t>(dtype_size(args.dtype));
  call.key_token_bytes = static_cast<int>(args.k.token_stride * element_bytes);
  call.value_token_bytes = static_cast<int>(args.v.token_stride * element_bytes);
  call.num_units = static_cast<uint32_t>(num_units(args));
  call.tiles_per_head = static_cast<uint32_t>(tiles_per_head(args));
  call.tile_rows = args.block_energy != nullptr ? args.block_q : kTileRows;
  call.num_chunks = static_cast<uint32_t>(ceil_div(args.num_keys, kChunkKeys));
  call.tail_keys = args.num_keys - (static_cast<int>(call.num_chunks) - 1) * kChunkKeys;
  call.summary_chunks = static_cast<int>(ceil_div(args.num_summaries, kChunkKeys));
  if (args.num_summaries > 0) {
    const int last_tokens = args.num_keys - (args.num_summaries - 1) * args.block_k;
    call.summary_bias = std::log2(static_cast<float>(args.block_k)) / args.scale_log2;
    call.last_summary_bias = std::log2(static_cast<float>(last_tokens)) / args.scale_log2;
  }
  call.last_key_bias = args.last_key_bias_log2 / args.scale_log2;
  call.out_rows_aligned = rows_are_aligned(args.out, args.out_dtype());
  call.chunk_weights = reinterpret_cast<float*>(static_cast<char*>(args.workspace) + kScratchOffset);
  return call;
}

}  // namespace

std::string refusal(const AttentionArgs& args) {
  if (args.head_dim != 64 && args.head_dim != 128) {
    return "it has head dims 64 and 128, not " + std::to_string(args.head_dim);
  }
  if (!(args.scale_log2 > 1e-30f)) return "it needs a positive scale";
  for (const auto& [array, name] : {std::pair{&args.q, "q"}, {&args.k, "k"}, {&args.v, "v"}}) {
    if (!rows_are_aligned(*array, args.dtype)) return std::string("the rows of ") + name + " are not 16-byte aligned";
    if (tokens_are_too_far(*array, args.dtype)) return std::string("the tokens of ") + name + " are over 2 GB apart";
  }
  for (const DeviceHeads* array : {&args.summary_k, &args.summary_v}) {
    if (args.num_summaries > 0 && (!rows_are_aligned(*array, args.dtype) || tokens_are_too_far(*array, args.dtype))) {
      return "the rows of the summaries are not 16-byte aligned, or over 2 GB apart";
    }
  }
  if (args.block_energy != nullptr) {
    if (args.block_k % kChunkKeys != 0) {
      return "block energy needs key blocks of a multiple of " + std::to_string(kChunkKeys) + " tokens";
    }
    if (args.block_q > kTileRows) {
      return "block energy needs query blocks of at most " + std::to_string(kTileRows) + " tokens";
    }
  }
  if (num_units(args) > std::numeric_limits<int32_t>::max()) return "it has more tiles than a 32-bit counter counts";
  return {};
}

size_t workspace_bytes(const AttentionArgs& args, int num_sms) {
  if (args.block_energy == nullptr) return kScratchOffset;
  const int64_t floats = grid_size(args, num_sms) * ceil_div(args.num_keys, kChunkKeys) * kTileRows;
  return static_cast<size_t>(kScratchOffset + floats * static_cast<int64_t>(sizeof(float)));
}

void launch(const AttentionArgs& args, int num_sms, cudaStream_t stream) {
  const KernelCall call = kernel_call(args);
  check(cudaMemsetAsync(args.workspace, 0, sizeof(uint32_t), stream),
        "attention, sm80 kernel: clearing the tile counter");
  visit_kernel(args, [&]<class Shape>(auto* kernel, Shape) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes),
          "attention, sm80 kernel: asking for shared memory");
    // All blocks must fit at once; the first-level cache is hardly used.
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared),
          "attention, sm80 kernel: asking for shared memory");
    kernel<<<static_cast<unsigned>(grid_size(args, num_sms)), Shape::kThreads, Shape::kSharedBytes, stream>>>(call);
    check(cudaGetLastError(), "attention, sm80 kernel: launch");
  });
}

}  // namespace calibatt::cuda::sm80
