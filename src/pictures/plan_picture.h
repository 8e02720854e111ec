#pragma once

#include "media/image.h"
#include "plan/plan.h"

namespace calibatt {

/// What one head computes: a square per (query block, key block), kept ones coloured (blue; orange in an anchored head,
/// whose query blocks are packed from its anchor rows). Throws Error(kUsage) when step, layer or head is out of range.
Image render_head(const Plan& plan, int step, int layer, int head);

/// Density of every step (columns) and layer (rows), with the means of both.
Image render_density_map(const Plan& plan);

}  // namespace calibatt
