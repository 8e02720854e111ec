// Calibration decides which steps are in 8 bits: what is measured, chosen, checked and said, with tiny-wan.
#include <gmock/gmock.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "backends.h"
#include "base/error.h"
#include "io/atomic_file.h"
#include "io/safetensors.h"
#include "io/test_folder.h"
#include "pipeline/calibrate.h"
#include "plan/plan.h"

namespace calibatt {
namespace {

using testing::AllOf;
using testing::Each;
using testing::HasSubstr;
using testing::SizeIs;

constexpr int kSteps = 8;

class EightBitPlan : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const std::unique_ptr<Backend> backend = backend_or_null(GetParam());
    if (backend == nullptr) GTEST_SKIP() << kNoDevice;
    try {
      backend->eight_bit_ops();
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
    options_.run.width = options_.run.height = on_cpu() ? 64 : 128;
    options_.run.video_frames = on_cpu() ? 9 : 17;
    options_.run.steps = kSteps;
    if (!on_cpu()) options_.run.attention_dtype = AttentionDtype::kFP8;
    options_.prompts = {{"a red circle", "--prompt"}, {"a blue square moves up", "--prompt"}};
    options_.profile_dir = folder_ / "profile";
    options_.block_q = options_.block_k = on_cpu() ? 8 : 64;
    options_.token_order = "raster";  // in another, sums are rounded otherwise than in a dense run
    options_.anchor_rows_per_frame = 2;
    options_.attention_share = 0.5;
    options_.speedup = 2.5;
  }
  bool on_cpu() const { return GetParam() == "cpu"; }
  RunnerGroup runner(WeightsPrecision weights = WeightsPrecision::kFP8) {
    LoadOptions load;
    load.model_dir = std::string(CALIBATT_MODELS_DIR) + "/tiny-wan";
    load.backend = GetParam();
    load.threads = 2;
    load.weights = weights;
    load.warn = [this](const std::string& message) { warnings_ += message + "\n"; };
    return RunnerGroup(load);
  }
  CalibrationSummary calibrated(RunnerGroup& runner) { return calibrate(runner, options_, plan_, {}, &gains_); }
  nlohmann::json growth() const {
    return nlohmann::json::parse(read_text_file(options_.profile_dir + "/step_growth.json"));
  }
  std::vector<std::string> names_in_plan() const { return eight_bit_parts_names(load_plan(plan_)->info().eight_bits); }
  /// Of the steps that have a forward.
  std::vector<std::string> names_of_forwards() const {
    const PlanInfo info = load_plan(plan_)->info();
    return eight_bit_parts_names(of_forwards(info.eight_bits, info.step_reuse));
  }
  static Tensor products(const std::string& folder) {
    return Safetensors::open(folder + "/prompt_0001.safetensors").get("step_products").clone();
  }

