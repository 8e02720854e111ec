#include "calibrate/compile/level_measurements.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/error.h"
#include "base/thread_pool.h"
#include "calibatt/counted.h"
#include "calibrate/profile/level_agreement.h"
#include "sparsity/intervals_builder.h"

namespace calibatt {
namespace {

int in_units(double level) {
  return static_cast<int>(std::lround(level * kLevelUnits));
}

}  // namespace

std::vector<int> entry_of_steps(const ProfileHeader& header) {
  std::vector<int> entries;
  const auto transformer = [&](size_t step) {
    return header.step_transformer.empty() ? 0 : header.step_transformer[step];
  };
  for (size_t each = 0; each < header.sigmas.size(); ++each) {
    // A step of the same transformer, wherever one was recorded: levels are at most 1 apart.
    const auto distance = [&](int recorded) {
      const auto step = static_cast<size_t>(recorded);
      return std::abs(header.sigmas[step] - header.sigmas[each]) + (transformer(step) == transformer(each) ? 0 : 2);
    };
    const auto nearest = std::min_element(header.recorded_steps.begin(), header.recorded_steps.end(),
                                          [&](int a, int b) { return distance(a) < distance(b); });
    entries.push_back(static_cast<int>(nearest - header.recorded_steps.begin()));
  }
  return entries;
}

LevelMeasurements::LevelMeasurements(const Profile& profile, const CompileOptions& options)
    : Measurements(profile, options, entry_of_steps(profile.header)), error_prompts_(profile) {
  if (profile.prompts.size() > LevelAgreement::kMostPrompts) {
    throw Error(ErrorKind::kUsage, "compiling a plan: level codes of " + counted(profile.prompts.size(), "prompts") +
                                       " are too many, at most " + std::to_string(LevelAgreement::kMostPrompts) +
                                       " can agree; use fewer");
  }
  for (const int level : level_options()) levels_.push_back(static_cast<double>(level) / kLevelUnits);
  if (has_errors()) errors_.emplace(header_, error_prompts_.prompts, options.skipped);
}

double LevelMeasurements::nearest_level(double level) const {
  return static_cast<double>(std::clamp(in_units(level), 1, kLevelUnits)) / kLevelUnits;
}

void LevelMeasurements::tabulate(CompileProgress& progress) {
  table_.emplace(header_);
  for_each_group([&](int entry, int first_layer, int num_layers) {
    verify(entry, first_layer, num_layers);
    for_each_head(entry, first_layer, num_layers, [&](size_t head) {
      const AttentionGeometry& g = header_.geometry;
      LevelTable::Histogram pairs{};
      visit_rows(head, [&](int r, std::span<const uint16_t> levels) {
        const int64_t queries = g.query_block_size(r);
        for (size_t c = 0; c < levels.size(); ++c) {
          pairs[levels[c]] += queries * g.key_block_size(static_cast<int>(c));
        }
      });
      table_->add_head(head, pairs);
    });
    progress.advance(num_layers);
  });
  table_->finish();
}

double LevelMeasurements::density_at(size_t head, size_t i, bool anchored) const {
  CALIBATT_ASSERT(table_.has_value() && !anchored);
  return table_->density_at(head, i);
}

double LevelMeasurements::density(size_t head, const HeadChoice& choice) const {
  const auto above = std::ranges::lower_bound(levels_, choice.level);
  CALIBATT_ASSERT(above != levels_.end());
  const auto i = static_cast<size_t>(above - levels_.begin());
  if (i == 0 || *above == choice.level) return density_at(head, i, choice.anchored);
  const double t = (choice.level - levels_[i - 1]) / (levels_[i] - levels_[i - 1]);
  return (1 - t) * density_at(head, i - 1, choice.anchored) + t * density_at(head, i, choice.anchored);
}

double LevelMeasurements::density_of(std::span<const HeadChoice> choices) const {
  double sum = 0;
  for (int entry = 0; entry < num_entries(); ++entry) {
    const auto own = choices.subspan(static_cast<size_t>(entry) * heads_per_entry(), heads_per_entry());
    sum += entry_density(entry, own) * num_steps_of(entry);
  }
  return sum / header_.num_steps();
}

double LevelMeasurements::entry_density(int entry, std::span<const HeadChoice> choices) const {
  if (options_.budget == Budget::kEnergy) return table_->entry_density(entry, in_units(choices[0].level));
  double mean = 0;
  for (size_t i = 0; i < choices.size(); ++i) {
    mean +=
        density(static_cast<size_t>(entry) * heads_per_entry() + i, choices[i]) / static_cast<double>(choices.size());
  }
  return mean;
}

double LevelMeasurements::error_at(size_t head, size_t i) const {
  return errors_->at(head, level_options()[i]);
}

double LevelMeasurements::error(size_t head, const HeadChoice& choice) const {
  return errors_->at(head, in_units(choice.level));
}

void verify_sites(const Profile& profile, int entry, int first_layer, int num_layers) {
  const auto num_prompts = static_cast<int64_t>(profile.prompts.size());
  parallel_for(num_layers * num_prompts, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      verify_site(profile.header, profile.prompts[static_cast<size_t>(i % num_prompts)], entry,
                  first_layer + static_cast<int>(i / num_prompts));
    }
  });
}

void LevelMeasurements::verify(int entry, int first_layer, int num_layers) const {
  verify_sites(profile_, entry, first_layer, num_layers);
}

template <class Visit>
void LevelMeasurements::visit_rows(size_t head, const Visit& visit) const {
  const AttentionGeometry& g = header_.geometry;
  const int rows = g.num_query_blocks(), columns = g.num_key_blocks();
  const auto heads = static_cast<size_t>(g.heads);
  const int entry = entry_of(head), layer = static_cast<int>(head % heads_per_entry() / heads);
  LevelAgreement agreement(columns, options_.agreement, options_.agreement_threshold, profile_.prompts.size());
  std::vector<const uint8_t*> codes;  // of the next row
  for (const PromptProfile& prompt : profile_.prompts) {
    codes.push_back(site_levels(header_, prompt, entry, layer) +
                    static_cast<int64_t>(head % heads) * rows * packed_row_bytes(columns));
  }
  std::vector<uint16_t> levels(static_cast<size_t>(columns));
  for (int r = 0; r < rows; ++r) {
    agreement.agree(codes, levels);
    keep_own_blocks(g, r, levels);
    visit(r, std::span<const uint16_t>(levels));
    for (const uint8_t*& row : codes) row += packed_row_bytes(columns);
  }
}

HeadPlan LevelMeasurements::head_plan(size_t head, const HeadChoice& choice) const {
  const int level = in_units(choice.level);
  IntervalsBuilder intervals(header_.geometry.num_key_blocks(), options_.merge_gap);
  visit_rows(head, [&](int, std::span<const uint16_t> levels) {
    intervals.add_row([&](int c) { return levels[static_cast<size_t>(c)] < level; });
  });
  HeadPlan plan;
  if (!intervals.keeps_all()) plan.intervals = intervals.take();
  return plan;
}

}  // namespace calibatt
