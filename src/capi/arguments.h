#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "attention/plan_fit.h"
#include "backend/attention_call.h"
#include "base/guidance_branch.h"
#include "calibatt/c_api.h"
#include "calibatt/calibrate.h"

/// The structs of the C interface as the library's own values. All throw Error(kUsage) that names the member which
/// cannot be.
namespace calibatt::capi {

/// Geometry in raster order, with blocks that a plan replaces.
RunDescription description_of(const calibatt_run& run);
/// Leaves out the fingerprints that are not of the plan's schemes, and so cannot be compared with it.
void compare_like(RunDescription& run, const Plan& plan);

DType dtype_of(calibatt_dtype dtype, const char* name);
GuidanceBranch branch_of(calibatt_branch branch);
OnMismatch on_mismatch_of(calibatt_on_mismatch on_mismatch);

/// One sample of an array. `name` without data is refused.
template <class View>
View view_of(const calibatt_heads& heads, const char* name, DType dtype, int64_t num_tokens, int64_t sample);

/// Name and value of one, neither of which is NULL.
std::pair<const char*, const char*> setting_of(const calibatt_setting* settings, int index);
CalibrateOptions options_of(const calibatt_setting* settings, int32_t num_settings);

}  // namespace calibatt::capi