  TestFolder folder_;
  const std::string plan_ = folder_ / "plan.safetensors";
  CalibrateOptions options_;
  EightBitGains gains_{20, {{1, 0.2, 1.1}, {1, 1, 1.2}}};
  std::string warnings_;
};

TEST_P(EightBitPlan, IsMeasuredChosenAndChecked) {
  RunnerGroup fp8 = runner();
  const CalibrationSummary summary = calibrated(fp8);
  ASSERT_THAT(summary.eight_bits, SizeIs(kSteps));
  EXPECT_GT(std::ranges::count_if(summary.eight_bits, [](const auto& each) { return each != "none"; }), 0);
  EXPECT_EQ(names_of_forwards(), summary.eight_bits);
  const nlohmann::json first = growth();
  EXPECT_EQ(first["layer_changes"].size(), first["mask_changes"].size());
  EXPECT_EQ(first["layers"], "fp8");
  EXPECT_EQ(first.contains("attention_changes"), !on_cpu());
  for (const nlohmann::json& each : first["layer_changes"]) {
    EXPECT_GT(each["change"], 1e-5);
    EXPECT_LT(each["change"], 0.5);
  }
  ASSERT_TRUE(summary.latents_measured.has_value());

  // A person's numbers win, and the run that checks the plan does what it says.
  options_.speedup = 1;
  options_.density = 1;
  options_.eight_bit_layers_from = kSteps;
  const CalibrationSummary none = calibrated(fp8);
  EXPECT_THAT(names_in_plan(), Each("none"));
  options_.eight_bit_layers_from = 0;
  const CalibrationSummary all = calibrated(fp8);
  EXPECT_THAT(names_in_plan(), Each("layers"));
  EXPECT_LT(*none.latents_measured, 1e-3);
  EXPECT_GT(*all.latents_measured, 3e-3);
  EXPECT_GT(*all.latents_error, *none.latents_error + 3e-3);
  EXPECT_EQ(growth(), first) << "measured once";
}

// Whatever may be planned: the profile is the same, and so are plans of those that allow nothing.
TEST_P(EightBitPlan, PromptsRunWithoutEightBits) {
  RunnerGroup fp8 = runner(), plain = runner(WeightsPrecision::kAuto);
  calibrated(fp8);
  const std::string of_fp8 = options_.profile_dir;
  options_.run.attention_dtype = AttentionDtype::kModel;
  calibrated(plain);
  EXPECT_TRUE(load_plan(plan_)->info().eight_bits.empty());
  const std::string bytes = read_text_file(plan_);
  options_.profile_dir = folder_ / "another";
  calibrated(plain);
  const Tensor a = products(of_fp8), b = products(options_.profile_dir);
  ASSERT_EQ(a.size_bytes(), b.size_bytes());
  EXPECT_EQ(std::memcmp(a.raw(), b.raw(), a.size_bytes()), 0);
  if (on_cpu()) {
    EXPECT_TRUE(read_text_file(plan_) == bytes);
  }
  EXPECT_FALSE(growth().contains("layer_changes"));
  // What 8 bits do is measured where it is asked for, beside what the folder holds.
  options_.run.attention_dtype = on_cpu() ? AttentionDtype::kModel : AttentionDtype::kFP8;
  const nlohmann::json before = growth();
  calibrated(fp8);
  nlohmann::json after = growth();
  EXPECT_TRUE(after.contains("layer_changes"));
  for (const char* name : {"factors", "mask_changes", "latents_error", "psnr_db"}) EXPECT_EQ(after[name], before[name]);
  // … and anew where kernels have changed since.
  after.erase("checksum");
  after["layer_arithmetic"] = kLayerArithmetic - 1;
  after["layer_changes"] = nlohmann::json::array({{{"step", 0}, {"change", 0.75}}});
  write_text_file(options_.profile_dir + "/step_growth.json", after.dump());
  calibrated(fp8);
  EXPECT_EQ(growth()["layer_arithmetic"], kLayerArithmetic);
  EXPECT_EQ(growth()["layer_changes"].size(), before["mask_changes"].size());
}

// All is measured but what latents show in a video: no forward is run again for it.
TEST_P(EightBitPlan, WhatIsMeasuredIsKeptWhereACalibrationEnds) {
  RunnerGroup fp8 = runner();
  calibrated(fp8);
  const std::string path = options_.profile_dir + "/step_growth.json", whole = read_text_file(path);
  // A file that knows of other layers, and lacks a factor.
  nlohmann::json other = growth();
  other.erase("checksum");
  other["layers"] = "int8";
  other["factors"].erase(0);
  write_text_file(path, other.dump());
  struct Ended {};
  const auto end = [](const Progress& state) {
    if (state.stage == "decode") throw Ended();
  };
  EXPECT_THROW(calibrate(fp8, options_, plan_, end, &gains_), Ended);
  int before_plan = 0;
  const auto listen = [&](const Progress& state) { before_plan += state.stage == "denoise" && !state.plan_is_written; };
  calibrate(fp8, options_, plan_, listen, &gains_);
  EXPECT_EQ(before_plan, 0);
  if (on_cpu()) {
    EXPECT_EQ(read_text_file(path), whole);
  }
  EXPECT_EQ(growth()["layers"], "fp8");
}

TEST_P(EightBitPlan, WhatGainsNothingIsSaidAndNotPlanned) {
  RunnerGroup fp8 = runner();
  gains_ = {};
  calibrated(fp8);
  EXPECT_THAT(warnings_,
              AllOf(HasSubstr("save no time on the backend " + GetParam()),
                    HasSubstr("--eight-bit-layers-from and --eight-bit-attention-from plan them all the same")));
  EXPECT_THAT(names_in_plan(), AllOf(SizeIs(kSteps), Each("none")));
  EXPECT_FALSE(growth().contains("layer_changes")) << "it would be for nothing";
  warnings_.clear();
  options_.speedup.reset();
  options_.density = 0.9;
  calibrated(fp8);
  EXPECT_THAT(warnings_, HasSubstr("chosen under --speedup and --psnr alone"));
  EXPECT_THAT(names_in_plan(), SizeIs(0));
}

INSTANTIATE_TEST_SUITE_P(Backends, EightBitPlan, kBackends, [](const auto& info) { return info.param; });

}  // namespace
}  // namespace calibatt
