#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "calibatt/eight_bits.h"
#include "calibrate/compile/compile_options.h"

namespace calibatt {

/// RunReport::weights_dtype of layers in these 8 bits; empty of other precisions.
std::string weights_dtype_name(WeightsPrecision weights, const std::vector<std::string>& kept_layers);

/// What of the 8 bits that are allowed (CompileOptions::may_be_eight_bit) has to be measured for the plan: parts that
/// gain time, or that somebody tells the steps of.
EightBitParts parts_to_measure(const CompileOptions& compile, EightBitParts gaining);

/// What of the allowed 8 bits the plan cannot have, and why; empty: it can have all. layers: weights_dtype_name;
/// backend: where a run saves time by them, or not.
std::string note_of_eight_bits(const CompileOptions& compile, EightBitParts measured, const std::string& layers,
                               std::string_view backend);

/// What a person's steps in 8 bits make of the plan's promise: it may be without them, or less than was asked for.
/// psnr_db: that is expected; measures: whoever makes the plan measures what its flags name, and runs the plan; else
/// only a calibration does.
std::string doubt_about_told_steps(const CompileOptions& compile, std::optional<double> psnr_db, bool measures);

/// That the predicted speedup is of all layers, where some are kept.
std::string doubt_about_kept_layers(const CompileOptions& compile, const std::string& layers);

}  // namespace calibatt
