#include "calibrate/calibration_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "base/error.h"

namespace calibatt {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

CalibrateOptions sound() {
  CalibrateOptions options;
  options.prompts = {{"a red circle", "prompts.txt, line 1"}, {"a blue square", "prompts.txt, line 2"}};
  options.profile_dir = "folder";
  return options;
}

std::string message(const std::function<void()>& ask, ErrorKind kind = ErrorKind::kUsage) {
  try {
    ask();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind);
    return error.what();
  }
  return "";
}

std::string refusal(const std::function<void(CalibrateOptions&)>& change) {
  CalibrateOptions options = sound();
  change(options);
  return message([&] { validate(options); });
}

TEST(CalibrationOptions, DefaultsAreSound) {
  EXPECT_EQ(refusal([](CalibrateOptions&) {}), "");
}

TEST(CalibrationOptions, AShareOfAttentionStandsAgainstWhatIsMeasured) {
  CalibrateOptions options = sound();
  EXPECT_FALSE(compile_options_of(options).attention_share_is_asked);
  options.attention_share = 0.82;
  EXPECT_TRUE(compile_options_of(options).attention_share_is_asked);
  EXPECT_EQ(compile_options_of(options).attention_share, 0.82);
}

// Every field that a person can set, without a model.
TEST(CalibrationOptions, EachIsJudgedBeforeAnythingRuns) {
  using O = CalibrateOptions;
  const std::pair<const char*, std::function<void(O&)>> wrong[] = {
      {"--density nan", [](O& o) { o.density = kNan; }},
      {"--density 0", [](O& o) { o.density = 0; }},
      {"--rho -5", [](O& o) { o.agreement_threshold = -5; }},
      {"--schedule-a 9", [](O& o) { o.schedule_a = 9; }},
      {"--schedule-c -1", [](O& o) { o.schedule_c = -1; }},
      {"--schedule-k inf", [](O& o) { o.schedule_k = std::numeric_limits<double>::infinity(); }},
      {"--step-weight -1e+09", [](O& o) { o.step_weight_decay = -1e9; }},
      {"--gamma nan", [](O& o) { o.similarity_threshold = kNan; }},
      {"--merge-gap -5", [](O& o) { o.merge_gap = -5; }},
      {"--attention-share 1.5", [](O& o) { o.attention_share = 1.5; }},
      {"--share-steps 9", [](O& o) { o.share_steps_iou = 9; }},
      {"--block-q 0", [](O& o) { o.block_q = 0; }},
      {"--block-k 4096", [](O& o) { o.block_k = 4096; }},
      {"--anchors 0", [](O& o) { o.anchor_rows_per_frame = 0; }},
      {"--anchors -2", [](O& o) { o.anchor_rows_per_frame = -2; }},
      {"--steps-recorded 0", [](O& o) { o.steps_recorded = 0; }},
      {"--prompt-range 1:1",
       [](O& o) {
         o.prompt_range = {1, 1};
       }},
      {"--prompt-range 0:3",
       [](O& o) {
         o.prompt_range = {0, 3};
       }},
      {"--prompt-range -1:1",
       [](O& o) {
         o.prompt_range = {-1, 1};
       }},
      {"--budget none", [](O& o) { o.budget = "none"; }},
      {"--skipped x", [](O& o) { o.skipped = "x"; }},
      {"--agreement x", [](O& o) { o.agreement = "x"; }},
      {"--ranking x", [](O& o) { o.ranking = "x"; }},
      {"--repetition x", [](O& o) { o.repetition = "x"; }},
      {"--measure x", [](O& o) { o.measure = "x"; }},
  };
  for (const auto& [start, change] : wrong) {
    const std::string text = refusal(change);
    EXPECT_THAT(text, AllOf(StartsWith(std::string(start) + ": must be"), ::testing::Not(HasSubstr("\n"))));
    EXPECT_LT(text.size(), 200u);
  }
  EXPECT_THAT(refusal([](O& o) { o.token_order = "tiles:0x2x2"; }), HasSubstr("tile"));
  EXPECT_THAT(refusal([](O& o) { o.prompts.clear(); }), HasSubstr("at least one prompt"));
  EXPECT_LT(refusal([](O& o) { o.budget = std::string(5000, 'x'); }).size(), 200u);
}

