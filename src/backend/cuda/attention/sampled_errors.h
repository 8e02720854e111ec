#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "backend/cuda/attention/attention_args.h"

/// The kernels of CalibrationOps::sampled_errors, on device memory. Each call enqueues on the stream; nothing is
/// synchronised. Sums are added in the same order in every call.
namespace calibatt::cuda {

inline constexpr int kMeasuredLevels = 15;  ///< rungs of the ladder of densities, the last one (everything) left out

/// rows [num_rows, width] of 16-bit elements or floats: row i is token tokens[i] of the view, all of whose heads lie
/// without gaps. out: of `from_dtype`, or float.
void gather_rows(const void* from, DType from_dtype, int64_t token_stride, const int32_t* tokens, int num_rows,
                 int width, void* out, DType out_dtype, cudaStream_t stream);

/// What harm and level errors of one call are measured from.
struct SampledRows {
  const void* q = nullptr;     ///< [rows, heads, head_dim], `dtype`
  const float* out = nullptr;  ///< [rows, heads, head_dim]: their dense output
  const float* lse = nullptr;  ///< [heads, rows]: natural log of the sum of exponentials
  DeviceHeads k, v;            ///< [num_keys, heads, head_dim], rows 16-byte aligned
  const void* mean_k = nullptr;  ///< [⌈num_keys / block_k⌉, heads, head_dim], `dtype`; null: skipped blocks are dropped
  const void* mean_v = nullptr;
  const float* metric = nullptr;   ///< [heads, head_dim, head_dim]; null: the identity
  const uint8_t* rungs = nullptr;  ///< [heads, query blocks, key blocks], 0 … kMeasuredLevels; null: no level errors
  DType dtype = DType::kBF16;      ///< kBF16 or kF16
  int rows = 0, samples = 0;       ///< rows = query blocks · samples; samples: 1, 2, 4 or 8
  int heads = 0, head_dim = 0, num_keys = 0, block_k = 0;
  int key_blocks = 0;  ///< that may be skipped: the first ones
  float scale = 1;
};

/// Whether sampled_errors takes a call of these sizes on the current GPU.
bool takes_sampled_errors(DType dtype, int head_dim, int block_k, int samples);

size_t sampled_errors_workspace_bytes(const SampledRows& call);
/// harm [heads, query blocks, key_blocks] (bf16 bits); level_error [heads, kMeasuredLevels], written when rungs are
/// given. The workspace is 256-byte aligned.
void sampled_errors(const SampledRows& call, uint16_t* harm, float* level_error, void* workspace, cudaStream_t stream);

}  // namespace calibatt::cuda
