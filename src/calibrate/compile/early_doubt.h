#pragma once

#include <string>

#include "calibatt/progress.h"
#include "calibrate/compile/compile_options.h"

namespace calibatt {

struct TargetDoubt {
  std::string message;      ///< one line for people; empty: none
  bool is_certain = false;  ///< else more prompts may make it possible
};

/// Where a profile of the first prompts alone says that no plan can meet the density or speedup that the options ask
/// for. What a plan can be depends on all prompts, a little, so that what is hardly out of reach "may not be reached".
/// Whoever measures the others is told while there is time, and goes on. A trial compiles the profile where the density
/// is near the least that any plan could have, or where gaps are filled or steps share; elsewhere it would take long
/// and find nothing.
TargetDoubt doubt_about_target(const Profile& profile, CompileOptions options, const ProgressCallback& progress = {});

}  // namespace calibatt
