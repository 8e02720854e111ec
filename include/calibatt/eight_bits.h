#pragma once

#include <string>
#include <vector>

#include "calibatt/export.h"
#include "calibatt/pipeline.h"

namespace calibatt {

/// --weights-dtype, as people write it: auto, bf16, fp8, int8, or torch's names of these. Throws Error(kUsage).
CALIBATT_API WeightsPrecision weights_precision_of(const std::string& text);
/// --attention-dtype, likewise: auto, bf16, fp8.
CALIBATT_API AttentionDtype attention_dtype_of(const std::string& text);
/// --keep-layers: names between commas. Throws Error(kUsage).
CALIBATT_API std::vector<std::string> kept_layers_of(const std::string& text);

}  // namespace calibatt
