#pragma once

#include "base/work_progress.h"
#include "calibatt/progress.h"

namespace calibatt {

/// Tells of one stage of a generation, with how much of the whole that is.
void report_stage(const ProgressCallback& progress, const char* stage, int done, int total, double within = 0);

/// The same as the progress of the work that is the whole stage; empty where nobody listens. `progress` must outlive
/// it.
WorkProgress stage_work(const ProgressCallback& progress, const char* stage);

}  // namespace calibatt
