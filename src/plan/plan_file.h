#pragma once

#include <map>
#include <string>

#include "base/tensor.h"
#include "io/safetensors.h"
#include "plan/plan.h"

namespace calibatt {

/// The format's version that this program writes; it reads this one and all before it.
inline constexpr int kPlanFormatVersion = 3;

/// A plan as the named tensors and texts of its file (docs/plan_format.md); the step between bytes and a Plan.
struct PlanFile {
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> metadata;
};

/// The file's parts, none read. What people give in a plan's place (a page, a report, a text) is refused for what it
/// is. Throws Error(kNotFound, kUnreadable, kFormat).
Safetensors open_plan_tensors(const std::string& path);
/// The file, mapped: tensors are views into it.
PlanFile open_plan_file(const std::string& path);
/// Checks kind of file, version, checksum, then each number; of version 2 the masks when a layer is asked for. `where`
/// begins the messages. Throws Error(kFormat).
Plan decode_plan(const PlanFile& file, const std::string& where);
/// XXH3-128 over all tensors (names, dtypes, shapes, bytes) and all metadata but the checksum itself. From version 2 on
/// without the bytes of `sections`, each of which has a checksum of its own.
std::string plan_checksum(const PlanFile& file);

}  // namespace calibatt
