#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/cuda/attention/attention_args.h"

struct float4;  // CUDA's

/// A call's inputs in 8 bits, as the kernel of sm90_fp8 reads them.
///
/// Queries: signed bytes, a scale for each row. Keys, less their mean: signed bytes, a scale for each chunk of 64. The
/// mean is a constant of the call's head: it moves all logits of a row alike, and a channel that is large for all keys
/// does not coarsen the others. Values, less their mean: e4m3, a scale for each channel. Their mean is added back to
/// the normalised output, so that the tensor core's short sum holds differences only. What is added is their mean less
/// that of the rounded differences: inputs in 16 bits lie on a grid, so a channel's rounding errors do not cancel, and
/// what is left of them in the mean does not shrink with the number of keys, as an average of values does. Summaries
/// lie behind the keys as chunks of their own, with scales of their own; of values, a channel's scale serves both (a
/// block's mean exceeds no value). They are made here, of the chunks' sums: AttentionArgs::summary_k and summary_v,
/// which are rounded to 16 bits, are not looked at.
///
/// Any constant may be taken from keys and from values, so where there are many their means are those of a sample, of
/// values without its least and its largest. A
/// channel's scale then leaves room for values kRoom times as far from it as the sample's, which costs nothing: e4m3 is
/// a floating type. Where a value lies farther still, the pass that makes the bytes tells, and its head's values are
/// made again with the channel's true range. No value is ever cut off.
///
/// Chunks are stored as they lie in shared memory, so that a copy is one run of bytes: rows in the swizzle of their
/// length, values transposed with their keys in the order of ptx::key_slot.
///
/// No CUDA types: what a call takes is asked on machines without, too.
namespace calibatt::cuda::sm90_fp8 {

/// Largest magnitudes of the two types.
inline constexpr float kLargestByte = 127.0f, kLargestE4m3 = 448.0f;

inline constexpr size_t kKeyScaleBytes = 16;  ///< of a chunk's

/// How far values may lie from a sampled mean, beside those of the sample, before they are made again.
inline constexpr float kRoom = 16.0f;

/// Tokens that stand for all: one of every `stride`, at places without a period (a grid's columns would be one).
struct Sample {
  int num_tokens = 0, stride = 1;

  constexpr int count() const { return (num_tokens + stride - 1) / stride; }
  constexpr int token(int i) const {
    const int at = i * stride + static_cast<int>((static_cast<uint32_t>(i) * 0x9E3779B9u >> 16) % stride);
    return at < num_tokens ? at : num_tokens - 1;
  }
};

/// Where everything lies; `heads` below is batch · num_heads, batch entries first.
struct Quantized {
  uint8_t* q = nullptr;       ///< [heads][query_rows][head_dim], swizzled
  float* q_scale = nullptr;   ///< [heads][query_rows]: a logit in log2 units is this · k_scale · Σ q k
  uint8_t* k = nullptr;       ///< [heads][num_chunks][64 keys][head_dim], swizzled
  float4* k_scale = nullptr;  ///< [heads][num_chunks], the scale in x: kKeyScaleBytes are the least that is copied
  uint8_t* v = nullptr;       ///< [heads][num_chunks][head_dim][64 keys], swizzled
  float* v_scale = nullptr;   ///< [heads][head_dim]
  float* k_mean = nullptr;    ///< [heads][head_dim]: of the sample
  float* v_mean = nullptr;    ///< [heads][head_dim]: likewise; once all is quantised, what the output gets back (above)
  float* v_peak =
      nullptr;  ///< [heads][head_dim]: how far values lie from the mean where the scale does not reach; or 0
  float* v_error = nullptr;    ///< [heads][key_chunks][head_dim]: sums of what rounding took, in units of the scale
  float* k_sum = nullptr;      ///< [heads][key_chunks][head_dim]: of keys less the mean; null without summaries
  float* v_sum = nullptr;      ///< likewise of values, in units of the scale
  float* k_partial = nullptr;  ///< [heads][key_parts][head_dim]: sums of sampled keys
  float* v_partial = nullptr;  ///< [heads][num_splits][3][head_dim]: sums of sampled values, the least and largest
  int query_rows = 0;          ///< of a head, a multiple of 64
  int key_chunks = 0;          ///< of keys; then those of summaries
  int num_chunks = 0;          ///< of both; summaries are filled up to whole steps of two
  int num_splits = 0, key_parts = 0;
  Sample sample;      ///< of values
  Sample key_sample;  ///< the same, or a smaller one where keys are still to be normalised
};

/// The layout of a call's inputs at `base` (256-byte aligned).
Quantized place_quantized(const AttentionArgs& args, void* base);

/// Of the workspace: a counter of tiles, then the inputs.
inline constexpr size_t kCounterBytes = 256;
/// Bytes of workspace that `launch` needs: about half of the inputs' own size.
size_t workspace_bytes(const AttentionArgs& args, int num_multiprocessors);

}  // namespace calibatt::cuda::sm90_fp8
