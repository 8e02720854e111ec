#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "model_settings/mochi_config.h"

namespace calibatt {

/// Bytes of the transformer's activations in a forward of so many tokens of video and text. dtype: of its arithmetic.
uint64_t mochi_activation_bytes(const MochiTransformerConfig& config, int64_t num_tokens, int text_tokens, DType dtype);

}  // namespace calibatt
