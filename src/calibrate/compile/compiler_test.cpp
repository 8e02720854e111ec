#include "calibrate/compile/compiler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>

#include "backend/cpu/make_backend.h"
#include "base/error.h"
#include "calibrate/compile/level_measurements.h"
#include "calibrate/record/calibrator.h"
#include "calibrate/record/synthetic_attention.h"
#include "io/test_folder.h"

namespace calibatt {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr int kRunSteps = 4, kRunLayers = 3, kRunHeads = 2;

enum class Recorded : uint8_t { kMaps, kEnergyCodes, kHarmCodes };

ProfileHeader header_of(Recorded source) {
  ProfileHeader header;
  header.geometry.frames = 6, header.geometry.height = 8, header.geometry.width = 8;
  header.geometry.heads = kRunHeads, header.geometry.head_dim = 16;
  header.geometry.block_q = header.geometry.block_k = 16;
  header.num_layers = kRunLayers;
  header.sigmas = {1.0, 0.9, 0.5, 0.2};
  header.anchor_rows = {2};
  header.provenance.num_prompts = 2;
  if (source == Recorded::kMaps) return header;
  header.measured = Measured::kLevels;
  header.code_ranking = source == Recorded::kHarmCodes ? Ranking::kHarm : Ranking::kEnergy;
  header.recorded_steps = {0, 2, 3};
  if (source == Recorded::kEnergyCodes) header.anchor_rows.clear();
  return header;
}

/// Of a synthetic model, of either kind.
const Profile& profile_of(Recorded source) {
  const auto record = [](Recorded kind, const TestFolder& folder) {
    const ProfileHeader header = header_of(kind);
    const auto run = [&](int prompt, SelfAttention& attention) {
      run_synthetic(header.geometry, kRunSteps, kRunLayers, prompt, attention);
      return 0.0;
    };
    return record_profile(*make_backend("cpu"), header, folder.path(), run).profile;
  };
  static const TestFolder maps_folder, energy_folder, harm_folder;
  static const Profile maps = record(Recorded::kMaps, maps_folder),
                       by_energy = record(Recorded::kEnergyCodes, energy_folder),
                       by_harm = record(Recorded::kHarmCodes, harm_folder);
  return source == Recorded::kMaps ? maps : source == Recorded::kEnergyCodes ? by_energy : by_harm;
}

class AllSources : public ::testing::TestWithParam<Recorded> {
 protected:
  AllSources() {
    options.anchor_rows_per_frame = 2;
    options.density = 0.5;
    if (GetParam() != Recorded::kEnergyCodes) return;
    options.repetition = Repetition::kOff;
    options.ranking = Ranking::kEnergy;
  }
  const Profile& profile = profile_of(GetParam());
  CompileOptions options;
  TestFolder folder;
};
INSTANTIATE_TEST_SUITE_P(Recordings, AllSources,
                         ::testing::Values(Recorded::kMaps, Recorded::kEnergyCodes, Recorded::kHarmCodes),
                         [](const auto& info) {
                           return info.param == Recorded::kMaps          ? "Maps"
                                  : info.param == Recorded::kEnergyCodes ? "EnergyCodes"
                                                                         : "HarmCodes";
                         });

TEST_P(AllSources, ProgressRisesToItsTotal) {
  for (const int merge_gap : {0, 1}) {
    options.merge_gap = merge_gap;  // with trial plans, and without
    std::vector<Progress> states;
    compile_to_file(profile, options, folder / "plan", [&](const Progress& state) { states.push_back(state); });
    ASSERT_FALSE(states.empty());
    for (size_t i = 0; i < states.size(); ++i) {
      EXPECT_EQ(states[i].stage, "compile");
      EXPECT_LE(states[i].done, states[i].total);
      if (i > 0) {
        EXPECT_GE(states[i].done, states[i - 1].done);
        // All heads of so many layers as keep the threads busy, and no more, between two calls.
        EXPECT_LE(states[i].done - states[i - 1].done, kRunLayers);
      }
    }
    EXPECT_EQ(states.front().done, 0);
    EXPECT_EQ(states.back().done, states.back().total);
    EXPECT_GE(states.size(), 2 * header_of(GetParam()).recorded_steps.size());
  }
}

TEST_P(AllSources, APlanSaysWhatIsIn8BitsWhereThatIsAsked) {
  const int num_steps = profile.header.num_steps();
  const auto compiled = [&] { return compile_plan(profile, options).parts.eight_bits; };
  EXPECT_THAT(compiled(), IsEmpty());
  options.eight_bit_layers_from = 1;
  std::vector<EightBitParts> expected(static_cast<size_t>(num_steps), {.layers = true});
  expected[0] = {};
  EXPECT_EQ(compiled(), expected);
  options.eight_bit_attention_from = num_steps;  // never
  EXPECT_EQ(compiled(), expected);
  options.eight_bit_attention_from = 0;
  for (EightBitParts& each : expected) each.attention = true;
  EXPECT_EQ(compiled(), expected);
  options.share_steps_iou = 0.45;
  EXPECT_EQ(compiled(), expected) << "steps that share masks";
  compile_to_file(profile, options, folder / "plan");
  EXPECT_EQ(load_plan(folder / "plan")->info().eight_bits, expected);
  options.eight_bit_attention_from = num_steps + 1;
  EXPECT_THROW(compiled(), Error);
}

TEST_P(AllSources, WhatTheCallbackThrowsEndsTheJobWithoutAFile) {
  for (const double share_steps_iou : {0.0, 0.3}) {
    options.share_steps_iou = share_steps_iou;
    options.merge_gap = 1;
    int calls = 0;
    compile_to_file(profile, options, folder / "plan", [&](const Progress&) { ++calls; });
    ASSERT_THAT(folder.list(), ElementsAre("plan"));
    std::filesystem::remove(folder / "plan");
    for (int last = 0; last < calls; ++last) {
      int left = last;
      EXPECT_THROW(compile_to_file(profile, options, folder / "plan",
                                   [&](const Progress&) {
                                     if (left-- == 0) throw std::runtime_error("stop");
                                   }),
                   std::runtime_error);
      ASSERT_THAT(folder.list(), IsEmpty()) << "stopped at call " << last << " of " << calls;
    }
  }
}

// A default is what it says, whichever way it is given: also where steps share.
TEST_P(AllSources, TheDefaultDensityIsMetAlsoByStepsThatShare) {
  options.share_steps_iou = 0.45;
  options.density = kDefaultErrorDensity;
  const CompiledPlan given = compile_plan(profile, options);
  options.density.reset();
  const CompiledPlan absent = compile_plan(profile, options);
  EXPECT_EQ(given.parts.heads, absent.parts.heads);
  EXPECT_LT(given.summary.num_entries, kRunSteps);
  EXPECT_LE(absent.summary.density, kDefaultErrorDensity * 1.05);
  EXPECT_FALSE(std::isnan(absent.summary.held_out_error));
}

TEST_P(AllSources, FilledGapsAndSharedStepsTogetherMeetTheDensity) {
  options.share_steps_iou = 0.3;
  options.merge_gap = 1;
  for (const Budget budget : {Budget::kError, Budget::kEnergy}) {
    if (budget == Budget::kEnergy && GetParam() == Recorded::kHarmCodes) continue;  // they know no energy
    options.budget = budget;
    const CompiledPlan compiled = compile_plan(profile, options);
    // Whole steps merge or do not: few steps leave large jumps below, none above.
    EXPECT_LE(compiled.summary.density, 0.5 * 1.01);
    EXPECT_DOUBLE_EQ(compiled.summary.density, Plan(compiled.parts).density());
  }
}

TEST_P(AllSources, ThePlanCarriesItsPredictedError) {
  options.density = kDefaultErrorDensity;
  for (const double share_steps_iou : {0.0, 0.45}) {
    options.share_steps_iou = share_steps_iou;
    const CompileSummary summary = compile_to_file(profile, options, folder / "plan");
    const PlanAccuracy accuracy = load_plan(folder / "plan")->info().accuracy;
    EXPECT_GT(summary.held_out_error, 0);
    EXPECT_EQ(accuracy, (PlanAccuracy{summary.held_out_error, true, {}, {}, {}}));
  }
  Profile one = profile;
  one.prompts.resize(1);  // its errors are its own
  const CompiledPlan compiled = compile_plan(one, options);
  EXPECT_TRUE(compiled.parts.accuracy.predicted.has_value());
  EXPECT_FALSE(compiled.parts.accuracy.held_out);
}

/// Measurements by hand: density is the level, error what a test says.
class Table : public Measurements {
 public:
  Table(const Profile& profile, const CompileOptions& options, std::vector<int> step_entry,
        std::vector<double> full_error, bool coarse)
      : Measurements(profile, options, std::move(step_entry)), full_error_(std::move(full_error)), coarse_(coarse) {}
  std::span<const double> levels() const override { return levels_; }
  void tabulate(CompileProgress&) override {}
  double density_at(size_t, size_t i, bool) const override { return levels_[i]; }
  double density(size_t, const HeadChoice& choice) const override { return choice.level; }
  double density_of(std::span<const HeadChoice> choices) const override {
    double sum = 0;
    for (size_t head = 0; head < choices.size(); ++head) sum += choices[head].level * num_steps_of(entry_of(head));
    return sum / static_cast<double>(heads_per_entry() * step_entry().size());
  }
  bool densities_are_exact() const override { return true; }
  bool may_be_coarse() const override { return coarse_; }
  bool errors_are_held_out() const override { return true; }
  double error_at(size_t head, size_t i) const override { return error(head, {levels_[i], false}); }
  double error(size_t head, const HeadChoice& choice) const override {
    return full_error_[head] * (1 - choice.level) * (1 - choice.level);
  }
  void verify(int, int, int) const override {}
  HeadPlan head_plan(size_t, const HeadChoice&) const override { return {}; }

