#include "models/mochi/memory.h"

namespace calibatt {

// As MochiTransformer::prepare_workspace lays them out, and what is made beside them in each forward.
uint64_t mochi_activation_bytes(const MochiTransformerConfig& config, int64_t num_tokens, int text_tokens,
                                DType dtype) {
  const auto video = static_cast<uint64_t>(num_tokens), text = static_cast<uint64_t>(text_tokens),
             dim = static_cast<uint64_t>(config.dim()), text_width = static_cast<uint64_t>(config.text_width),
             bytes = static_cast<uint64_t>(dtype_size(dtype));
  const uint64_t residuals = (video * dim + 3 * text * text_width) * sizeof(float),  // both prompts' text, and a copy
      normed = (video * dim + text * text_width) * bytes, qkv_and_attended = 4 * (video + text) * dim * bytes;
  const auto patch = static_cast<uint64_t>(config.patch_size),
             channels = static_cast<uint64_t>(config.in_channels) + static_cast<uint64_t>(config.out_channels);
  return residuals + normed + qkv_and_attended + 2 * video * channels * patch * patch * sizeof(float);
}

}  // namespace calibatt
