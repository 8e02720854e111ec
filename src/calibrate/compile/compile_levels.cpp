#include "calibrate/compile/compile_levels.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/thread_pool.h"
#include "calibrate/compile/budget.h"
#include "calibrate/compile/energy_schedule.h"
#include "calibrate/profile/level_agreement.h"
#include "plan/sharing.h"

namespace calibatt {
namespace {

/// Row by row, one head's histogram; done(layer, head, histogram) at its end.
struct Counter {
  const AttentionGeometry& geometry;
  const std::function<void(const LevelTable::Histogram&)> done;
  LevelTable::Histogram own{};
  void row(int r, std::span<const uint16_t> levels) {
    const int64_t queries = geometry.query_block_size(r);
    for (size_t c = 0; c + 1 < levels.size(); ++c) own[levels[c]] += queries * geometry.block_k;
    const int last = static_cast<int>(levels.size()) - 1;
    own[levels[last]] += queries * geometry.key_block_size(last);
  }
  void end() { done(own); }
};

/// Row by row, one head's plan at one level.
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

/// What meet_density aims at: levels, and the density of their plan.
struct Candidate {
  std::vector<uint16_t> levels;
  struct {
    double value = 0;
    double density() const { return value; }
  } plan;
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

LevelPlanner::LevelPlanner(const Profile& profile, const CompileOptions& options)
    : profile_(profile), header_(profile.header), options_(options), entry_of_(entry_of_steps(profile.header)) {
  if (profile_.prompts.size() > LevelAgreement::kMostPrompts) {
    throw Error(ErrorKind::kUsage, "compiling a plan: level codes of " + std::to_string(profile_.prompts.size()) +
                                       " prompts are too many, at most " +
                                       std::to_string(LevelAgreement::kMostPrompts) + " can agree; use fewer");
  }
  frame_.geometry = header_.geometry;
  frame_.num_layers = header_.num_layers;
  frame_.sigmas = header_.sigmas;
  frame_.step_entry = entry_of_;
  frame_.summarize_skipped = options_.skipped == Skipped::kSummary;
  frame_.provenance = header_.provenance;
  frame_.provenance.num_prompts = static_cast<int>(profile_.prompts.size());
  steps_of_.assign(static_cast<size_t>(header_.num_recorded_steps()), 0);
  for (const int entry : entry_of_) ++steps_of_[static_cast<size_t>(entry)];
  if (options_.budget == Budget::kError) {
    set_levels(meeting(options_.density.value_or(kDefaultErrorDensity)));
  } else if (options_.density) {
    set_levels(meeting(*options_.density));
  } else {
    set_levels(of_all_heads(entry_levels(energy_targets(options_, header_.num_steps(), {}, {}))));
  }
}

size_t LevelPlanner::head_index(int entry, int layer, int head) const {
  return (static_cast<size_t>(entry) * static_cast<size_t>(header_.num_layers) + static_cast<size_t>(layer)) *
             static_cast<size_t>(header_.geometry.heads) +
         static_cast<size_t>(head);
}

void LevelPlanner::set_levels(Levels levels) {
  levels_ = std::move(levels);
  frame_.energy_targets.clear();
  for (const int entry : entry_of_) {
    // With budget error every head has a level of its own.
    frame_.energy_targets.push_back(options_.budget == Budget::kError
                                        ? std::numeric_limits<double>::quiet_NaN()
                                        : static_cast<double>(levels_[head_index(entry, 0, 0)]) / kLevelUnits);
  }
}

// Of an entry: the highest of its steps'.
std::vector<int> LevelPlanner::entry_levels(const std::vector<double>& targets) const {
  std::vector<int> levels(static_cast<size_t>(header_.num_recorded_steps()), 1);
  for (size_t step = 0; step < targets.size(); ++step) {
    const int level = std::clamp(static_cast<int>(std::lround(targets[step] * kLevelUnits)), 1, kLevelUnits);
    int& highest = levels[static_cast<size_t>(entry_of_[step])];
    highest = std::max(highest, level);
  }
  return levels;
}

LevelPlanner::Levels LevelPlanner::of_all_heads(const std::vector<int>& entry_levels) const {
  Levels levels;
  const size_t heads_per_entry = head_index(1, 0, 0);
  for (const int level : entry_levels) levels.insert(levels.end(), heads_per_entry, static_cast<uint16_t>(level));
  return levels;
}

LevelPlanner::Levels LevelPlanner::meeting(double density) const {
  const LevelTable table = tabulate();
  const auto at_energies = [&](const std::vector<double>& energies) { return of_all_heads(entry_levels(energies)); };
  const auto aimed = [&](double aim) {
    if (options_.budget == Budget::kError) return least_error(table, aim);
    return at_energies(energy_targets(options_, header_.num_steps(), aim, [&](const std::vector<double>& energies) {
      return density_of(table, at_energies(energies));
    }));
  };
  if (options_.merge_gap == 0) {  // the table is exact
    Levels levels = aimed(density);
    require_density(density_of(table, levels), density);
    return levels;
  }
  const auto made = meet_density(density, [&](double aim) {
    LevelPlanner trial = *this;
    trial.set_levels(aimed(aim));
    return Candidate{trial.levels_, {trial.emit([](std::vector<HeadPlan>&) {}).density}};
  });
  return made.levels;
}

double LevelPlanner::density_of(const LevelTable& table, const Levels& levels) const {
  const size_t heads_per_entry = head_index(1, 0, 0);
  double sum = 0;
  for (size_t entry = 0; entry < steps_of_.size(); ++entry) {
    const size_t first = entry * heads_per_entry;
    double mean = 0;
    if (options_.budget == Budget::kEnergy) {  // one level for all
      mean = table.entry_density(static_cast<int>(entry), levels[first]);
    } else {
      for (size_t i = 0; i < heads_per_entry; ++i) {
        mean += table.density(first + i, levels[first + i]) / static_cast<double>(heads_per_entry);
      }
    }
    sum += mean * steps_of_[entry];
  }
  return sum / header_.num_steps();
}

// An entry counts as often as it has steps: so many times its cost, and the sum of their weights times its error.
LevelPlanner::Levels LevelPlanner::least_error(const LevelTable& table, double density) const {
  std::vector<double> weights(steps_of_.size(), 0.0);
  for (int step = 0; step < header_.num_steps(); ++step) {
    weights[static_cast<size_t>(entry_of_[static_cast<size_t>(step)])] +=
        scheduled_energy(options_.step_weight_floor, 1, options_.step_weight_decay, step, header_.num_steps());
  }
  const LevelErrorCurves errors(profile_, options_.skipped);
  const size_t heads_per_entry = head_index(1, 0, 0);
  const std::span<const int> levels = level_options();
  std::vector<std::vector<HeadOption>> hulls(weights.size() * heads_per_entry);
  for (size_t head = 0; head < hulls.size(); ++head) {
    const size_t entry = head / heads_per_entry;
    std::vector<HeadOption> options;
    for (const int level : levels) {
      options.push_back({table.density(head, level) * steps_of_[entry], weights[entry] * errors.at(head, level),
                         static_cast<double>(level)});
    }
    hulls[head] = convex_hull(std::move(options));
  }
  Levels chosen;
  chosen.reserve(hulls.size());
  const double all = static_cast<double>(heads_per_entry) * header_.num_steps();
  for (const HeadOption& option : allocate(hulls, density * all)) chosen.push_back(static_cast<uint16_t>(option.level));
  return chosen;
}

void LevelPlanner::verify_entry(int entry) const {
  const auto num_prompts = static_cast<int64_t>(profile_.prompts.size());
  parallel_for(header_.num_layers * num_prompts, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      verify_site(header_, profile_.prompts[static_cast<size_t>(i % num_prompts)], entry,
                  static_cast<int>(i / num_prompts));
    }
  });
}

// For every head of these layers, on all threads: make_visitor(layer, head), its row(query block, levels) for each
// query block, and its end().
template <class MakeVisitor>
void LevelPlanner::visit_rows(int entry, int first_layer, int num_layers, const MakeVisitor& make_visitor) const {
  const AttentionGeometry& g = header_.geometry;
  const int rows = g.num_query_blocks(), columns = g.num_key_blocks();
  parallel_for(int64_t{num_layers} * g.heads, 1, [&](int64_t begin, int64_t end, int) {
    LevelAgreement agreement(columns, options_.agreement, options_.agreement_threshold, profile_.prompts.size());
    std::vector<const uint8_t*> packed(profile_.prompts.size());
    std::vector<uint16_t> levels(static_cast<size_t>(columns));
    for (int64_t i = begin; i < end; ++i) {
      const int layer = first_layer + static_cast<int>(i / g.heads), head = static_cast<int>(i % g.heads);
      auto visitor = make_visitor(layer, head);
      for (int r = 0; r < rows; ++r) {
        for (size_t p = 0; p < packed.size(); ++p) {
          packed[p] = site_levels(header_, profile_.prompts[p], entry, layer) +
                      (int64_t{head} * rows + r) * packed_row_bytes(columns);
        }
        agreement.agree(packed, levels);
        keep_own_blocks(g, r, levels);
        visitor.row(r, levels);
      }
      visitor.end();
    }
  });
}

LevelTable LevelPlanner::tabulate() const {
  LevelTable table(header_);
  std::mutex mutex;
  for (int entry = 0; entry < header_.num_recorded_steps(); ++entry) {
    verify_entry(entry);
    visit_rows(entry, 0, header_.num_layers, [&](int layer, int head) {
      return Counter{header_.geometry, [&, layer, head](const LevelTable::Histogram& histogram) {
                       table.set_head(head_index(entry, layer, head), histogram);
                       const std::lock_guard lock(mutex);
                       table.add_to_entry(entry, histogram);
                     }};
    });
  }
  table.finish();
  return table;
}

CompileSummary LevelPlanner::emit(const std::function<void(std::vector<HeadPlan>&)>& sink) const {
  const AttentionGeometry& g = header_.geometry;
  const double tokens = g.num_tokens();
  const int at_a_time = std::max(1, 4 * num_threads() / g.heads);  // layers: enough heads for all threads
  std::vector<std::vector<LayerFacts>> facts(static_cast<size_t>(header_.num_recorded_steps()));
  for (int entry = 0; entry < header_.num_recorded_steps(); ++entry) {
    verify_entry(entry);
    for (int first = 0; first < header_.num_layers; first += at_a_time) {
      const int count = std::min(at_a_time, header_.num_layers - first);
      std::vector<std::vector<HeadPlan>> layers(static_cast<size_t>(count),
                                                std::vector<HeadPlan>(static_cast<size_t>(g.heads)));
      visit_rows(entry, first, count, [&](int layer, int head) {
        return Emitter{layers[static_cast<size_t>(layer - first)][static_cast<size_t>(head)],
                       levels_[head_index(entry, layer, head)], options_.merge_gap, g.num_key_blocks()};
      });
      for (std::vector<HeadPlan>& heads : layers) {
        LayerFacts one;
        one.density = 0;
        for (const HeadPlan& head : heads) {
          if (!head.intervals) {
            one.density += 1.0 / g.heads;
            continue;
          }
          const auto pairs = kept_token_pairs(*head.intervals, g.num_tokens(), g.block_q, g.num_tokens(), g.block_k);
          one.density += static_cast<double>(pairs) / (tokens * tokens * g.heads);
          if (frame_.summarize_skipped) one.summary_pairs += g.num_key_blocks() / tokens / g.heads;
        }
        facts[static_cast<size_t>(entry)].push_back(one);
        sink(heads);
      }
    }
  }
  CompileSummary summary = summarize(entry_of_, facts, g.heads, options_.attention_share);
  if (header_.output_errors) add_errors(summary);
  return summary;
}

void LevelPlanner::add_errors(CompileSummary& summary) const {
  const LevelErrorCurves errors(profile_, options_.skipped);
  const size_t heads_per_entry = head_index(1, 0, 0);
  double sum = 0;
  for (const int entry : entry_of_) {
    double step = 0;
    for (size_t i = 0; i < heads_per_entry; ++i) {
      const size_t head = static_cast<size_t>(entry) * heads_per_entry + i;
      step += errors.at(head, levels_[head]) / header_.num_layers;
    }
    summary.step_error.push_back(std::sqrt(step));
    sum += step;
  }
  summary.held_out_error = std::sqrt(sum / header_.num_steps());
  summary.error_is_held_out = errors.held_out();
}

CompiledPlan compile_levels(const Profile& profile, const CompileOptions& options) {
  const auto whole = [&](const CompileOptions& each) {
    const LevelPlanner planner(profile, each);
    CompiledPlan compiled{{planner.frame(), {}}, {}};
    compiled.summary = planner.emit([&](std::vector<HeadPlan>& heads) {
      for (HeadPlan& head : heads) compiled.parts.heads.push_back(std::move(head));
    });
    return compiled;
  };
  if (options.share_steps_iou == 0) return whole(options);
  struct Shared {
    Plan plan;
  };
  const auto shared = [&](std::optional<double> density) {
    CompileOptions each = options;
    each.density = density;
    return Shared{Plan(share_adjacent_steps(whole(each).parts, options.share_steps_iou))};
  };
  const Shared made = options.density ? meet_density(*options.density, shared) : shared({});
  return {made.plan.to_parts(), summarize(made.plan, options.attention_share)};
}

}  // namespace calibatt
