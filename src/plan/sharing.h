#pragma once

#include <functional>

#include "plan/plan.h"

namespace calibatt {

/// Lets adjacent steps share one entry: going through the steps in order, a step joins the group before it while the
/// IoU of its masks with the group's (over all layers and heads together) is at least `iou_threshold`, and the group
/// keeps what any of its steps keeps (the paper: 0.97). A head that only some steps of a group anchor is computed on
/// all rows. Masks only grow. Throws Error(kFormat) when the parts are not a plan, Error(kUsage) unless 0 <
/// iou_threshold ≤ 1. `poll` is called layer by layer; what it throws ends the work.
Plan::Parts share_adjacent_steps(Plan::Parts parts, double iou_threshold, const std::function<void()>& poll = {});

}  // namespace calibatt
