#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "sparsity/block_mask.h"
#include "sparsity/geometry.h"

namespace calibatt {

/// By what the key blocks of a head are ranked, and on which scale a level says how many of them to keep.
enum class Ranking : uint8_t {
  kEnergy,  ///< Eq. 6: per query block, the smallest set whose cumulative energy reaches the level
  kHarm,    ///< the level is the head's density: the blocks whose skipping harms the output most, wherever they are
};

/// The levels at which output errors are measured, ascending. 1 = everything is kept.
inline constexpr std::array<double, 16> kEnergyLevels{.05, .15, .3,  .4,  .5,   .58, .65,  .71,
                                                      .76, .81, .85, .89, .925, .95, .975, 1.0};
inline constexpr std::array<double, 16> kDensityLevels{.02, .04, .06, .09, .12, .16, .2,  .25,
                                                       .3,  .36, .43, .51, .6,  .71, .85, 1.0};
std::span<const double> levels_of(Ranking ranking);

/// One head's masks of all levels at once: key block c of query block r is kept at level x iff at(r, c) < x. So masks
/// of rising levels are nested, and the density of any level is a count. Every row has a 0: no query block ends without
/// a key block.
class InclusionLevels {
 public:
  InclusionLevels() = default;
  InclusionLevels(int num_query_blocks, int num_key_blocks)
      : num_query_blocks_(num_query_blocks),
        num_key_blocks_(num_key_blocks),
        at_(static_cast<size_t>(num_query_blocks) * static_cast<size_t>(num_key_blocks)) {}

  int num_query_blocks() const { return num_query_blocks_; }
  int num_key_blocks() const { return num_key_blocks_; }
  float& at(int r, int c) { return at_[static_cast<size_t>(r) * num_key_blocks_ + c]; }
  float at(int r, int c) const { return at_[static_cast<size_t>(r) * num_key_blocks_ + c]; }
  std::span<const float> row(int r) const {
    return {at_.data() + static_cast<size_t>(r) * num_key_blocks_, static_cast<size_t>(num_key_blocks_)};
  }
  std::span<const float> all() const { return at_; }

  BlockMask mask(double level) const;
  double density(double level) const;  ///< kept blocks / all blocks
  /// Always kept: sets the level of these (query block, key block) pairs to 0.
  void keep(int r, int c) { at(r, c) = 0; }

 private:
  int num_query_blocks_ = 0, num_key_blocks_ = 0;
  std::vector<float> at_;
};

/// Ranking::kEnergy. energy: [num_query_blocks, num_key_blocks], any non-negative scale (rows are normalised here). The
/// level of a block is the energy of those before it in its row (Eq. 6).
InclusionLevels energy_inclusion(std::span<const float> energy, int num_query_blocks, int num_key_blocks);
/// Ranking::kHarm. harm: [num_query_blocks, num_key_blocks] ≥ 0, what skipping this block alone does to the output
/// (squared). The level of a block is the share of the head's blocks that do more; the worst block of each row comes
/// first of all.
InclusionLevels harm_inclusion(std::span<const float> harm, int num_query_blocks, int num_key_blocks);
/// Eq. 8–9 for all levels at once: kept at level x where at least ρ of the prompts keep it.
InclusionLevels agreed_inclusion(std::span<const InclusionLevels> prompts, double agreement);

/// Eq. 7: ε(t) = A + (C − A)·exp(−k t/T), t = 0 the noisiest step.
double scheduled_energy(double a, double c, double k, int step, int num_steps);

/// Averages rows of a per-query-block matrix over the tokens of the query blocks that anchor tokens are packed into:
/// [num_query_blocks, num_key_blocks] → [anchors.num_query_blocks(block_q), num_key_blocks].
std::vector<float> packed_rows(const AttentionGeometry& geometry, const AnchorRows& anchors,
                               std::span<const float> matrix);
/// Keeps every key block that holds one of the query block's own tokens (anchors: null = every token is a query).
void keep_own_blocks(InclusionLevels& levels, const AttentionGeometry& geometry, const AnchorRows* anchors);

}  // namespace calibatt
