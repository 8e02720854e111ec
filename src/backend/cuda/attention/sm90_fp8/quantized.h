#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "backend/cuda/attention/attention_args.h"

/// A call's inputs in 8 bits, as the kernel of sm90_fp8 reads them.
///
/// Queries: signed bytes, a scale for each row. Keys, less their mean: signed bytes, a scale for each chunk of 64. The
/// mean is a constant of the call's head: it moves all logits of a row alike, and a channel that is large for all keys
/// does not coarsen the others. Values, less their mean: e4m3, a scale for each channel. Their mean is added back to
/// the normalised output, so that the tensor core's short sum holds differences only. What is added is their mean less
/// that of the rounded differences: inputs in 16 bits lie on a grid, so a channel's rounding errors do not cancel, and
/// what is left of them in the mean does not shrink with the number of keys, as an average of values does. Summaries
/// lie behind the keys as chunks of their own, with scales of their own; of values, a channel's scale serves both (a
/// block's mean exceeds no value).
///
/// Chunks are stored as they lie in shared memory, so that a copy is one run of bytes: rows in the swizzle of their
/// length, values transposed with their keys in the order of ptx::key_slot.
namespace calibatt::cuda::sm90_fp8 {

/// Largest magnitudes of the two types.
inline constexpr float kLargestByte = 127.0f, kLargestE4m3 = 448.0f;

/// Where everything lies; `heads` below is batch · num_heads, batch entries first.
struct Quantized {
  uint8_t* q = nullptr;       ///< [heads][query_rows][head_dim], swizzled
  float* q_scale = nullptr;   ///< [heads][query_rows]: a logit in log2 units is this · k_scale · Σ q k
  uint8_t* k = nullptr;       ///< [heads][num_chunks][64 keys][head_dim], swizzled
  float4* k_scale = nullptr;  ///< [heads][num_chunks], the scale in x: 16 bytes are the least that is copied
  uint8_t* v = nullptr;       ///< [heads][num_chunks][head_dim][64 keys], swizzled
  float* v_scale = nullptr;   ///< [heads][head_dim]
  float* k_mean = nullptr;    ///< [heads][head_dim]
  float* v_mean = nullptr;    ///< [heads][head_dim]: once all is quantised, what the output gets back (above)
  float* v_sum = nullptr;     ///< [heads][key_chunks][head_dim]: sums of the bytes of v
  float* partial = nullptr;   ///< [heads][num_splits][4][head_dim]: sums of k and v, least and largest v
  int query_rows = 0;         ///< of a head, a multiple of 64
  int key_chunks = 0;         ///< of keys; then those of summaries
  int num_chunks = 0;         ///< of both; summaries are filled up to whole steps of two
  int num_splits = 0;
};

/// The layout of a call's inputs at `base` (256-byte aligned).
Quantized place_quantized(const AttentionArgs& args, void* base);
/// Bytes from `base` on that place_quantized hands out.
size_t quantized_bytes(const AttentionArgs& args);

/// Enqueues the kernels that fill it; bf16 or half precision inputs whose rows start at multiples of 16 bytes, head_dim
/// 64 or 128. A NaN in a query or key makes its row's or chunk's scale NaN, so that it reaches the output. Throws
/// Error(kDevice) when a launch is refused.
void quantize(const AttentionArgs& args, const Quantized& to, cudaStream_t stream);

}  // namespace calibatt::cuda::sm90_fp8