TEST(CalibrationOptions, ContradictionsAreNamed) {
  using O = CalibrateOptions;
  EXPECT_THAT(refusal([](O& o) { o.budget = "energy", o.ranking = "harm"; }), StartsWith("--ranking harm"));
  EXPECT_THAT(refusal([](O& o) { o.agreement = "vote"; }), StartsWith("--agreement vote"));
  EXPECT_THAT(refusal([](O& o) { o.measure = "maps", o.steps_recorded = 2; }), StartsWith("--steps-recorded"));
  EXPECT_THAT(refusal([](O& o) { o.measure = "levels", o.repetition = "similarity"; }),
              StartsWith("--repetition similarity: level codes know"));
  EXPECT_THAT(refusal([](O& o) { o.measure = "levels", o.repetition = "error", o.budget = "energy"; }),
              StartsWith("--repetition error: level codes know"));
  for (const char* repetition : {"off", "error", ""}) {
    EXPECT_EQ(refusal([&](O& o) { o.measure = "levels", o.ranking = "harm", o.repetition = repetition; }), "");
  }
}

// Prompts are measured without 8 bits, whatever the plan will have.
TEST(CalibrationOptions, StepsIn8BitsAreNoneOfARangesOfPrompts) {
  for (const auto& [flag, field] :
       {std::pair{"--eight-bit-attention-from 1: ", &CalibrateOptions::eight_bit_attention_from},
        std::pair{"--eight-bit-layers-from 1: ", &CalibrateOptions::eight_bit_layers_from}}) {
    const auto with = [&](bool range) {
      return refusal([&](CalibrateOptions& o) {
        o.*field = 1;
        if (range) o.prompt_range = {0, 1};
      });
    };
    EXPECT_THAT(with(true), AllOf(StartsWith(flag), HasSubstr("leave it out here")));
    EXPECT_EQ(with(false), "");
  }
}

TEST(CalibrationOptions, MapsOrLevelCodes) {
  MeasureFacts nothing, too_dear, maps, levels;
  too_dear.maps_refusal = "it would take a year";
  maps.existing = ProfileHeader{};
  levels.existing = ProfileHeader{};
  levels.existing->measured = Measured::kLevels;
  CalibrateOptions options = sound();
  EXPECT_EQ(choose_measured(options, nothing), Measured::kMaps);
  EXPECT_EQ(choose_measured(options, too_dear), Measured::kLevels);
  EXPECT_EQ(choose_measured(options, maps), Measured::kMaps);
  EXPECT_EQ(choose_measured(options, levels), Measured::kLevels);
  EXPECT_EQ(note_of_choice(options, nothing, Measured::kMaps), "");
  EXPECT_EQ(note_of_choice(options, too_dear, Measured::kLevels), "level codes, since it would take a year");
  options.budget = "energy";
  EXPECT_EQ(choose_measured(options, nothing), Measured::kLevels);
  EXPECT_EQ(note_of_choice(options, too_dear, Measured::kLevels), "");
  options.repetition = "similarity";
  EXPECT_EQ(choose_measured(options, nothing), Measured::kMaps);
  EXPECT_THAT(message([&] { choose_measured(options, too_dear); }), StartsWith("it would take a year; leave out"));
  EXPECT_THAT(message([&] { choose_measured(options, levels); }), StartsWith("folder holds level codes"));
  options.measure = "maps";
  EXPECT_EQ(choose_measured(options, too_dear), Measured::kMaps);
  EXPECT_THAT(message([&] { choose_measured(options, levels); }, ErrorKind::kMismatch),
              StartsWith("folder holds level codes, --measure maps asks for maps"));
}

// A default is no user's fault.
TEST(CalibrationOptions, DefaultAnchorRowsFitTheFrame) {
  CalibrateOptions options = sound();
  MeasureFacts facts;
  EXPECT_EQ(choose_anchor_rows(options, facts, 30), kDefaultAnchorRows);
  EXPECT_EQ(choose_anchor_rows(options, facts, 4), 4);
  facts.existing = ProfileHeader{};
  facts.existing->anchor_rows = {2};
  EXPECT_EQ(choose_anchor_rows(options, facts, 4), 2) << "what the folder was measured with";
  options.anchor_rows_per_frame = 3;
  EXPECT_EQ(choose_anchor_rows(options, facts, 4), 3);
  options.anchor_rows_per_frame = 5;
  EXPECT_THAT(message([&] { choose_anchor_rows(options, facts, 4); }),
              StartsWith("--anchors 5: must be between 1 and the 4 rows"));
}

