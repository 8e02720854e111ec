#include "calibrate/compile_levels.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <mutex>
#include <utility>

#include "base/error.h"
#include "base/thread_pool.h"
#include "calibrate/energy_schedule.h"
#include "calibrate/level_agreement.h"
#include "plan/sharing.h"

namespace calibatt {
namespace {

/// Token pairs of the blocks of each level; kept at level j are those of all levels below j.
using LevelHistogram = std::array<int64_t, kLevelUnits>;

class LevelCompiler {
 public:
  LevelCompiler(const Profile& profile, const CompileOptions& options)
      : profile_(profile), header_(profile.header), options_(options), entry_of_(entry_of_steps(profile.header)) {}

  CompiledPlan compile() {
    Candidate made = options_.density ? meet_density(*options_.density, [this](double aim) { return candidate(aim); })
                                      : candidate({});
    CompileSummary summary = summarize(made.plan, options_.attention_share);
    return {made.plan.parts(), std::move(summary)};
  }

 private:
  struct Candidate {
    Plan plan;
  };

  Candidate candidate(std::optional<double> density) {
    if (density && densities_.empty()) tabulate_densities();
    const std::vector<double> targets =
        energy_targets(options_, header_.num_steps(), density, [this](const std::vector<double>& energies) {
          const std::vector<int> levels = entry_levels(energies);
          double sum = 0;
          for (const int entry : entry_of_) sum += densities_[static_cast<size_t>(entry)][levels[entry]];
          return sum / header_.num_steps();
        });
    return {Plan(parts_of(entry_levels(targets)))};
  }

  // The level of an entry, in units: the highest of its steps'.
  std::vector<int> entry_levels(const std::vector<double>& targets) const {
    std::vector<int> levels(static_cast<size_t>(header_.num_recorded_steps()), 1);
    for (size_t step = 0; step < targets.size(); ++step) {
      const int level = std::clamp(static_cast<int>(std::lround(targets[step] * kLevelUnits)), 1, kLevelUnits);
      int& highest = levels[static_cast<size_t>(entry_of_[step])];
      highest = std::max(highest, level);
    }
    return levels;
  }

  // visit(layer, head, query block, levels) for every row of an entry, on all threads.
  template <class MakeVisitor>
  void for_each_head(int entry, const MakeVisitor& make_visitor) const {
    const AttentionGeometry& g = header_.geometry;
    const int rows = g.num_query_blocks(), columns = g.num_key_blocks();
    const auto num_prompts = static_cast<int64_t>(profile_.prompts.size());
    parallel_for(header_.num_layers * num_prompts, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        verify_site(header_, profile_.prompts[static_cast<size_t>(i % num_prompts)], entry,
                    static_cast<int>(i / num_prompts));
      }
    });
    parallel_for(int64_t{header_.num_layers} * g.heads, 1, [&](int64_t begin, int64_t end, int) {
      LevelAgreement agreement(columns, options_.agreement, options_.agreement_threshold, profile_.prompts.size());
      std::vector<const uint8_t*> packed(profile_.prompts.size());
      std::vector<uint16_t> levels(static_cast<size_t>(columns));
      for (int64_t i = begin; i < end; ++i) {
        const int layer = static_cast<int>(i / g.heads), head = static_cast<int>(i % g.heads);
        auto visitor = make_visitor(layer, head);
        for (int r = 0; r < rows; ++r) {
          for (size_t p = 0; p < packed.size(); ++p) {
            packed[p] = site_levels(header_, profile_.prompts[p], entry, layer) +
                        (int64_t{head} * rows + r) * packed_row_bytes(columns);
          }
          agreement.agree(packed, levels);
          const int first_token = r * g.block_q, last_token = first_token + g.query_block_size(r) - 1;
          for (int c = first_token / g.block_k; c <= last_token / g.block_k; ++c) levels[c] = 0;  // its own blocks
          visitor.row(r, levels);
        }
        visitor.end();
      }
    });
  }

