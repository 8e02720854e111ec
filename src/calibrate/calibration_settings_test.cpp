#include "calibatt/calibration_settings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "base/error.h"
#include "calibrate/calibration_options.h"

namespace calibatt {
namespace {

using ::testing::HasSubstr;

std::string refusal(const std::string& name, const std::string& value) {
  CalibrateOptions options;
  try {
    set(options, name, value);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    return error.what();
  }
  return "";
}

TEST(CalibrationSettings, EachHasAFieldOfItsOwn) {
  std::set<std::string> names;
  for (const CalibrationSetting& setting : calibration_settings()) {
    EXPECT_TRUE(names.insert(setting.name).second) << setting.name;
    EXPECT_FALSE(setting.description.empty());
  }
  CalibrateOptions options;
  const std::pair<const char*, const char*> values[] = {{"token-order", "raster"},
                                                        {"block-q", "16"},
                                                        {"block-k", "32"},
                                                        {"anchors", "3"},
                                                        {"measure", "levels"},
                                                        {"steps-recorded", "4"},
                                                        {"budget", "energy"},
                                                        {"density", "0.25"},
                                                        {"skipped", "drop"},
                                                        {"agreement", "vote"},
                                                        {"rho", "0.4"},
                                                        {"schedule-a", "0.8"},
                                                        {"schedule-c", "0.9"},
                                                        {"schedule-k", "7"},
                                                        {"ranking", "energy"},
                                                        {"step-weight", "5"},
                                                        {"repetition", "off"},
                                                        {"gamma", "0.9"},
                                                        {"merge-gap", "2"},
                                                        {"share-steps", "0.5"},
                                                        {"eight-bit-attention-from", "3"},
                                                        {"eight-bit-layers-from", "5"},
                                                        {"speedup", "2.5"},
                                                        {"psnr", "35"},
                                                        {"attention-share", "0.7"}};
  EXPECT_EQ(std::size(values), names.size()) << "a setting that this test does not know";
  for (const auto& [name, value] : values) set(options, name, value);
  EXPECT_EQ(options.token_order, "raster");
  EXPECT_EQ(options.block_q, 16);
  EXPECT_EQ(options.block_k, 32);
  EXPECT_EQ(options.anchor_rows_per_frame, 3);
  EXPECT_EQ(options.measure, "levels");
  EXPECT_EQ(options.steps_recorded, 4);
  EXPECT_EQ(options.budget, "energy");
  EXPECT_EQ(options.density, 0.25);
  EXPECT_EQ(options.skipped, "drop");
  EXPECT_EQ(options.agreement, "vote");
  EXPECT_EQ(options.agreement_threshold, 0.4);
  EXPECT_EQ(options.schedule_a, 0.8);
  EXPECT_EQ(options.schedule_c, 0.9);
  EXPECT_EQ(options.schedule_k, 7);
  EXPECT_EQ(options.ranking, "energy");
  EXPECT_EQ(options.step_weight_decay, 5);
  EXPECT_EQ(options.repetition, "off");
  EXPECT_EQ(options.similarity_threshold, 0.9);
  EXPECT_EQ(options.merge_gap, 2);
  EXPECT_EQ(options.share_steps_iou, 0.5);
  EXPECT_EQ(options.eight_bit_attention_from, 3);
  EXPECT_EQ(options.eight_bit_layers_from, 5);
  EXPECT_EQ(options.speedup, 2.5);
  EXPECT_EQ(options.psnr, 35);
  EXPECT_EQ(options.attention_share, 0.7);
}

TEST(CalibrationSettings, WhatIsNoneIsNamed) {
  EXPECT_THAT(refusal("densty", "0.5"),
              HasSubstr("no setting 'densty' of calibration; there are token-order, block-q"));
  EXPECT_THAT(refusal("density", "half"), HasSubstr("--density half: must be a number"));
  EXPECT_THAT(refusal("density", "nan"), HasSubstr("--density nan: must be a number"));
  EXPECT_THAT(refusal("block-q", "8.5"), HasSubstr("--block-q 8.5: must be a whole number from 8 to 1024"));
  EXPECT_THAT(refusal("block-q", "2048"), HasSubstr("--block-q 2048: must be a whole number from 8 to 1024"));
  EXPECT_THAT(refusal("merge-gap", ""), HasSubstr("--merge-gap"));
  const std::string shown = refusal("density", std::string(500, 'x') + "\x1b[2J");
  EXPECT_THAT(shown, HasSubstr("xx…: must be a number"));
  EXPECT_LT(shown.size(), 120u);
}

}  // namespace
}  // namespace calibatt
