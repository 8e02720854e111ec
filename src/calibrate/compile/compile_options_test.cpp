#include "calibrate/compile/compile_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "base/error.h"

namespace calibatt {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN(), kInfinity = std::numeric_limits<double>::infinity();

template <class... Arguments>
std::string refusal(const Arguments&... arguments) {
  try {
    validate(arguments...);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    return error.what();
  }
  return "";
}

struct Case {
  const char* flag;
  std::function<void(CompileOptions&, double)> set;
  std::vector<double> good, bad;
  const char* range;
};

// Every number of the options. NaN and the infinities are bad for all.
std::vector<Case> cases() {
  const auto field = [](double CompileOptions::*member) {
    return [member](CompileOptions& options, double value) { options.*member = value; };
  };
  return {
      {"--density",
       [](CompileOptions& o, double value) { o.density = value; },
       {1e-6, 0.3, 1},
       {0, -0.1, 1.01, 30},
       "above 0 and at most 1"},
      {"--rho", field(&CompileOptions::agreement_threshold), {0.01, 1}, {0, -5, 1.5}, "above 0 and at most 1"},
      {"--schedule-a", field(&CompileOptions::schedule_a), {0, 1}, {-0.1, 9}, "between 0 and 1"},
      {"--schedule-c", field(&CompileOptions::schedule_c), {0, 1}, {-0.1, 9}, "between 0 and 1"},
      {"--schedule-k", field(&CompileOptions::schedule_k), {0, 16, 1000}, {-1, 1e9}, "between 0 and 1000"},
      {"--step-weight",
       field(&CompileOptions::step_weight_decay),
       {0, 8, 1000},
       {-1e9, -1, 1e300},
       "between 0 and 1000"},
      {"floor of the step weight", field(&CompileOptions::step_weight_floor), {0, 1}, {-1, 2}, "between 0 and 1"},
      {"--gamma", field(&CompileOptions::similarity_threshold), {0, 1}, {-0.5, 1.1}, "between 0 and 1"},
      {"--share-steps", field(&CompileOptions::share_steps_iou), {0, 0.97, 1}, {-0.1, 9}, "between 0 and 1"},
      {"--attention-share", field(&CompileOptions::attention_share), {0, 1}, {-0.1, 2}, "between 0 and 1"},
  };
}

TEST(CompileOptions, EveryNumberIsJudgedAndNamed) {
  EXPECT_EQ(refusal(CompileOptions{}), "");
  for (const Case& each : cases()) {
    for (const double value : each.good) {
      CompileOptions options;
      each.set(options, value);
      EXPECT_EQ(refusal(options), "") << each.flag << " " << value;
    }
    std::vector<double> bad = each.bad;
    bad.insert(bad.end(), {kNan, kInfinity, -kInfinity});
    for (const double value : bad) {
      CompileOptions options;
      each.set(options, value);
      const std::string message = refusal(options);
      EXPECT_THAT(message, AllOf(HasSubstr(each.flag), HasSubstr(each.range))) << value;
      EXPECT_LT(message.size(), 100u);
    }
  }
}

TEST(CompileOptions, TheMessageSaysWhatWasGiven) {
  CompileOptions options;
  options.agreement_threshold = -5;
  EXPECT_EQ(refusal(options), "--rho -5: must be above 0 and at most 1");
  options = {};
  options.density = kNan;
  EXPECT_EQ(refusal(options), "--density nan: must be above 0 and at most 1");
  options = {};
  options.step_weight_decay = 1e300;
  EXPECT_EQ(refusal(options), "--step-weight 1e+300: must be between 0 and 1000");
}

TEST(CompileOptions, WholeNumbersAreJudgedToo) {
  CompileOptions options;
  options.merge_gap = -5;
  EXPECT_EQ(refusal(options), "--merge-gap -5: must be at least 0");
  options = {};
  options.anchor_rows_per_frame = 0;
  EXPECT_EQ(refusal(options), "--anchors 0: must be at least 1");
  options.anchor_rows_per_frame = std::numeric_limits<int>::min();
  EXPECT_THAT(refusal(options), StartsWith("--anchors -2147483648: "));
}

TEST(CompileOptions, AProfileHasToHaveMeasuredWhatTheyNeed) {
  ProfileHeader maps;
  maps.anchor_rows = {2, 4};
  CompileOptions options;
  options.anchor_rows_per_frame = 3;
  EXPECT_THAT(refusal(options, maps), AllOf(StartsWith("--anchors 3"), HasSubstr("measured: 2, 4")));
  options.anchor_rows_per_frame = 4;
  EXPECT_EQ(refusal(options, maps), "");
  maps.output_errors = false;
  EXPECT_THAT(refusal(options, maps), HasSubstr("no output errors"));
  options.budget = Budget::kEnergy;
  EXPECT_THAT(refusal(options, maps), HasSubstr("no output errors"));
  options.repetition = Repetition::kOff;
  EXPECT_EQ(refusal(options, maps), "");
  options.density = -1;  // its own numbers first
  EXPECT_THAT(refusal(options, maps), StartsWith("--density -1"));

  ProfileHeader levels;
  levels.measured = Measured::kLevels;
  options = {};
  EXPECT_THAT(refusal(options, levels), HasSubstr("level codes"));
  options.repetition = Repetition::kOff;
  EXPECT_THAT(refusal(options, levels), HasSubstr("--ranking energy"));
  options.ranking = Ranking::kEnergy;
  EXPECT_EQ(refusal(options, levels), "");
  options.repetition = Repetition::kSimilarity;
  EXPECT_THAT(refusal(options, levels), HasSubstr("--repetition off"));

  levels.code_ranking = Ranking::kHarm;
  levels.anchor_rows = {5};
  options = {};
  EXPECT_EQ(refusal(options, levels), "");
  options.repetition = Repetition::kSimilarity;
  EXPECT_THAT(refusal(options, levels), HasSubstr("--repetition error or off"));
  options.repetition = Repetition::kOff;
  options.skipped = Skipped::kDrop;
  EXPECT_THAT(refusal(options, levels), HasSubstr("blocks that are summarised: use --skipped summary"));
  levels.code_skipped = Skipped::kDrop;
  EXPECT_EQ(refusal(options, levels), "");
  options.ranking = Ranking::kEnergy;
  EXPECT_THAT(refusal(options, levels), HasSubstr("--ranking harm"));
  options.ranking = Ranking::kHarm, options.budget = Budget::kEnergy;
  EXPECT_THAT(refusal(options, levels), HasSubstr("--budget error"));
}

}  // namespace
}  // namespace calibatt
