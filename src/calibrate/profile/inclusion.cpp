#include "calibrate/profile/inclusion.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "calibrate/profile/level_code.h"

namespace calibatt {
namespace {

// Below 1, so that level 1 keeps everything whatever a sum was rounded to.
constexpr float kLastLevel = 0.9999999f;

// Indices of `values`, greatest first; equal ones in their own order, so that the result depends on nothing but the
// values.
std::vector<int> descending(std::span<const float> values) {
  std::vector<int> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return values[a] > values[b]; });
  return order;
}

}  // namespace

std::span<const double> levels_of(Ranking ranking) {
  return ranking == Ranking::kEnergy ? std::span<const double>(kEnergyLevels) : std::span<const double>(kDensityLevels);
}

BlockMask InclusionLevels::mask(double level) const {
  BlockMask mask(num_query_blocks_, num_key_blocks_);
  for (int r = 0; r < num_query_blocks_; ++r) {
    for (int c = 0; c < num_key_blocks_; ++c) mask.set(r, c, at(r, c) < level);
  }
  return mask;
}

double InclusionLevels::density(double level) const {
  const auto kept = std::count_if(at_.begin(), at_.end(), [level](float at) { return at < level; });
  return static_cast<double>(kept) / static_cast<double>(at_.size());
}

InclusionLevels energy_inclusion(std::span<const float> energy, int num_query_blocks, int num_key_blocks) {
  InclusionLevels levels(num_query_blocks, num_key_blocks);
  for (int r = 0; r < num_query_blocks; ++r) {
    const auto row = energy.subspan(static_cast<size_t>(r) * num_key_blocks, num_key_blocks);
    const double sum = std::accumulate(row.begin(), row.end(), 0.0);
    double before = 0;
    for (const int c : descending(row)) {
      levels.at(r, c) = std::min(static_cast<float>(before), kLastLevel);
      before += sum > 0 ? row[c] / sum : 1.0 / num_key_blocks;
    }
  }
  return levels;
}

InclusionLevels harm_inclusion(std::span<const float> harm, int num_query_blocks, int num_key_blocks) {
  InclusionLevels levels(num_query_blocks, num_key_blocks);
  SortScratch sort;  // hundreds of thousands of blocks a head: in linear time
  sort.keys.resize(harm.size());
  for (size_t i = 0; i < harm.size(); ++i) sort.keys[i] = ~std::bit_cast<uint32_t>(harm[i] + 0.0f);  // +0: no −0
  std::vector<uint32_t> order;
  sort_by_key(sort, order);
  std::vector<uint8_t> row_has_block(num_query_blocks, 0);
  for (size_t rank = 0; rank < order.size(); ++rank) {
    const auto block = static_cast<int>(order[rank]);
    const int r = block / num_key_blocks, c = block % num_key_blocks;
    const auto share = static_cast<float>(static_cast<double>(rank) / static_cast<double>(order.size()));
    levels.at(r, c) = row_has_block[r] ? std::min(share, kLastLevel) : 0.0f;
    row_has_block[r] = 1;
  }
  return levels;
}

InclusionLevels agreed_inclusion(std::span<const InclusionLevels> prompts, double agreement) {
  CALIBATT_ASSERT(!prompts.empty());
  const int rows = prompts[0].num_query_blocks(), columns = prompts[0].num_key_blocks();
  // Eq. 8: the mean of n masks reaches ρ when at least ⌈ρ n⌉ keep the block: at levels above the ⌈ρ n⌉-th smallest of
  // theirs.
  const auto num_prompts = static_cast<double>(prompts.size());
  const auto votes = static_cast<size_t>(std::clamp(std::ceil(agreement * num_prompts - 1e-9), 1.0, num_prompts));
  InclusionLevels agreed(rows, columns);
  std::vector<float> levels(prompts.size());
  for (int r = 0; r < rows; ++r) {
    int first = 0;
    for (int c = 0; c < columns; ++c) {
      for (size_t p = 0; p < prompts.size(); ++p) levels[p] = prompts[p].at(r, c);
      std::nth_element(levels.begin(), levels.begin() + static_cast<ptrdiff_t>(votes - 1), levels.end());
      agreed.at(r, c) = levels[votes - 1];
      if (agreed.at(r, c) < agreed.at(r, first)) first = c;
    }
    agreed.keep(r, first);  // prompts may disagree about every block of a row
  }
  return agreed;
}

double scheduled_energy(double a, double c, double k, int step, int num_steps) {
  return a + (c - a) * std::exp(-k * step / num_steps);
}

std::vector<float> packed_rows(const AttentionGeometry& geometry, const AnchorRows& anchors,
                               std::span<const float> matrix) {
  const int columns = geometry.num_key_blocks(), block_q = geometry.block_q;
  const auto num_tokens = static_cast<int>(anchors.query_tokens.size());
  std::vector<float> packed(static_cast<size_t>(anchors.num_query_blocks(block_q)) * columns, 0.0f);
  for (int i = 0; i < num_tokens; ++i) {
    const int packed_block = i / block_q;
    const int size = std::min(block_q, num_tokens - packed_block * block_q);
    const auto source = matrix.subspan(static_cast<size_t>(anchors.query_tokens[i] / block_q) * columns, columns);
    float* row = packed.data() + static_cast<size_t>(packed_block) * columns;
    for (int c = 0; c < columns; ++c) row[c] += source[c] / static_cast<float>(size);
  }
  return packed;
}

void keep_own_blocks(InclusionLevels& levels, const AttentionGeometry& geometry, const AnchorRows* anchors) {
  const int num_queries = anchors ? static_cast<int>(anchors->query_tokens.size()) : geometry.num_tokens();
  for (int i = 0; i < num_queries; ++i) {
    const int token = anchors ? anchors->query_tokens[i] : i;
    levels.keep(i / geometry.block_q, token / geometry.block_k);
  }
}

}  // namespace calibatt
