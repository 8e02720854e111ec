#include "calibrate/compile/map_measurements.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/thread_pool.h"
#include "calibrate/compile/level_measurements.h"
#include "calibrate/profile/harm_code.h"
#include "sparsity/intervals_builder.h"

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

// With maps every step has an entry of its own.
std::vector<int> entries_of(const ProfileHeader& header) {
  if (header.measured == Measured::kLevels) return entry_of_steps(header);
  std::vector<int> entries(static_cast<size_t>(header.num_steps()));
  std::iota(entries.begin(), entries.end(), 0);
  return entries;
}

std::vector<const PromptProfile*> pointers_to(const std::vector<PromptProfile>& prompts) {
  std::vector<const PromptProfile*> pointers;
  pointers.reserve(prompts.size());
  for (const PromptProfile& prompt : prompts) pointers.push_back(&prompt);
  return pointers;
}

}  // namespace

MapMeasurements::MapMeasurements(const Profile& profile, const CompileOptions& options)
    : Measurements(profile, options, entries_of(profile.header)),
      ranking_(options.budget == Budget::kEnergy ? Ranking::kEnergy : options.ranking),
      error_prompts_(profile),
      all_prompts_(pointers_to(profile.prompts)),
      levels_(with_interpolated(levels_of(ranking_))),
      errors_(num_heads()) {
  if (has_errors()) {
    parallel_for(static_cast<int64_t>(num_heads()), 64, [&](int64_t begin, int64_t end, int) {
      for (auto head = static_cast<size_t>(begin); head < static_cast<size_t>(end); ++head) {
        errors_[head] = interpolated_errors(head);
      }
    });
  }
  if (options.repetition == Repetition::kOff) return;
  const std::vector<int>& measured = profile.header.anchor_rows;
  const auto k = std::find(measured.begin(), measured.end(), options.anchor_rows_per_frame) - measured.begin();
  for (size_t head = 0; head < num_heads(); ++head) {
    const size_t at = head * measured.size() + static_cast<size_t>(k);
    copy_errors_.push_back(mean_of(&PromptProfile::copy_error, at));
    if (!profile.prompts[0].similarity.empty()) similarities_.push_back(mean_of(&PromptProfile::similarity, at));
  }
}

void MapMeasurements::tabulate(CompileProgress& progress) {
  densities_[0].resize(num_heads());
  densities_[1].resize(num_heads());
  for_each_group([&](int entry, int first_layer, int num_layers) {
    verify(entry, first_layer, num_layers);
    for_each_head(entry, first_layer, num_layers, [&](size_t head) {
      const std::vector<float> harm = ranking_ == Ranking::kHarm ? harm_of(head) : std::vector<float>();
      densities_[0][head] = counted_densities(inclusion(head, false, harm), false);
      if (options_.repetition != Repetition::kOff) {
        densities_[1][head] = counted_densities(inclusion(head, true, harm), true);
      }
    });
    progress.advance(num_layers);
  });
}

std::vector<float> MapMeasurements::harm_of(size_t head) const {
  const AttentionGeometry& g = header_.geometry;
  return header_.has_harm_codes()
             ? restored_harm(header_, all_prompts_, head)
             : mean_harm(profile_.prompts, options_.skipped, head, g.num_query_blocks() * g.num_key_blocks());
}

