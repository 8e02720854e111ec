// Plans of a speed, made by the C interface of what `calibatt calibrate` measured.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "c_api_helpers.h"
#include "calibatt/calibrate.h"
#include "calibatt/pipeline.h"
#include "calibrate/profile/profile.h"
#include "calibrate/profile/step_growth.h"

namespace calibatt::test {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

class CApiCompile : public ::testing::Test {
 protected:
  CApiCompile() {
    LoadOptions load;
    load.model_dir = CALIBATT_MODELS_DIR "/tiny-wan";
    load.backend = "cpu";
    load.precision = Precision::kF32;
    CalibrateOptions options;
    options.run.width = options.run.height = 64;
    options.run.video_frames = 9;
    options.run.steps = 4;
    options.prompts = {{"a red circle", "1"}};
    options.block_q = options.block_k = 8;
    options.token_order = "tiles:2x2x2";
    options.speedup = 1.2;
    options.profile_dir = profile_;
    calibrate(*Pipeline::load(load), options, folder_.file("theirs.safetensors"));
  }
  /// The JSON, or the error in its place. What is measured depends on what else the machine does, but for that share.
  nlohmann::json compiled(std::vector<calibatt_setting> settings) {
    settings.push_back({"attention-share", "0.5"});
    char* json = nullptr;
    if (calibatt_compile(profile_.c_str(), folder_.file("plan.safetensors").c_str(), settings.data(),
                         static_cast<int32_t>(settings.size()), nullptr, nullptr, &json) != CALIBATT_OK) {
      return {{"error", calibatt_last_error()}};
    }
    const std::string text = json;
    calibatt_string_free(json);
    return nlohmann::json::parse(text);
  }

  Folder folder_;
  std::string profile_ = folder_.file("profile");
};

TEST_F(CApiCompile, OfToldStepsItSaysHowTheyAreCounted) {
  std::vector<calibatt_setting> settings{{"speedup", "1.2"}, {"density", "1"}};
  EXPECT_THAT(compiled(settings)["warnings"], Not(Contains(HasSubstr("8 bits"))));
  settings.insert(settings.end(), {{"eight-bit-layers-from", "1"}, {"eight-bit-attention-from", "2"}});
  EXPECT_THAT(compiled(settings)["warnings"],
              Contains("the expected change is without the plan's linear layers and self-attention in 8 bits; "
                       "settings.weights-dtype int8 (or fp8) and settings.attention-dtype fp8 count them, once "
                       "`calibatt calibrate` has measured them with the same flags"));
}

TEST_F(CApiCompile, WhatIsPredictedIsInTheJsonAndDoubted) {
  const nlohmann::json usual = compiled({{"speedup", "1.2"}, {"density", "1"}});
  ASSERT_TRUE(usual["latents_error"].is_number() && usual["psnr_db"].is_number()) << usual;
  EXPECT_GT(usual["latents_error"], 0);
  const ProfileHeader header = load_profile(profile_).header;
  StepGrowth growth = load_growth(profile_, header).value();
  growth.psnr_db -= usual["psnr_db"].get<double>() - 11.75;
  save_growth(profile_, header, growth);
  const nlohmann::json far = compiled({{"speedup", "1.05"}, {"density", "1"}});
  EXPECT_EQ(far["latents_error"], usual["latents_error"]) << "one step is reused for either speedup";
  EXPECT_NEAR(far["psnr_db"].get<double>(), 11.75, 1e-6);
  EXPECT_THAT(far["warnings"],
              ElementsAre(HasSubstr("more than settings.speedup 1.05 asks for; leave settings.density out"),
                          HasSubstr("predicted to come to 11.8 dB to the dense video: below 25 dB a plan makes another "
                                    "video; ask for a smaller settings.speedup (a larger settings.psnr)")));
  const nlohmann::json same = compiled({{"speedup", "1"}, {"density", "1"}});
  EXPECT_EQ(same["latents_error"], 0);
  EXPECT_TRUE(same["psnr_db"].is_null());
  const nlohmann::json density = compiled({{"density", "0.5"}});
  EXPECT_TRUE(density["latents_error"].is_null() && density["psnr_db"].is_null());
}

}  // namespace
}  // namespace calibatt::test
