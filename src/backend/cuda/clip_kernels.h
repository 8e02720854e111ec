#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "backend/clip_ops.h"

/// The memory-bound kernels of the video autoencoder. Clips and pointers are in device memory; every function enqueues
/// on the stream and throws Error(kDevice) when the launch fails. Where base addresses, strides and channels allow,
/// they move 16 bytes at a time; else single elements (small models, 3 colours).
namespace calibatt::cuda {

/// ClipOps::rms_norm, offset may be null; one read and one write of every element up to 1024 channels.
void launch_rms_norm(const ClipView& in, const float* offset, const float* gamma, bool silu, const ClipView& out,
                     cudaStream_t stream);

struct GroupNormArgs {
  const float* offset = nullptr;  ///< null: none
  const float* gamma = nullptr;
  const float* beta = nullptr;
  int groups = 1;
  float epsilon = 0;
  bool silu = false;
  void* workspace = nullptr;  ///< of group_norm_workspace_bytes, aligned as Context does it
};
size_t group_norm_workspace_bytes(const ClipView& in, int groups);
/// ClipOps::group_norm, with up to 2048 channels; sums within a row are float32, of rows and of ranges of columns
/// float64.
void launch_group_norm(const ClipView& in, const GroupNormArgs& args, const ClipView& out, cudaStream_t stream);

/// The same in two parts, where others have more rows of the frames: the sums of these rows, then the norm by the sums
/// of all shards, one behind another, of frames that have `height` rows together. A shard's sums: group_sums_bytes.
size_t group_sums_bytes(const ClipView& in, int groups);
void launch_group_sums(const ClipView& in, const GroupNormArgs& args, void* sums, cudaStream_t stream);
void launch_group_norm_by_sums(const ClipView& in, const GroupNormArgs& args, const void* sums, int num_shards,
                               int64_t height, const ClipView& out, cudaStream_t stream);

/// ClipOps::silu; offset may be null.
void launch_silu(const ClipView& x, const float* offset, cudaStream_t stream);

/// ClipOps::depth_to_space; offset may be null.
void launch_depth_to_space(const ClipView& in, const float* offset, int time_factor, int space_factor,
                           const ClipView& out, cudaStream_t stream);

/// ClipOps::add_repeated and add_averaged.
void launch_add_repeated(const ClipView& in, int time_factor, int space_factor, int64_t first_frame,
                         const ClipView& out, cudaStream_t stream);
void launch_add_averaged(const ClipView& in, int time_factor, int space_factor, const ClipView& out,
                         cudaStream_t stream);

/// ClipOps::upsample.
void launch_upsample(const ClipView& in, int time_factor, const ClipView& out, cudaStream_t stream);

/// ClipOps::copy. `out` may be larger: it may have more channels, and more columns, of which `pad_left` come before the
/// copied ones; these are zeroed.
void launch_copy(const ClipView& in, int64_t pad_left, const ClipView& out, cudaStream_t stream);

/// out = product + bias, or out += product + bias; F32 or BF16 each. `product` may have more channels than `out` (the
/// first ones count), and may be `out` itself. Both dense. bias: [out.channels] F32.
void launch_add_bias(const ClipView& product, const float* bias, bool accumulate, const ClipView& out,
                     cudaStream_t stream);

/// probabilities[r] = softmax(scores[r]) for `rows` rows of `columns` numbers, both with `stride` numbers (even) from
/// row to row. scores: F32; probabilities: F32 (may be the scores) or BF16.
void launch_softmax(const float* scores, int64_t rows, int64_t columns, int64_t stride, void* probabilities,
                    DType dtype, cudaStream_t stream);

/// ClipOps::start_rgb, to device memory; *has_nan becomes 1 when there is a NaN (it is not cleared).
void launch_rgb(const ClipView& patches, int patch, uint8_t* rgb, int* has_nan, cudaStream_t stream);

}  // namespace calibatt::cuda
