#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "plan/plan.h"

namespace calibatt::bench {

/// Kinds of masks as real heads have them: band: what is near in the token order; stripe: what is at the same place in
/// other frames, ± something; random: no structure at all, the worst case of everything.
enum class MaskKind { kBand, kStripe, kRandom };
MaskKind parse_mask_kind(const std::string& name);  ///< "band", "stripe", "random"; throws Error(kUsage)

/// One head's kept blocks, of about this density. `noise`: share of the blocks that are the other way round.
/// Deterministic; other seeds give other random blocks and noise.
BlockIntervals synthetic_mask(MaskKind kind, const AttentionGeometry& geometry, double density, double noise,
                              uint64_t seed);

/// A layer whose heads take turns among the kinds.
PlanLayer synthetic_layer(const std::vector<MaskKind>& mix, const AttentionGeometry& geometry, double density,
                          double noise, uint64_t seed);

}  // namespace calibatt::bench
