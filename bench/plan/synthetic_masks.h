#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "plan/plan.h"

namespace calibatt::bench {

/// Kinds of masks as real heads have them: band: what is near in the token order; stripe: what is at the same place in
/// other frames, ± something; random: no structure at all, the worst case of everything.
enum class MaskKind { kBand, kStripe, kRandom };
MaskKind parse_mask_kind(const std::string& name);  ///< "band", "stripe", "random"; throws Error(kUsage)

struct MaskOptions {
  double density = 0.375;  ///< kept blocks over all blocks, about
  double noise = 0;        ///< share of the blocks of bands and stripes that are the other way round
  /// Of SyntheticLayers: heads' densities lie between (1 − spread) and (1 + spread) times the density, the same at
  /// every step.
  double spread = 0;
  double drift = 1;  ///< share of the random blocks and of the noise that is drawn anew from one step to the next
};

/// One head's kept blocks at a step. Deterministic; other seeds give other random blocks and noise.
BlockIntervals synthetic_mask(MaskKind kind, const AttentionGeometry& geometry, const MaskOptions& options, int step,
                              uint64_t seed);

/// Layers whose heads take turns among the kinds.
class SyntheticLayers {
 public:
  SyntheticLayers(std::vector<MaskKind> mix, const AttentionGeometry& geometry, const MaskOptions& options);
  PlanLayer layer(int step, int layer) const;

 private:
  std::vector<MaskKind> mix_;
  AttentionGeometry geometry_;
  MaskOptions options_;
  std::vector<std::optional<BlockIntervals>> fixed_;  // [mix] masks that are the same everywhere
};

}  // namespace calibatt::bench
