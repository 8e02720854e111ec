#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "attention/self_attention.h"
#include "calibrate/profile/inclusion.h"
#include "calibrate/profile/profile.h"
#include "calibrate/record/sampled_attention.h"

namespace calibatt {

/// L, [head_dim, head_dim] row-major, with ‖o·L‖ = ‖gate ⊙ (W_o,h · o)‖ for any output o of this head: the Cholesky
/// factor of W_hᵀ diag(gate²) W_h. So errors are measured where they matter, in the residual stream, at the price of
/// one product with V. Without an output weight: the identity.
std::vector<float> output_projection(const OutputContext& context, int head, int head_dim);

/// `count` tokens of [begin, begin + size), one of each equal stretch; `phase` ∈ [0, 1) says where in its stretch.
void stratified_tokens(int begin, int size, int count, double phase, std::vector<int>& tokens);

/// One self-attention call whose dense output is known. Tokens beyond the geometry's are text behind the video: key
/// blocks that hold some are always kept (sparsity/text_extension.h), and only the video's rows are looked at.
struct MeasuredCall {
  const AttentionGeometry& geometry;
  ConstHeadsView q, k, v, out;
  float scale = 1;
  const OutputContext& context;
  int samples_per_block = 4;
  double phase =
      0;  ///< ∈ [0, 1): moves the sampled tokens, so that prompts, steps and layers do not all look at the same ones
  const std::vector<AnchorRows>& anchors;
  std::span<const int32_t> position_of_raster;  ///< empty: similarities are not wanted
  std::optional<Skipped> only = {};             ///< of harm and level errors; absent: both
};

/// What an earlier measurement says about one head: the ranking under which level errors are measured.
struct HeadReference {
  std::span<const float> energy;   ///< [R, C]; empty: no errors under rankings by energy are wanted
  std::span<const float> harm[2];  ///< [R, C] per Skipped; empty: rank by this call's own harm (level errors then come
                                   ///< from other queries of the same blocks than the harm)
};

/// All relative to ‖x‖² of the residual stream (or absolute when that is unknown).
struct HeadErrors {
  std::vector<float> harm[2];       ///< [R, C] per Skipped: per query
  std::vector<double> level_error;  ///< [rankings, skipped, levels] of those that are wanted: of all queries,
                                    ///< extrapolated from the sampled ones
  std::vector<double> copy_error;   ///< [anchors]
  std::vector<double> similarity;   ///< [anchors]
};

/// Measures one head. `keys` is scratch memory to reuse from head to head. Uses all threads.
HeadErrors measure_head(const MeasuredCall& call, int head, const HeadReference& reference, SampledKeys& keys);

}  // namespace calibatt
