#pragma once

#include <memory>

#include "backend/clip_ops.h"
#include "backend/cuda/device/context.h"

namespace calibatt::cuda {

/// ClipOps::attention by two cuBLAS products with a softmax between them, for a range of queries at a time.
///
/// The autoencoder's one attention has a single head of 384 channels, for which the attention kernels (64 and 128) have
/// no registers; and it is small: 0.32 TFLOP a frame at 720 × 1280 (14,400 tokens), 6.7 of the 620 that decoding 81
/// frames takes. Scores in memory (float32, 256 MB at a time) cost 2.5 GB of traffic a frame, about a millisecond.
class PixelAttention {
 public:
  explicit PixelAttention(Context& context);  ///< the context must outlive it; throws Error(kDevice)
  ~PixelAttention();
  PixelAttention(const PixelAttention&) = delete;
  PixelAttention& operator=(const PixelAttention&) = delete;

  void run(const ClipView& qkv, int64_t first_row, const ClipView& out);

 private:
  struct Handle;
  Context& context_;
  std::unique_ptr<Handle> handle_;
};

}  // namespace calibatt::cuda
