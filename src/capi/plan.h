#pragma once

#include <memory>
#include <string>

#include "calibatt/c_api.h"
#include "plan/plan.h"

/// Does not change.
struct calibatt_plan {
  std::shared_ptr<const calibatt::Plan> plan;
  std::string checksum, json, text;
};