  void tabulate_densities() {
    struct Counter {
      const AttentionGeometry& geometry;
      LevelHistogram& total;
      std::mutex& mutex;
      LevelHistogram own{};
      void row(int r, std::span<const uint16_t> levels) {
        const int64_t queries = geometry.query_block_size(r);
        for (size_t c = 0; c + 1 < levels.size(); ++c) own[levels[c]] += queries * geometry.block_k;
        const int last = static_cast<int>(levels.size()) - 1;
        own[levels[last]] += queries * geometry.key_block_size(last);
      }
      void end() {
        const std::lock_guard lock(mutex);
        for (size_t i = 0; i < own.size(); ++i) total[i] += own[i];
      }
    };
    const double tokens = header_.geometry.num_tokens();
    const double all = tokens * tokens * header_.num_layers * header_.geometry.heads;
    for (int entry = 0; entry < header_.num_recorded_steps(); ++entry) {
      LevelHistogram histogram{};
      std::mutex mutex;
      for_each_head(entry, [&](int, int) { return Counter{header_.geometry, histogram, mutex}; });
      std::vector<double>& densities = densities_.emplace_back(1, 0.0);
      int64_t kept = 0;
      for (const int64_t pairs : histogram) {
        kept += pairs;
        densities.push_back(static_cast<double>(kept) / all);
      }
    }
  }

  Plan::Parts parts_of(const std::vector<int>& levels) const {
    struct Emitter {
      HeadPlan& head;
      int level, merge_gap, num_key_blocks;
      std::vector<uint32_t> offsets{0};
      std::vector<BlockInterval> intervals{};
      int64_t kept = 0;
      void row(int, std::span<const uint16_t> of_blocks) {
        const size_t first = intervals.size();
        for (int c = 0; c < num_key_blocks; ++c) {
          if (of_blocks[static_cast<size_t>(c)] >= level) continue;
          const auto block = static_cast<uint32_t>(c);
          if (intervals.size() > first && block - intervals.back().end <= static_cast<uint32_t>(merge_gap)) {
            intervals.back().end = block + 1;
          } else {
            intervals.push_back({block, block + 1});
          }
        }
        for (size_t i = first; i < intervals.size(); ++i) kept += intervals[i].end - intervals[i].begin;
        offsets.push_back(static_cast<uint32_t>(intervals.size()));
      }
      void end() {
        if (kept == int64_t{num_key_blocks} * static_cast<int64_t>(offsets.size() - 1)) return;  // dense
        intervals.shrink_to_fit();
        head.intervals.emplace(num_key_blocks, std::move(offsets), std::move(intervals));
      }
    };
    const AttentionGeometry& g = header_.geometry;
    const int entries = header_.num_recorded_steps();
    Plan::Parts parts;
    parts.geometry = g;
    parts.num_layers = header_.num_layers;
    parts.sigmas = header_.sigmas;
    parts.step_entry = entry_of_;
    parts.heads.resize(static_cast<size_t>(entries) * header_.num_layers * g.heads);
    for (int entry = 0; entry < entries; ++entry) {
      for_each_head(entry, [&](int layer, int head) {
        const size_t at = (static_cast<size_t>(entry) * header_.num_layers + layer) * g.heads + head;
        return Emitter{parts.heads[at], levels[static_cast<size_t>(entry)], options_.merge_gap, g.num_key_blocks()};
      });
    }
    for (const int entry : entry_of_) {
      parts.energy_targets.push_back(static_cast<double>(levels[static_cast<size_t>(entry)]) / kLevelUnits);
    }
    parts.summarize_skipped = options_.skipped == Skipped::kSummary;
    parts.provenance = header_.provenance;
    parts.provenance.num_prompts = static_cast<int>(profile_.prompts.size());
    if (options_.share_steps_iou > 0) parts = share_adjacent_steps(std::move(parts), options_.share_steps_iou);
    return parts;
  }

  const Profile& profile_;
  const ProfileHeader& header_;
  const CompileOptions& options_;
  const std::vector<int> entry_of_;             ///< of each step
  std::vector<std::vector<double>> densities_;  ///< [entry][level in units, 0 … kLevelUnits]
};

}  // namespace

std::vector<int> entry_of_steps(const ProfileHeader& header) {
  std::vector<int> entries;
  for (const double sigma : header.sigmas) {
    const auto distance = [&](int step) { return std::abs(header.sigmas[static_cast<size_t>(step)] - sigma); };
    const auto nearest = std::min_element(header.recorded_steps.begin(), header.recorded_steps.end(),
                                          [&](int a, int b) { return distance(a) < distance(b); });
    entries.push_back(static_cast<int>(nearest - header.recorded_steps.begin()));
  }
  return entries;
}

CompiledPlan compile_levels(const Profile& profile, const CompileOptions& options) {
  return LevelCompiler(profile, options).compile();
}

}  // namespace calibatt
