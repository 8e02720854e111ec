#include "sampling/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "io/atomic_file.h"
#include "io/safetensors.h"
#include "io/test_folder.h"

// Golden data: tools/golden/text_and_scheduler.py, made with diffusers' own schedulers.
namespace calibatt {
namespace {

using testing::ElementsAreArray;
using testing::HasSubstr;
using testing::Not;

const std::string kGolden = CALIBATT_GOLDEN_DIR;

/// The same function as toy_model in the script, in float32.
Tensor toy_model(const Tensor& sample, float timestep) {
  Tensor output(DType::kF32, sample.shape());
  const float t = timestep / 1000.0f;
  for (int64_t i = 0; i < sample.size(); ++i) {
    const float x = sample.f32()[i];
    output.f32()[i] = x * (0.75f - 0.5f * t) - (0.3f + t) / (1.0f + x * x);
  }
  return output;
}

void expect_close(const Tensor& actual, const Tensor& expected, const std::string& what) {
  ASSERT_EQ(actual.shape(), expected.shape()) << what;
  for (int64_t i = 0; i < actual.size(); ++i) {
    const float wanted = expected.f32()[i];
    EXPECT_NEAR(actual.f32()[i], wanted, 1e-5f * std::max(1.0f, std::abs(wanted))) << what << " element " << i;
  }
}

TEST(Scheduler, FollowsDiffusers) {
  const Safetensors golden = Safetensors::open(kGolden + "/scheduler.safetensors");
  const Tensor first = golden.get("first");
  int runs = 0;
  for (const auto& [name, entry] : golden.entries()) {
    if (!name.ends_with("/sigmas")) continue;  // one per run: scheduler/steps/shift
    const std::string key = name.substr(0, name.rfind('/'));
    const std::string scheduler_name = key.substr(0, key.find('/'));
    const double shift = std::stod(key.substr(key.rfind('/') + 1));
    const Tensor sigmas = golden.get(name), timesteps = golden.get(key + "/timesteps");
    const int steps = static_cast<int>(timesteps.size());

    const auto scheduler = Scheduler::make(load_scheduler_config(kGolden + "/scheduler/" + scheduler_name + ".json"));
    scheduler->set_timesteps(3);  // a run begun and left must not matter
    scheduler->step(first, first);
    scheduler->set_timesteps(steps, shift);
    EXPECT_THAT(scheduler->timesteps(), ElementsAreArray(timesteps.f32(), static_cast<size_t>(timesteps.size())))
        << key;
    EXPECT_THAT(scheduler->sigmas(), ElementsAreArray(sigmas.f32(), static_cast<size_t>(sigmas.size()))) << key;

    Tensor sample = first;
    for (int i = 0; i < steps; ++i) {
      sample = scheduler->step(toy_model(sample, scheduler->timesteps()[static_cast<size_t>(i)]), sample);
      if (i == (steps - 1) / 2) expect_close(sample, golden.get(key + "/halfway"), key + " halfway");
    }
    expect_close(sample, golden.get(key + "/last"), key + " last");
    ++runs;
  }
  EXPECT_EQ(runs, 20 + 4 + 8 + 4 + 2 + 20);
}

// Steps that were listed, in a folder whose own levels are diffusers'.
TEST(Scheduler, ListedStepsAreShiftedOnceAsDiffusersDoes) {
  const auto golden = nlohmann::json::parse(std::ifstream(kGolden + "/scheduler/given_steps.json"), nullptr, false);
  ASSERT_TRUE(golden.is_object() && golden["runs"].size() == 12);
  const auto start = golden["first"].get<std::vector<float>>();
  for (const auto& run : golden["runs"]) {
    const std::string what = run["scheduler"].get<std::string>() + " " + run["name"].get<std::string>();
    const auto scheduler = Scheduler::make({}, parse_scheduler_kind(run["scheduler"]));
    scheduler->set_levels(run["levels"].get<std::vector<double>>(), run["shift"]);
    const auto sigmas = run["sigmas"].get<std::vector<float>>(), timesteps = run["timesteps"].get<std::vector<float>>();
    ASSERT_EQ(scheduler->sigmas().size(), sigmas.size()) << what;
    for (size_t i = 0; i < sigmas.size(); ++i) EXPECT_FLOAT_EQ(scheduler->sigmas()[i], sigmas[i]) << what << i;
    for (size_t i = 0; i < timesteps.size(); ++i) EXPECT_FLOAT_EQ(scheduler->timesteps()[i], timesteps[i]) << what << i;
    Tensor sample(DType::kF32, {static_cast<int64_t>(start.size())}), last(DType::kF32, sample.shape());
    std::ranges::copy(start, sample.f32());
    std::ranges::copy(run["last"].get<std::vector<float>>(), last.f32());
    for (const float timestep : scheduler->timesteps()) sample = scheduler->step(toy_model(sample, timestep), sample);
    expect_close(sample, last, what);
  }
}

// Mochi's steps: diffusers' pipeline counts data where this file counts noise.
TEST(Scheduler, LinearQuadraticLevelsAreThoseOfDiffusersMochiPipeline) {
  const auto golden =
      nlohmann::json::parse(std::ifstream(kGolden + "/scheduler/linear_quadratic.json"), nullptr, false);
  ASSERT_TRUE(golden.is_object() && golden["runs"].size() == 12);
  const auto start = golden["first"].get<std::vector<float>>();
  SchedulerConfig config = load_scheduler_config(kGolden + "/scheduler/mochi.json", true);
  EXPECT_EQ(config.refusal, "");
  EXPECT_EQ(config.kind, SchedulerConfig::Kind::kEuler);
  EXPECT_THAT(load_scheduler_config(kGolden + "/scheduler/mochi.json").refusal, HasSubstr("invert_sigmas"));
  EXPECT_THAT(load_scheduler_config(kGolden + "/scheduler/euler.json", true).refusal, HasSubstr("invert_sigmas"));
  config.spacing = parse_spacing("linear-quadratic");
  for (const auto& run : golden["runs"]) {
    const int steps = run["steps"];
    const std::string what = std::to_string(steps) + " steps at " + std::to_string(run["shift"].get<double>());
    const auto scheduler = Scheduler::make(config);
    scheduler->set_timesteps(steps, run["shift"].get<double>());
    const auto timesteps = run["timesteps"].get<std::vector<float>>();
    ASSERT_EQ(scheduler->num_steps(), steps);
    Tensor sample(DType::kF32, {static_cast<int64_t>(start.size())}), last(DType::kF32, sample.shape());
    std::ranges::copy(start, sample.f32());
    std::ranges::copy(run["last"].get<std::vector<float>>(), last.f32());
    for (int i = 0; i < steps; ++i) {
      const auto at = static_cast<size_t>(i);
      // The shift is three roundings in float32 there.
      EXPECT_NEAR((1 - scheduler->sigmas()[at]) * 1000, timesteps[at], 3e-4) << what << " step " << i;
      sample = scheduler->step(toy_model(sample, scheduler->timesteps()[at]), sample);
    }
    EXPECT_EQ(scheduler->sigmas().back(), 0);
    expect_close(sample, last, what);
  }
  EXPECT_THROW(Scheduler::make(config)->set_timesteps(1), Error);
}

// What distilled models are made for: 4 steps at shift 5. diffusers' own levels would be 1000, 910, 717 and 24.
TEST(Scheduler, EvenLevelsAreShiftedOnce) {
  using Config = SchedulerConfig;
  Config config;
  config.spacing = default_spacing(Config::Spacing::kDiffusers, Config::Kind::kEuler);
  const auto scheduler = Scheduler::make(config, Config::Kind::kEuler);
  scheduler->set_timesteps(4, 5.0);
  const std::vector<float> expected{1000, 937.5f, 833.3333f, 625};
  for (size_t i = 0; i < 4; ++i) EXPECT_FLOAT_EQ(scheduler->timesteps()[i], expected[i]);
  EXPECT_EQ(default_spacing(Config::Spacing::kDiffusers, Config::Kind::kUniPC), Config::Spacing::kDiffusers);
  EXPECT_EQ(default_spacing(Config::Spacing::kOriginal, Config::Kind::kEuler), Config::Spacing::kOriginal);
  EXPECT_EQ(parse_spacing("even"), Config::Spacing::kEven);
}

TEST(Scheduler, ReachesTheDataWhenTheModelIsExact) {
  // A model that knows data and noise predicts noise − data everywhere on the straight path, and any solver arrives.
  for (const auto kind : {SchedulerConfig::Kind::kUniPC, SchedulerConfig::Kind::kEuler}) {
    for (const int order : {1, 2, 3}) {
      for (const bool lower_order_final : {true, false}) {
        for (const auto basis : {SchedulerConfig::Basis::kBh1, SchedulerConfig::Basis::kBh2}) {
          SchedulerConfig config;
          config.solver_order = order;
          config.lower_order_final = lower_order_final;
          config.basis = basis;
          const auto scheduler = Scheduler::make(config, kind);
          scheduler->set_timesteps(7, 4.0);
          Tensor sample(DType::kF32, {2}), velocity(DType::kF32, {2});
          const float data[2] = {0.25f, -2.0f}, noise[2] = {-1.0f, 0.5f};
          const float sigma = scheduler->sigmas()[0];
          for (int i = 0; i < 2; ++i) {
            sample.f32()[i] = (1 - sigma) * data[i] + sigma * noise[i];
            velocity.f32()[i] = noise[i] - data[i];
          }
          for (int i = 0; i < 7; ++i) sample = scheduler->step(velocity, sample);
          EXPECT_NEAR(sample.f32()[0], data[0], 2e-6f);
          EXPECT_NEAR(sample.f32()[1], data[1], 2e-6f);
        }
      }
    }
  }
}

TEST(Scheduler, KindCanBeOverridden) {
  const SchedulerConfig config = load_scheduler_config(kGolden + "/scheduler/unipc.json");
  const auto scheduler = Scheduler::make(config, SchedulerConfig::Kind::kEuler);
  scheduler->set_timesteps(4, 3.0);
  EXPECT_EQ(scheduler->config().kind, SchedulerConfig::Kind::kEuler);
  EXPECT_EQ(scheduler->sigmas().front(), 1.0f);
  EXPECT_EQ(parse_scheduler_kind("euler"), SchedulerConfig::Kind::kEuler);
  EXPECT_EQ(scheduler_kind_name(parse_scheduler_kind("unipc")), "unipc");
  EXPECT_THROW(parse_scheduler_kind("ddim"), Error);
}

TEST(Scheduler, RefusesImpossibleRuns) {
  const auto scheduler = Scheduler::make({});
  EXPECT_THROW(scheduler->set_timesteps(0), Error);
  EXPECT_THROW(scheduler->set_timesteps(1001), Error);
  EXPECT_THROW(scheduler->set_timesteps(10, 0.0), Error);
  EXPECT_THROW(scheduler->set_timesteps(10, std::nan("")), Error);
  for (const std::vector<double>& levels :
       std::vector<std::vector<double>>{{}, {1.5}, {1, 1}, {.5, .6}, {1, 0}, {std::nan("")}}) {
    EXPECT_THROW(scheduler->set_levels(levels, 1), Error);
  }
  scheduler->set_timesteps(1);
  const Tensor sample = Tensor::zeros(DType::kF32, {2});
  scheduler->step(sample, sample);
  EXPECT_THROW(scheduler->step(sample, sample), std::logic_error);  // no step is left
}

TEST(SchedulerConfig, RefusesWhatItDoesNotDo) {
  const TestFolder folder;
  const auto refusal = [&](const std::string& json) {
    write_text_file(folder / "scheduler_config.json", json);
    try {
      const SchedulerConfig config = load_scheduler_config(folder / "scheduler_config.json");
      return config.refusal.empty() ? std::string("accepted") : config.refusal;
    } catch (const Error& error) {
      return "not readable: " + std::string(error.what());
    }
  };
  const std::string unipc =
      R"("_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": true)";
  EXPECT_EQ(refusal("{" + unipc + "}"), "accepted");
  EXPECT_THAT(refusal(R"({"_class_name": "DDIMScheduler"})"), HasSubstr("found \"DDIMScheduler\""));
  EXPECT_THAT(refusal(R"({"_class_name": "LCMScheduler"})"),
              testing::AllOf(HasSubstr("LCMScheduler adds fresh noise"), HasSubstr("--timesteps 1000,750,500,250")));
  EXPECT_THAT(refusal(R"({"_class_name": "UniPCMultistepScheduler"})"), HasSubstr("flow_prediction"));
  EXPECT_THAT(refusal("{" + unipc + R"(, "solver_order": 4})"), HasSubstr("from 1 to 3"));
  EXPECT_THAT(refusal("{" + unipc + R"(, "solver_type": "x"})"), HasSubstr("bh2"));
  EXPECT_THAT(refusal("{" + unipc + R"(, "use_karras_sigmas": true})"), HasSubstr("use_karras_sigmas"));
  EXPECT_THAT(refusal("{" + unipc + R"(, "flow_shift": 0})"), HasSubstr("flow_shift"));
  EXPECT_THAT(refusal("{" + unipc + R"(, "flow_shift": "3"})"), HasSubstr("expected a number"));
  EXPECT_THAT(refusal("{" + unipc), HasSubstr("not readable"));  // no scheduler's name mends this
}

TEST(SchedulerConfig, NamesSettingsThatItDoesNotKnow) {
  EXPECT_EQ(load_scheduler_config(kGolden + "/scheduler/unipc.json").warning, "");
  EXPECT_EQ(load_scheduler_config(kGolden + "/scheduler/euler.json").warning, "");
  const TestFolder folder;
  const std::string path = folder / "scheduler_config.json";
  write_text_file(path, R"({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3, "flow_shift": 5, "x\u001b": 1,
                            "sigma_min": null, "max_shift": 1.15})");
  EXPECT_THAT(load_scheduler_config(path).warning,
              testing::AllOf(HasSubstr(R"("flow_shift", "x\u001b")"), Not(HasSubstr("max_shift"))));
}

TEST(Scheduler, ListedLevelsThatRoundingMakesOneAreRefused) {
  for (const auto kind : {SchedulerConfig::Kind::kUniPC, SchedulerConfig::Kind::kEuler}) {
    const auto scheduler = Scheduler::make({}, kind);
    for (const std::vector<double>& levels :
         {std::vector<double>{0.3, 0.3 - 1e-9}, {1, 1 - 1e-10}, {1, 1e-300}, {0.5, 0.25, 0.25 - 1e-10}}) {
      EXPECT_THROW(scheduler->set_levels(levels, 1), Error) << levels.back();
    }
    scheduler->set_levels({1, 0.75, 0.5, 0.25}, 5);
    EXPECT_EQ(scheduler->num_steps(), 4);
  }
}

// Golden data: tools/golden/original_sigmas.py, made with Wan-AI's own scheduler.
TEST(Scheduler, SpacesNoiseLevelsAsWanAIsScriptWhereAsked) {
  const auto golden = nlohmann::json::parse(std::ifstream(kGolden + "/scheduler/original_sigmas.json"), nullptr, false);
  ASSERT_TRUE(golden.is_array() && golden.size() >= 12);
  for (const auto& run : golden) {
    SchedulerConfig config;
    config.spacing = SchedulerConfig::Spacing::kOriginal;
    const auto scheduler = Scheduler::make(config);
    scheduler->set_timesteps(run["steps"], run["shift"].get<double>());
    EXPECT_EQ(scheduler->sigmas(), run["sigmas"].get<std::vector<float>>()) << run["steps"] << " " << run["shift"];
    EXPECT_EQ(scheduler->timesteps(), run["timesteps"].get<std::vector<float>>())
        << run["steps"] << " " << run["shift"];
    // The first-order method walks the same levels and rounds no timestep.
    const auto euler = Scheduler::make(config, SchedulerConfig::Kind::kEuler);
    euler->set_timesteps(run["steps"], run["shift"].get<double>());
    EXPECT_EQ(euler->sigmas(), scheduler->sigmas());
    EXPECT_FLOAT_EQ(euler->timesteps().back(), euler->sigmas()[scheduler->timesteps().size() - 1] * 1000);
  }
  EXPECT_EQ(spacing_name(parse_spacing("original")), "original");
  EXPECT_EQ(parse_spacing("diffusers"), SchedulerConfig::Spacing::kDiffusers);
  EXPECT_THROW(parse_spacing("karras"), Error);
}

}  // namespace
}  // namespace calibatt
