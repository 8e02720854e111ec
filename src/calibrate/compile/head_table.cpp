#include "calibrate/compile/head_table.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/error.h"
#include "base/thread_pool.h"

namespace calibatt {
namespace {

constexpr int kStepsPerLevel = 8;  // options per interval of measured levels

std::vector<double> with_interpolated(std::span<const double> ladder) {
  std::vector<double> levels;
  for (size_t i = 0; i + 1 < ladder.size(); ++i) {
    for (int j = 0; j < kStepsPerLevel; ++j)
      levels.push_back(ladder[i] + (ladder[i + 1] - ladder[i]) * j / kStepsPerLevel);
  }
  levels.push_back(ladder.back());
  return levels;
}

int index_of_anchor_rows(const ProfileHeader& header, int rows) {
  const auto found = std::find(header.anchor_rows.begin(), header.anchor_rows.end(), rows);
  if (found != header.anchor_rows.end()) return static_cast<int>(found - header.anchor_rows.begin());
  std::string measured;
  for (const int k : header.anchor_rows) measured += (measured.empty() ? "" : ", ") + std::to_string(k);
  throw Error(ErrorKind::kUsage, "repetition was not measured for " + std::to_string(rows) +
                                     " anchor rows per frame (measured: " + (measured.empty() ? "none" : measured) +
                                     "); take one of these, or calibrate anew");
}

}  // namespace

HeadTable::HeadTable(const Profile& profile, const CompileOptions& options)
    : profile_(profile),
      options_(options),
      ranking_(options.budget == Budget::kEnergy ? Ranking::kEnergy : options.ranking),
      heads_per_step_(static_cast<size_t>(profile.header.num_layers) * profile.header.geometry.heads),
      levels_(with_interpolated(levels_of(ranking_))) {
  for (const PromptProfile& prompt : profile.prompts) {
    if (!prompt.own_ranking) error_prompts_.push_back(&prompt);
  }
  errors_are_held_out_ = !error_prompts_.empty();
  if (!errors_are_held_out_) {
    for (const PromptProfile& prompt : profile.prompts) error_prompts_.push_back(&prompt);
  }
  const size_t count = static_cast<size_t>(profile.header.num_steps()) * heads_per_step_;
  errors_.resize(count);
  densities_[0].resize(count);
  densities_[1].resize(count);
  if (options.repetition != Repetition::kOff) {
    const auto k = static_cast<size_t>(index_of_anchor_rows(profile.header, options.anchor_rows_per_frame));
    const size_t measured = profile.header.anchor_rows.size();
    anchors_ = make_anchor_rows(profile.header.geometry, options.anchor_rows_per_frame);
    for (size_t head = 0; head < count; ++head) {
      copy_errors_.push_back(mean_of(&PromptProfile::copy_error, head * measured + k));
      similarities_.push_back(mean_of(&PromptProfile::similarity, head * measured + k));
    }
  }
  parallel_for(static_cast<int64_t>(count), 1, [&](int64_t begin, int64_t end, int) {
    for (auto head = static_cast<size_t>(begin); head < static_cast<size_t>(end); ++head) {
      densities_[0][head] = measured_densities(inclusion(head, false), false);
      if (options_.repetition != Repetition::kOff)
        densities_[1][head] = measured_densities(inclusion(head, true), true);
      errors_[head] = interpolated_errors(head);
    }
  });
}

InclusionLevels HeadTable::inclusion(size_t head, bool anchored) const {
  const AttentionGeometry& g = profile_.header.geometry;
  const int rows = g.num_query_blocks(), columns = g.num_key_blocks();
  const int used_rows = anchored ? anchors_.num_query_blocks(g.block_q) : rows;
  const auto used = [&](std::vector<float> matrix) { return anchored ? packed_rows(g, anchors_, matrix) : matrix; };
  InclusionLevels levels;
  if (ranking_ == Ranking::kHarm) {
    levels =
        harm_inclusion(used(mean_harm(profile_.prompts, options_.skipped, head, rows * columns)), used_rows, columns);
  } else if (options_.budget == Budget::kEnergy && options_.agreement == Agreement::kVote) {
    std::vector<InclusionLevels> prompts;
    for (const PromptProfile& prompt : profile_.prompts) {
      prompts.push_back(energy_inclusion(used(energy_of(prompt, head, rows * columns)), used_rows, columns));
    }
    levels = agreed_inclusion(prompts, options_.agreement_threshold);
  } else {
    levels = energy_inclusion(used(mean_energy(profile_.prompts, head, rows * columns)), used_rows, columns);
  }
  keep_own_blocks(levels, g, anchored ? &anchors_ : nullptr);
  return levels;
}

std::vector<double> HeadTable::measured_densities(const InclusionLevels& inclusion, bool anchored) const {
  const AttentionGeometry& g = profile_.header.geometry;
  const double tokens = g.num_tokens();
  const int num_queries = anchored ? static_cast<int>(anchors_.query_tokens.size()) : g.num_tokens();
  std::vector<double> densities(levels_.size(), 0.0);
  for (int r = 0; r < inclusion.num_query_blocks(); ++r) {
    const double queries = std::min(g.block_q, num_queries - r * g.block_q) / tokens;
    for (int c = 0; c < inclusion.num_key_blocks(); ++c) {
      // Kept at every level above its own.
      const auto first = std::upper_bound(levels_.begin(), levels_.end(), static_cast<double>(inclusion.at(r, c)));
      densities[static_cast<size_t>(first - levels_.begin())] += queries * g.key_block_size(c) / tokens;
    }
  }
  for (size_t i = 1; i < densities.size(); ++i) densities[i] += densities[i - 1];
  return densities;
}

double HeadTable::mean_of(Tensor PromptProfile::*field, size_t at) const {
  double sum = 0;
  for (const PromptProfile* prompt : error_prompts_) {
    if (!profile_.header.output_errors) return 0;
    sum += (prompt->*field).f32()[at];
  }
  return sum / static_cast<double>(error_prompts_.size());
}

// Between two measured levels the error falls about exponentially; towards level 1, where it is 0, it falls
// quadratically.
std::vector<double> HeadTable::interpolated_errors(size_t head) const {
  const size_t num_measured = levels_of(ranking_).size();
  const size_t curve = (head * 2 + static_cast<size_t>(ranking_)) * 2 + static_cast<size_t>(options_.skipped);
  std::vector<double> measured(num_measured), errors;
  for (size_t i = 0; i < num_measured; ++i)
    measured[i] = mean_of(&PromptProfile::level_error, curve * num_measured + i);
  // Sampling leaves small bumps; an error that a lower level does not make, a higher one need not make either.
  for (size_t i = 1; i < num_measured; ++i) measured[i] = std::min(measured[i], measured[i - 1]);
  for (size_t i = 0; i + 1 < num_measured; ++i) {
    const double a = measured[i], b = measured[i + 1];
    for (int j = 0; j < kStepsPerLevel; ++j) {
      const double t = static_cast<double>(j) / kStepsPerLevel;
      errors.push_back(b > 0 ? std::exp(std::log(a) * (1 - t) + std::log(b) * t) : a * (1 - t) * (1 - t));
    }
  }
  errors.push_back(measured.back());
  return errors;
}

double HeadTable::at_level(const std::vector<double>& values, double level) const {
  const auto above = std::lower_bound(levels_.begin(), levels_.end(), level) - levels_.begin();
  if (above == 0) return values.front();
  const auto i = std::min(static_cast<size_t>(above), levels_.size() - 1);
  const double t = std::clamp((level - levels_[i - 1]) / (levels_[i] - levels_[i - 1]), 0.0, 1.0);
  return values[i - 1] * (1 - t) + values[i] * t;
}

double HeadTable::density(size_t head, const HeadChoice& choice) const {
  return at_level(densities_[choice.anchored][head], choice.level);
}

double HeadTable::error(size_t head, const HeadChoice& choice) const {
  return at_level(errors_[head], choice.level) + (choice.anchored ? copy_error(head) : 0.0);
}

}  // namespace calibatt
