#pragma once

#include <string>

#include "plan/plan.h"

namespace calibatt {

/// The text "plan" in a plan file's metadata: geometry, layers, provenance. Not the steps, which are tensors.
std::string plan_json(const PlanInfo& info);
/// Throws Error(kFormat) naming the key, or what the plan needs and this program does not know; `where` begins the
/// message. many_transformers: false in versions 1 and 2, whose provenance names one.
PlanInfo parse_plan_json(const std::string& text, const std::string& where, bool many_transformers);

}  // namespace calibatt
