#pragma once

#include <string>

#include "calibatt/export.h"
#include "calibatt/pipeline.h"

namespace calibatt {

// What can be known of a model, a machine and a plan before any weight is read. Both open the model's settings.

/// Throws Error(kUsage, kDevice) where the machine (LoadOptions::backend, devices) lacks the arithmetic that the
/// options ask for by name: fp16, bf16 layers or attention in a run of another type, 8 bits.
CALIBATT_API void check_arithmetic(const LoadOptions& load, const GenerateOptions& options);

/// Why a plan cannot be used with this model or, with `resolved` options, for their video, in one line that names both;
/// empty: it can, unless it was made for other weights. Throws where the plan cannot be read.
CALIBATT_API std::string plan_mismatch(const LoadOptions& load, const std::string& plan_path,
                                       const GenerateOptions* resolved = nullptr);

/// Throws Error(kMismatch) where a run with these resolved options would refuse its plan for that, and where the plan
/// cannot be read.
CALIBATT_API void check_plan(const LoadOptions& load, const GenerateOptions& resolved);

}  // namespace calibatt
