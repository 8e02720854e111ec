#pragma once

#include <map>
#include <string>

#include "base/tensor.h"
#include "plan/plan.h"

namespace calibatt {

/// The format's version that this program writes; it reads this one and all before it.
inline constexpr int kPlanFormatVersion = 1;

/// A plan as the named tensors and texts of its file (docs/plan_format.md); the step between a Plan and bytes.
struct PlanFile {
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> metadata;
};

/// Complete, with checksum. Equal plans give equal files.
PlanFile encode_plan(const Plan& plan);
/// Checks everything: kind of file, version, checksum, then each number. `where` begins the messages. Throws
/// Error(kFormat).
Plan decode_plan(const PlanFile& file, const std::string& where);
/// XXH3-128 over all tensors (names, dtypes, shapes, bytes) and all metadata but the checksum itself.
std::string plan_checksum(const PlanFile& file);

}  // namespace calibatt