InclusionLevels MapMeasurements::inclusion(size_t head, bool anchored, std::span<const float> harm) const {
  const AttentionGeometry& g = header_.geometry;
  const int rows = g.num_query_blocks(), columns = g.num_key_blocks();
  const int used_rows = anchored ? anchors_.num_query_blocks(g.block_q) : rows;
  const auto used = [&](std::span<const float> matrix) {
    return anchored ? packed_rows(g, anchors_, matrix) : std::vector<float>(matrix.begin(), matrix.end());
  };
  InclusionLevels levels;
  if (ranking_ == Ranking::kHarm) {
    levels = harm_inclusion(used(harm), used_rows, columns);
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

std::vector<double> MapMeasurements::counted_densities(const InclusionLevels& levels, bool anchored) const {
  const AttentionGeometry& g = header_.geometry;
  const double tokens = g.num_tokens();
  const int num_queries = anchored ? static_cast<int>(anchors_.query_tokens.size()) : g.num_tokens();
  std::vector<double> densities(levels_.size(), 0.0);
  for (int r = 0; r < levels.num_query_blocks(); ++r) {
    const double queries = std::min(g.block_q, num_queries - r * g.block_q) / tokens;
    for (int c = 0; c < levels.num_key_blocks(); ++c) {
      // Kept at every level above its own.
      const auto first = std::upper_bound(levels_.begin(), levels_.end(), static_cast<double>(levels.at(r, c)));
      densities[static_cast<size_t>(first - levels_.begin())] += queries * g.key_block_size(c) / tokens;
    }
  }
  for (size_t i = 1; i < densities.size(); ++i) densities[i] += densities[i - 1];
  return densities;
}

double MapMeasurements::mean_of(Tensor PromptProfile::*field, size_t at) const {
  double sum = 0;
  for (const PromptProfile* prompt : error_prompts_.prompts) sum += (prompt->*field).f32()[at];
  return sum / static_cast<double>(error_prompts_.prompts.size());
}

// Between two measured levels the error falls about exponentially; towards level 1, where it is 0, it falls
// quadratically.
std::vector<double> MapMeasurements::interpolated_errors(size_t head) const {
  const size_t num_measured = levels_of(ranking_).size();
  const size_t curve = header_.has_harm_codes()
                           ? head
                           : (head * 2 + static_cast<size_t>(ranking_)) * 2 + static_cast<size_t>(options_.skipped);
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

double MapMeasurements::at_level(const std::vector<double>& values, double level) const {
  const auto above = std::lower_bound(levels_.begin(), levels_.end(), level) - levels_.begin();
  if (above == 0) return values.front();
  const auto i = std::min(static_cast<size_t>(above), levels_.size() - 1);
  const double t = std::clamp((level - levels_[i - 1]) / (levels_[i] - levels_[i - 1]), 0.0, 1.0);
  return values[i - 1] * (1 - t) + values[i] * t;
}

double MapMeasurements::density(size_t head, const HeadChoice& choice) const {
  return at_level(densities_[choice.anchored][head], choice.level);
}

double MapMeasurements::density_of(std::span<const HeadChoice> choices) const {
  double sum = 0;
  for (size_t head = 0; head < choices.size(); ++head) {
    sum += density(head, choices[head]) * num_steps_of(entry_of(head));
  }
  return sum / (static_cast<double>(heads_per_entry()) * header_.num_steps());
}

double MapMeasurements::error(size_t head, const HeadChoice& choice) const {
  return at_level(errors_[head], choice.level) + (choice.anchored ? copy_error(head) : 0.0);
}

void MapMeasurements::verify(int entry, int first_layer, int num_layers) const {
  if (header_.measured == Measured::kMaps) return;  // checked when they were loaded
  verify_sites(profile_, entry, first_layer, num_layers);
}

double MapMeasurements::kept_energy(size_t head, const BlockIntervals& intervals) const {
  if (header_.measured != Measured::kMaps) return Measurements::kept_energy(head, intervals);
  const AttentionGeometry& g = header_.geometry;
  const int rows = g.num_query_blocks(), columns = g.num_key_blocks();
  double kept = 0, all = 0;
  for (const PromptProfile& prompt : profile_.prompts) {
    const auto energy = energy_of(prompt, head, rows * columns);
    for (int row = 0; row < rows; ++row) {
      const double queries = g.query_block_size(row);
      const auto first = energy.begin() + static_cast<int64_t>(row) * columns;
      all += queries * std::accumulate(first, first + columns, 0.0);
      for (const BlockInterval& interval : intervals.row(row)) {
        kept += queries * std::accumulate(first + interval.begin, first + interval.end, 0.0);
      }
    }
  }
  return kept / all;
}

HeadPlan MapMeasurements::head_plan(size_t head, const HeadChoice& choice) const {
  HeadPlan plan;
  plan.anchored = choice.anchored;
  if (choice.level >= 1) return plan;
  const InclusionLevels levels =
      inclusion(head, choice.anchored, ranking_ == Ranking::kHarm ? harm_of(head) : std::vector<float>());
  IntervalsBuilder intervals(levels.num_key_blocks(), options_.merge_gap);
  for (int r = 0; r < levels.num_query_blocks(); ++r) {
    const std::span<const float> row = levels.row(r);
    intervals.add_row([&](int c) { return row[static_cast<size_t>(c)] < choice.level; });
  }
  if (!intervals.keeps_all()) plan.intervals = intervals.take();
  return plan;
}

}  // namespace calibatt