/// Of a run of as many steps.
ProfileHeader tiny_header(int num_steps) {
  ProfileHeader header;
  header.geometry.frames = header.geometry.height = header.geometry.width = 2;
  header.geometry.heads = header.geometry.head_dim = header.num_layers = 1;
  for (int step = 0; step < num_steps; ++step) header.sigmas.push_back(1 - double{1} * step / num_steps);
  return header;
}

TEST(CalibrationOptions, RecordedSteps) {
  CalibrateOptions options = sound();
  const MeasureFacts facts;
  const ProfileHeader header = tiny_header(5);
  EXPECT_THAT(choose_recorded_steps(options, facts, header), ElementsAre(0, 1, 2, 3, 4));
  options.steps_recorded = 3;
  EXPECT_THAT(choose_recorded_steps(options, facts, header), ElementsAre(0, 2, 4));
  options.steps_recorded = 6;
  EXPECT_EQ(message([&] { choose_recorded_steps(options, facts, header); }),
            "--steps-recorded 6: must be between 1 and the run's 5 steps");
}

TEST(CalibrationOptions, LevelCodesFitTheCompilerToThem) {
  CalibrateOptions options = sound();
  options.measure = "levels";
  options.density = 1;
  CompileOptions compile = compile_options_of(options);
  ProfileHeader header = tiny_header(2);
  choose_measurements(options, {}, header, compile);
  EXPECT_TRUE(header.has_harm_codes());
  EXPECT_EQ(header.code_skipped, Skipped::kSummary);
  EXPECT_THAT(header.anchor_rows, ElementsAre(2)) << "all rows of so low a frame";
  EXPECT_EQ(compile.repetition, Repetition::kError);
  EXPECT_EQ(compile.ranking, Ranking::kHarm);
  EXPECT_EQ(compile.anchor_rows_per_frame, 2);
  options.budget = "energy";
  compile = compile_options_of(options);
  choose_measurements(options, {}, header, compile);
  EXPECT_EQ(header.code_ranking, Ranking::kEnergy);
  EXPECT_THAT(header.anchor_rows, IsEmpty());
  EXPECT_EQ(compile.repetition, Repetition::kOff);
  // A folder that holds codes by energy goes on with them.
  options.budget = "error";
  compile = compile_options_of(options);
  ProfileHeader again = tiny_header(2);
  choose_measurements(options, {header, ""}, again, compile);
  EXPECT_EQ(again.code_ranking, Ranking::kEnergy);
  EXPECT_EQ(compile.ranking, Ranking::kEnergy);
  options.ranking = "harm";
  compile = compile_options_of(options);
  EXPECT_THAT(message([&] {
                choose_measurements(options, {header, ""}, again, compile);
              }),
              HasSubstr("level codes by energy"));
  options.prompt_range = {0, 1};  // nor are they measured for a command that could not use them
  EXPECT_THAT(message([&] {
                choose_measurements(options, {header, ""}, again, compile);
              }),
              HasSubstr("level codes by energy"));
  options.prompt_range.reset();
  options.ranking = "";
  compile = compile_options_of(options);
  // A folder without output errors serves no error budget, and this is known before any prompt.
  header = again;
  MeasureFacts facts{header, ""};
  facts.existing->output_errors = false;
  EXPECT_THAT(message([&] { choose_measurements(options, facts, header, compile); }), HasSubstr("no output errors"));
  // Nor is a density that no plan can have found after hours.
  compile = compile_options_of(options);
  compile.density = 0.5;
  EXPECT_THAT(message([&] { choose_measurements(options, {}, header, compile); }),
              StartsWith("--density 0.5: cannot be reached"));
}

// Of the codes that agree by votes; found before hours of measuring, by those too who measure a part.
TEST(CalibrationOptions, MorePromptsThanLevelCodesByEnergyBearAreRefused) {
  CalibrateOptions options = sound();
  options.measure = "levels";
  options.density = 1;
  const auto refusal = [&](int num_prompts) {
    CompileOptions compile = compile_options_of(options);
    ProfileHeader header = tiny_header(2);
    header.provenance.num_prompts = num_prompts;
    return message([&] { choose_measurements(options, {}, header, compile); });
  };
  const std::string of_harm = refusal(256);
  options.budget = "energy";
  const std::string sound_number = refusal(255);
  EXPECT_EQ(of_harm, sound_number) << "no refusal";
  EXPECT_THAT(refusal(256), StartsWith("256 prompts: of level codes by energy at most 255 can agree"));
  options.prompt_range = {0, 1};
  EXPECT_THAT(refusal(256), StartsWith("256 prompts: "));
}

}  // namespace
}  // namespace calibatt
