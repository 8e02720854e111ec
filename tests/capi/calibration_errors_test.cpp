// How calibration through the C interface refuses and fails.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <limits>
#include <tuple>

#include "example_calibration.h"

namespace calibatt::test {
namespace {

using ::testing::HasSubstr;

constexpr double kNotANumber = std::numeric_limits<double>::quiet_NaN();

/// With a callback whose parts a test changes.
struct Calibration : ExampleCalibration {
  calibatt_status record(const std::string& name = "profile") {
    refer_to_settings();
    const auto run_prompt = [](void* user, int32_t, calibatt_session* session, double*) {
      return static_cast<Calibration*>(user)->run_steps(session);
    };
    return calibatt_record(folder.file(name).c_str(), &calibration, run_prompt, this, nullptr);
  }
  int32_t run_steps(calibatt_session* session) {
    return denoise(session, steps_run, [&](calibatt_call& call) {
      change(call);
      last = calibatt_session_attend(session, &call);
      message = calibatt_last_error();
      return last == CALIBATT_OK || passes_over;
    });
  }

  std::function<void(calibatt_call&)> change = [](calibatt_call&) {};
  int steps_run = 3;
  bool passes_over = false;
  calibatt_status last = CALIBATT_OK;
  std::string message;
};

TEST(CApiErrors, CalibrationsThatCannotBe) {
  const std::pair<const char*, std::function<void(Calibration&)>> wrong[] = {
      {"calibration.run: is NULL", [](auto& c) { c.calibration.run = nullptr; }},
      {"calibration.run.struct_size", [](auto& c) { c.run.struct_size = 1; }},
      {"calibration.num_prompts", [](auto& c) { c.calibration.num_prompts = 0; }},
      {"calibration.prompts: is NULL", [](auto& c) { c.calibration.prompts = nullptr; }},
      {"calibration.prompts[0].text: is NULL", [](auto& c) { c.prompts[0].text = nullptr; }},
      {"calibration.precision: is f64", [](auto& c) { c.calibration.precision = "f64"; }},
      {"calibration.first_prompt, end_prompt 0:3", [](auto& c) { c.calibration.end_prompt = 3; }},
      {"settings.speedup and settings.psnr: what the steps of a run predict is not seen here; ask for settings.density",
       [](auto& c) {
         c.settings.clear();
         c.settings.push_back({"speedup", "2"});
       }},
      {"there is no setting 'densty'",
       [](auto& c) {
         c.settings.push_back({"densty", "0.5"});
       }},
      {"settings[5].name: is NULL",
       [](auto& c) {
         c.settings.push_back({nullptr, "0.5"});
       }},
      {"settings[5].value: is NULL",
       [](auto& c) {
         c.settings.push_back({"density", nullptr});
       }},
      {"settings.density half: must be a number",
       [](auto& c) {
         c.settings.push_back({"density", "half"});
       }},
      {"settings.density 7: must be",
       [](auto& c) {
         c.settings.push_back({"density", "7"});
       }},
      {"settings.block-q 3: must be a whole number from 8",
       [](auto& c) {
         c.settings.push_back({"block-q", "3"});
       }},
      {"settings.measure all: must be one of",
       [](auto& c) {
         c.settings.push_back({"measure", "all"});
       }},
      {"settings.steps-recorded 9: must be between", [](auto& c) {
         c.settings.push_back({"measure", "levels"});
         c.settings.push_back({"steps-recorded", "9"});
       }}};
  for (const auto& [text, change] : wrong) {
    Calibration calibration;
    change(calibration);
    expect_refusal(calibration.record(), CALIBATT_USAGE, text);
    EXPECT_EQ(calibration.last, CALIBATT_OK) << "nothing ran";
  }
}

TEST(CApiErrors, OutputsThatCannotBe) {
  const std::tuple<calibatt_status, const char*, std::function<void(Calibration&)>> wrong[] = {
      {CALIBATT_USAGE, "call.output: is NULL", [](auto& c) { c.change = [](auto& call) { call.output = nullptr; }; }},
      {CALIBATT_USAGE, "call.output.struct_size", [](auto& c) { c.output.struct_size = 3; }},
      {CALIBATT_USAGE, "call.output.weight: is NULL", [](auto& c) { c.output.weight = nullptr; }},
      {CALIBATT_USAGE, "call.output.out_features", [](auto& c) { c.output.out_features = 0; }},
      {CALIBATT_USAGE, "call.output.weight_dtype",
       [](auto& c) { c.output.weight_dtype = static_cast<calibatt_dtype>(5); }},
      {CALIBATT_USAGE, "call.output.residual_square_sum", [](auto& c) { c.output.residual_square_sum = 0; }},
      {CALIBATT_NUMERIC, "call.output.residual_square_sum",
       [](auto& c) { c.output.residual_square_sum = kNotANumber; }},
      {CALIBATT_NUMERIC, "call.output.squared_gain",
       [](auto& c) { c.output.squared_gain = [](void*) { return -1.0; }; }},
      {CALIBATT_USAGE, "call.batch: is 2", [](auto& c) { c.change = [](auto& call) { call.batch = 2; }; }},
      {CALIBATT_USAGE, "call.k.head_stride: is 65",
       [](auto& c) { c.change = [](auto& call) { call.k.head_stride = 65; }; }},
  };
  for (const auto& [status, text, change] : wrong) {
    Calibration calibration;
    change(calibration);
    const calibatt_status ended = calibration.record();
    EXPECT_EQ(calibration.last, status) << text;
    EXPECT_THAT(calibration.message, HasSubstr(text));
    EXPECT_EQ(ended, status == CALIBATT_USAGE ? CALIBATT_CANCELLED : status) << calibatt_last_error();
  }
}

TEST(CApiErrors, RecordingsThatDoNotEndWell) {
  for (const char* measure : {"maps", "levels"}) {
    Calibration calibration;
    calibration.settings.push_back({"measure", measure});
    calibration.steps_run = 2;
    expect_refusal(calibration.record(), CALIBATT_USAGE, "step 2");
    calibration.steps_run = 3;
    calibration.arrays.q[5] = std::numeric_limits<float>::quiet_NaN();
    calibration.passes_over = true;
    expect_refusal(calibration.record(), CALIBATT_NUMERIC, "not finite");
    calibration.arrays.q[5] = 0;
    EXPECT_EQ(calibration.record(), CALIBATT_OK) << calibatt_last_error();
    calibration.run.head_dim = 32;
    expect_refusal(calibration.record(), CALIBATT_MISMATCH,
                   "(1 layer, 2 heads × 64), this calibration has a model (1 layer, 2 heads × 32)");
    calibration.run.head_dim = 64;
    std::ofstream(calibration.folder.file("a_file")) << "x";
    EXPECT_NE(calibration.record("a_file"), CALIBATT_OK);
  }
}

TEST(CApiErrors, CompilationsThatCannotBe) {
  Calibration calibration;
  ASSERT_EQ(calibration.record(), CALIBATT_OK) << calibatt_last_error();
  const std::string profile = calibration.folder.file("profile"), plan = calibration.folder.file("plan.safetensors");
  const auto compile = [&](const std::string& from, const std::string& to, std::vector<calibatt_setting> settings) {
    return calibatt_compile(from.c_str(), to.c_str(), settings.data(), static_cast<int32_t>(settings.size()), nullptr,
                            nullptr, nullptr);
  };
  EXPECT_EQ(compile(calibration.folder.file("absent"), plan, {}), CALIBATT_NOT_FOUND);
  EXPECT_EQ(compile(profile, calibration.folder.file("no/such/folder/plan"), {{"density", "0.9"}}), CALIBATT_IO)
      << calibatt_last_error();
  expect_refusal(compile(profile, plan, {{"block-q", "16"}}), CALIBATT_MISMATCH, "settings.block-q 8");
  expect_refusal(compile(profile, plan, {{"token-order", "tiles:1x2x2"}}), CALIBATT_MISMATCH,
                 "settings.token-order raster");
  expect_refusal(compile(profile, plan, {{"measure", "levels"}}), CALIBATT_MISMATCH, "maps");
  expect_refusal(compile(profile, plan, {{"budget", "none"}}), CALIBATT_USAGE, "settings.budget none: must be one of");
  const calibatt_setting int8{"weights-dtype", "int8"}, fp8{"attention-dtype", "fp8"};
  expect_refusal(compile(profile, plan, {int8, fp8, {"density", nullptr}}), CALIBATT_USAGE,
                 "settings[2].value: is NULL");
  expect_refusal(compile(profile, plan, {int8, {nullptr, "1"}, fp8}), CALIBATT_USAGE, "settings[1].name: is NULL");
  expect_refusal(compile(profile, plan, {{"weights-dtype", nullptr}}), CALIBATT_USAGE, "settings[0].value: is NULL");
  EXPECT_FALSE(std::filesystem::exists(plan));
  EXPECT_EQ(compile(profile, plan, {{"block-q", "8"}, {"density", "0.9"}}), CALIBATT_OK) << calibatt_last_error();
  const char* const folders[] = {profile.c_str(), profile.c_str()};
  int32_t prompts = 0;
  EXPECT_EQ(calibatt_merge_profiles(folders, 2, calibration.folder.file("merged").c_str(), &prompts), CALIBATT_USAGE);
  EXPECT_EQ(calibatt_merge_profiles(folders, 1, calibration.folder.file("merged").c_str(), &prompts), CALIBATT_OK)
      << calibatt_last_error();
  EXPECT_EQ(prompts, 1);
}

}  // namespace
}  // namespace calibatt::test
