// Plans of a speed, made by the C interface of what `calibatt calibrate` measured.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "c_api_helpers.h"
#include "calibatt/calibrate.h"
#include "calibatt/pipeline.h"

namespace calibatt::test {
namespace {

using ::testing::Contains;
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

}  // namespace
}  // namespace calibatt::test
