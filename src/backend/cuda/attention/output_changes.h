#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "base/dtype.h"

/// CalibrationOps::output_metric and squared_changes on device memory; each call enqueues one kernel. Sums are added in
/// the same order in every call.
namespace calibatt::cuda {

/// weight [out, num_heads·head_dim] (kF32, kBF16 or kF16), gate [out] → metric [num_heads, head_dim, head_dim].
void output_metric(const void* weight, DType dtype, const float* gate, int out, int num_heads, int head_dim,
                   float* metric, cudaStream_t stream);

/// outputs [groups + 1, rows, num_heads·head_dim] → changes [num_heads, groups]. metric null: the identity. Throws
/// Error(kUsage) for heads of more than 256 channels.
void squared_changes(const float* outputs, const float* metric, int groups, int64_t rows, int num_heads, int head_dim,
                     float* changes, cudaStream_t stream);

}  // namespace calibatt::cuda
