#pragma once

#include <string>

#include "plan/plan.h"

namespace calibatt {

/// The text "plan" in a plan file's metadata: geometry, layers, provenance. Not the steps, which are tensors.
std::string plan_json(const PlanInfo& info);
/// Throws Error(kFormat) naming the key; `where` begins the message.
PlanInfo parse_plan_json(const std::string& text, const std::string& where);

}  // namespace calibatt