 private:
  std::vector<double> levels_{0.2, 0.4, 0.6, 0.8, 1.0}, full_error_;
  bool coarse_;
};

class OneHead : public ::testing::Test {
 protected:
  OneHead() {
    profile.header.geometry.frames = profile.header.geometry.height = profile.header.geometry.width = 1;
    profile.header.geometry.heads = profile.header.num_layers = 1;
    profile.header.geometry.head_dim = 1;
    options.repetition = Repetition::kOff;
    options.step_weight_decay = 0;
  }
  Choices chosen(std::vector<int> step_entry, std::vector<double> full_error) {
    profile.header.sigmas.clear();
    for (size_t step = 0; step < step_entry.size(); ++step) {  // equally long steps: Wan's at shift 5
      const double even = 1 - static_cast<double>(step) / static_cast<double>(step_entry.size());
      profile.header.sigmas.push_back(5 * even / (1 + 4 * even));
    }
    Table table(profile, options, std::move(step_entry), std::move(full_error), coarse);
    const ProgressCallback none;
    CompileProgress progress(none, 1, 2);
    return Compiler(table, options, 1, progress).choose();
  }
  static std::vector<double> levels_of(const Choices& choices) {
    std::vector<double> levels;
    for (const HeadChoice& head : choices.heads) levels.push_back(head.level);
    return levels;
  }
  Profile profile;
  CompileOptions options;
  bool coarse = false;
};

TEST_F(OneHead, AnEntryCostsAndCountsAsOftenAsItHasSteps) {
  options.density = 0.6;
  // Equal errors, one step each: equal levels.
  EXPECT_THAT(levels_of(chosen({0, 1}, {1, 1})), ElementsAre(0.6, 0.6));
  // Three steps share the first entry: it costs three times, and its error counts three times.
  EXPECT_THAT(levels_of(chosen({0, 0, 0, 1}, {1, 1})), ElementsAre(0.6, 0.6));
  EXPECT_THAT(levels_of(chosen({0, 0, 0, 1}, {1, 100})), ElementsAre(0.4, 1.0));
  options.density = 0.1;
  EXPECT_THROW(chosen({0, 1}, {1, 1}), Error);
}

// Steps of a fifth of a head: the nearest density is meant where it may lie above, as it always was with maps.
TEST_F(OneHead, OfMapsTheNearestDensityCounts) {
  for (const auto& [density, nearest] : {std::pair{0.58, 0.6}, {0.44, 0.4}}) {
    options.density = density;
    coarse = true;
    EXPECT_THAT(levels_of(chosen({0}, {1})), ElementsAre(nearest));
    coarse = false;
    EXPECT_THAT(levels_of(chosen({0}, {1})), ElementsAre(0.4));
  }
}

TEST_F(OneHead, AnEntryKeepsTheMostThatAStepOfItHasToKeep) {
  options.budget = Budget::kEnergy;
  options.schedule_a = 0.5, options.schedule_c = 0.9, options.schedule_k = 2;
  const Choices choices = chosen({0, 0, 1, 1}, {1, 1});
  const auto target = [](int step) { return 0.5 + 0.4 * std::exp(-2.0 * step / 4); };
  EXPECT_THAT(levels_of(choices), ElementsAre(::testing::DoubleEq(target(0)), ::testing::DoubleEq(target(2))));
  EXPECT_EQ(choices.energy_targets[1], choices.heads[0].level);
  EXPECT_EQ(choices.energy_targets[3], choices.heads[1].level);
}

}  // namespace
}  // namespace calibatt
