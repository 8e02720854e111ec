// Calibration by several ranks with a model that is none of this library's: the plan of one, and how they end.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "backend/cpu/make_backend.h"
#include "base/error.h"
#include "calibrate/profile/profile.h"
#include "calibrate/profile/step_growth.h"
#include "calibrate/record/synthetic_attention.h"
#include "io/test_folder.h"
#include "pipeline/calibrate.h"
#include "pipeline/fake_model.h"
#include "plan/plan.h"

namespace calibatt {
namespace {

using testing::Contains;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;

struct OfPrompt final : Conditioning {
  std::string text;
};

/// What a rank's model does before a forward, the rank's so-manieth, or (kEncoding) before it encodes a prompt.
using Before = std::function<void(int forward, const WorkProgress& progress)>;
constexpr int kEncoding = -1;

/// Attends to something that depends on the prompt, and predicts something that depends on what comes of it.
class AttendingModel final : public FakeModel {
 public:
  AttendingModel(Backend& backend, std::vector<std::string>& log, Before before)
      : FakeModel(backend, log), before_(std::move(before)) {}

  std::unique_ptr<Conditioning> encode(const Prompt& prompt, const Prompt* negative,
                                       const WorkProgress& progress) override {
    if (before_) before_(kEncoding, progress);
    FakeModel::encode(prompt, negative, progress);
    auto conditioning = std::make_unique<OfPrompt>();
    conditioning->text = prompt.text;
    return conditioning;
  }
  Tensor forward(const Tensor& latents, const StepSettings& step, GuidanceBranch branch,
                 const Conditioning& conditioning, SelfAttention& attention, TransformerTimes& times,
                 const WorkProgress& progress) override {
    if (before_) before_(forwards_++, progress);
    Tensor prediction = FakeModel::forward(latents, step, branch, conditioning, attention, times, progress);
    const int prompt = static_cast<const OfPrompt&>(conditioning).text[0];
    const AttentionGeometry geometry = description().geometry({5, 64, 64}, attention.token_order());
    for (int layer = 0; layer < kLayers; ++layer) {
      const SyntheticAttention call(geometry, prompt, static_cast<int>(step.timestep), layer);
      Tensor out(DType::kF32, call.q.shape());
      OutputContext context;
      if (attention.wants_output_context()) context.residual_square_sum = 1e4;
      attention.attend(layer, geometry, call.view(call.q), call.view(call.k), call.view(call.v), call.output_view(out),
                       context);
      for (int64_t i = 0; i < prediction.size(); ++i) prediction.f32()[i] += 0.1f * out.f32()[i % out.size()];
    }
    const float scale = branch == GuidanceBranch::kConditional ? 0.5f : -0.25f;
    for (int64_t i = 0; i < prediction.size(); ++i) prediction.f32()[i] += scale * latents.f32()[i];
    return prediction;
  }
  VideoFrames decode(const Tensor& latents, const WorkProgress&, Communicator*) override {
    VideoFrames video;
    video.width = video.height = 16, video.frames = 2;
    for (int64_t i = 0; i < int64_t{2} * 16 * 16 * 3; ++i) {
      video.rgb.push_back(static_cast<uint8_t>(std::clamp(128 + 40 * latents.f32()[i % latents.size()], 0.0f, 255.0f)));
    }
    return video;
  }

 private:
  Before before_;
  int forwards_ = 0;
};

class CalibrateOnRanks : public testing::Test {
 protected:
  CalibrateOnRanks() {
    options_.run.width = options_.run.height = 64;
    options_.run.video_frames = 5;
    options_.run.flow_shift = 1;
    options_.run.scheduler = "euler";
    options_.run.timesteps = {1000, 900, 700, 400, 1};
    options_.run.negative_prompt = "dog";
    options_.block_q = options_.block_k = 8;
    options_.token_order = "tiles:2x2x2";
    options_.attention_share = 0.5;  // whatever the machine is busy with
    for (const char* text : {"cat", "bird", "fish", "newt"}) options_.prompts.push_back({text, "line"});
  }
  std::unique_ptr<RunnerGroup> ranks(const std::vector<Before>& before) {
    logs_.assign(before.size(), {});
    std::vector<std::unique_ptr<Runner>> runners;
    for (size_t rank = 0; rank < before.size(); ++rank) {
      auto backend = make_backend("cpu");
      auto model = std::make_unique<AttendingModel>(*backend, logs_[rank], before[rank]);
      runners.push_back(std::make_unique<Runner>(std::move(backend), std::move(model),
                                                 [this](const std::string& line) { warnings_.push_back(line); }));
    }
    return std::make_unique<RunnerGroup>(std::move(runners));
  }
  /// The plan's bytes.
  std::string plan_of(const std::vector<Before>& before, const std::string& profile,
                      const ProgressCallback& progress = {}) {
    options_.profile_dir = folder_ / profile;
    const std::string path = folder_ / (profile + ".safetensors");
    summary_ = calibrate(*ranks(before), options_, path, progress);
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  std::string error_of(const std::vector<Before>& before, const std::string& profile) {
    const auto start = std::chrono::steady_clock::now();
    std::string what;
    try {
      plan_of(before, profile);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kDevice);
      what = error.what();
    }
    EXPECT_LT(std::chrono::steady_clock::now() - start, kHangs);
    return what;
  }
  /// Pauses, and before each of its first prompts waits until so many ranks have as many: who is first leaves others
  /// some.
  static Before meets(std::atomic<int>& met, int ranks, int prompts = 1) {
    return [&met, ranks, prompts, begun = 0](int forward, const WorkProgress& progress) mutable {
      if (forward != kEncoding || begun == prompts) return pauses()(forward, progress);
      ++begun, ++met;
      wait(progress, [&] { return met >= begun * ranks; });
    };
  }
  /// Waits for an event, however slow the machine is; one that never comes fails, and hangs nothing.
  static void wait(const WorkProgress& progress, const std::function<bool()>& event) {
    const auto start = std::chrono::steady_clock::now();
    while (!event()) {
      ASSERT_LT(std::chrono::steady_clock::now() - start, kHangs);
      progress(0, kLayers, 0.5);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  static constexpr std::chrono::seconds kHangs{100};
  static Before pauses() {
    return [](int, const WorkProgress&) { std::this_thread::sleep_for(std::chrono::milliseconds(2)); };
  }
  /// Computes until whoever listens has been told of it: of two messages the second begins after it did.
  static Before until_told(const std::atomic<int>& told) {
    return [&told](int, const WorkProgress& progress) {
      wait(progress, [&told, before = told.load()] { return told >= before + 2; });
    };
  }
  static Before fails_at(int forward) {
    return [forward](int index, const WorkProgress&) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
      if (index == forward) throw Error(ErrorKind::kDevice, "the GPU has fallen off the bus");
    };
  }
  static Before computes_for_long() {
    return [](int forward, const WorkProgress& progress) {
      while (forward != kEncoding) {
        progress(0, kLayers, 0.5);
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    };
  }

  TestFolder folder_;
  std::vector<std::vector<std::string>> logs_;
  std::vector<std::string> warnings_;  // told by the first rank alone
  CalibrateOptions options_;
  CalibrationSummary summary_;
};

TEST_F(CalibrateOnRanks, ThePlanIsThatOfOne) {
  int number = 0;
  for (const std::string measure : {"maps", "levels", "energy"}) {
    options_.measure = measure == "maps" ? "maps" : "levels";
    options_.budget = measure == "energy" ? "energy" : "error";
    for (const bool reuses_steps : {false, true}) {
      if (reuses_steps && measure == "energy") continue;
      options_.speedup = reuses_steps ? std::optional(1.5) : std::nullopt;
      options_.density = reuses_steps ? std::nullopt : std::optional(0.5);
      const std::string name = measure + (reuses_steps ? "_speedup" : "");
      const std::string alone = plan_of({pauses()}, name);
      EXPECT_FALSE(alone.empty());
      EXPECT_EQ(summary_.step_reuse.empty(), !reuses_steps);
      for (const size_t num_ranks : {2u, 3u, 5u}) {
        std::atomic<int> met = 0;
        EXPECT_TRUE(plan_of(std::vector<Before>(num_ranks, meets(met, 2)), "p" + std::to_string(number++)) == alone)
            << num_ranks << " ranks: " << name;
        EXPECT_EQ(summary_.prompts_recorded, 4);
        EXPECT_GE(met, 2) << "one rank measures all";
      }
    }
  }
}

TEST_F(CalibrateOnRanks, OneThatFailsEndsAllAndTheSameGoesOn) {
  options_.density = 0.5;
  const std::string alone = plan_of({pauses()}, "alone");
  for (const size_t failing : {0u, 1u}) {
    const std::string name = "failed" + std::to_string(failing);
    std::atomic<int> met = 0;
    std::vector<Before> before(2, meets(met, 2, 2));
    before[failing] = [meet = meets(met, 2, 2), fail = fails_at(13)](int forward, const WorkProgress& progress) {
      meet(forward, progress);
      fail(forward, progress);  // in its second prompt
    };
    EXPECT_EQ(error_of(before, name), "rank " + std::to_string(failing) + " of 2: the GPU has fallen off the bus");
    EXPECT_FALSE(std::filesystem::exists(folder_ / (name + ".safetensors")));
    EXPECT_TRUE(plan_of({pauses(), pauses()}, name) == alone);
    EXPECT_GE(summary_.prompts_resumed, 1);
    EXPECT_EQ(summary_.prompts_resumed + summary_.prompts_recorded, 4);
  }
}

TEST_F(CalibrateOnRanks, OneThatFailsEndsThoseThatComputeOrWait) {
  EXPECT_EQ(error_of({computes_for_long(), fails_at(kEncoding)}, "a"), "rank 1 of 2: the GPU has fallen off the bus");
  EXPECT_EQ(error_of({fails_at(kEncoding), computes_for_long()}, "b"), "rank 0 of 2: the GPU has fallen off the bus");
  // Some follow the first, some have nothing to do.
  EXPECT_THAT(error_of(std::vector<Before>(6, fails_at(4)), "c"), HasSubstr(" of 6: the GPU has fallen off the bus"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "a")) << "nothing was measured";
}

TEST_F(CalibrateOnRanks, ARankWithoutAPromptBeginsWithTheHeldOutRun) {
  options_.speedup = 1.5;
  options_.prompts.resize(1);
  std::atomic<int> met = 0;
  const Before meet = [&](int forward, const WorkProgress& progress) {
    if (forward != 0) return;
    ++met;
    wait(progress, [&] { return met == 2; });
  };
  plan_of({meet, meet}, "p");
}

// In few steps as many runs say how errors grow as steps can be reused, here four, and one of masks.
TEST_F(CalibrateOnRanks, EveryRunOfGrowthMayHaveARankOfItsOwn) {
  options_.speedup = 1.5;
  options_.run.timesteps = {1000, 900, 800, 700, 600, 1};  // all but the last of one transformer
  std::atomic<int> forwards = 0, met = 0;
  const Before meet = [&, has_met = false](int forward, const WorkProgress& progress) mutable {
    if (forward == kEncoding || ++forwards <= 60 || has_met) return;  // 48 are the prompts', 12 the dense run's
    has_met = true;
    ++met;
    wait(progress, [&] { return met >= 5; });
  };
  plan_of(std::vector<Before>(5, meet), "p");
  EXPECT_EQ(met, 5);
}

TEST_F(CalibrateOnRanks, AttentionIn8BitsThatAnotherMachineMeasuredIsNotChosenWhereItCannotRun) {
  options_.speedup = 1.5;
  plan_of({Before()}, "p");
  const std::string folder = options_.profile_dir, path = folder_ / "p.safetensors";
  const ProfileHeader header = load_header(prompt_file(folder, 0));
  StepGrowth growth = load_growth(folder, header).value();
  growth.attention_changes = {{0, 1e-6}};
  save_growth(folder, header, growth);
  options_.run.attention_dtype = AttentionDtype::kFP8;
  const EightBitGains gains{1, {{1, 0.1, 2}, {1, 1, 2}}};
  summary_ = calibrate(*ranks({Before()}), options_, path, {}, &gains);
  EXPECT_THAT(load_plan(path)->info().eight_bits, Each(EightBitParts()));
  EXPECT_THAT(warnings_, Contains(HasSubstr("--attention-dtype fp8: these 8 bits are not computed here")));
}

TEST_F(CalibrateOnRanks, OneThatFailsInAHeldOutRunEndsAll) {
  options_.speedup = 1.5;
  std::atomic<int> forwards = 0;
  const Before fails_late = [&](int forward, const WorkProgress&) {
    if (forward == kEncoding) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (++forwards == 53) throw Error(ErrorKind::kDevice, "lost");  // 40 are the prompts', 10 the dense run's
  };
  EXPECT_THAT(error_of({fails_late, fails_late}, "p"), HasSubstr(" of 2: lost"));
  forwards = 1000;
  plan_of({fails_late, fails_late}, "p");
  EXPECT_EQ(summary_.prompts_resumed, 4);
}

// Every time it ends before all could be measured anew: 8 forwards are of masks, 12 of the three factors, and each time
// 10 of the dense run.
TEST_F(CalibrateOnRanks, WhatIsMeasuredOfGrowthIsNotMeasuredAgain) {
  options_.speedup = 1.5;
  const auto growth_of = [&](const std::string& profile) {
    std::ifstream file(folder_ / (profile + "/step_growth.json"), std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  const std::string plan = plan_of({Before()}, "whole"), growth = growth_of("whole");
  for (const size_t num_ranks : {1u, 3u}) {
    const std::string profile = "ended" + std::to_string(num_ranks), folder = folder_ / profile;
    const int most = num_ranks == 1 ? 10 + 9 : 10 + 16;
    std::atomic<int> forwards = -40;  // the prompts'
    const Before counts = [&](int forward, const WorkProgress&) {
      if (forward != kEncoding && ++forwards > most) throw Error(ErrorKind::kDevice, "lost");
    };
    std::string resumed;
    int ended = 0;
    for (; resumed.empty() && ended < 20; forwards = 0) {
      try {
        resumed = plan_of(std::vector<Before>(num_ranks, counts), profile);
      } catch (const Error& error) {
        ASSERT_EQ(error.kind(), ErrorKind::kDevice) << error.what();
        ++ended;
        EXPECT_NE(std::filesystem::exists(folder + "/step_growth_part.safetensors"), !growth_of(profile).empty());
      }
    }
    EXPECT_TRUE(resumed == plan) << num_ranks << " ranks";
    EXPECT_EQ(growth_of(profile), growth);
    EXPECT_FALSE(std::filesystem::exists(folder + "/step_growth_part.safetensors"));
    EXPECT_GE(ended, 1);
    if (num_ranks == 1) {
      EXPECT_EQ(ended, 3) << "behind the first factor, behind the others, and before the plan was checked";
    }
  }
}

TEST_F(CalibrateOnRanks, WhoeverListensEndsAllInEveryStage) {
  struct Stop {};
  options_.speedup = 1.5;
  for (const std::string stage : {"denoise", "compile", "held out", "last"}) {
    std::atomic<int> told = 0;
    const auto stop = [&](const Progress& state) {
      ++told;
      const bool held_out = state.prompt == state.num_prompts && state.stage == "denoise";
      if (stage == "held out" ? held_out : stage == "last" ? state.overall > 0.95 : state.stage == stage) throw Stop();
    };
    EXPECT_THROW(plan_of(std::vector<Before>(3, until_told(told)), "p", stop), Stop) << stage;
  }
  EXPECT_THROW(plan_of({pauses(), computes_for_long()}, "q",
                       [](const Progress& state) {
                         if (state.stage == "denoise") throw Stop();
                       }),
               Stop);
}

TEST_F(CalibrateOnRanks, WhoeverListensIsToldAsLongAsAnybodyWorks) {
  std::atomic<int> told = 0;
  options_.density = 0.5;
  const std::thread::id caller = std::this_thread::get_id();
  double overall = 0;
  plan_of({{}, until_told(told)}, "p", [&](const Progress& state) {
    EXPECT_EQ(std::this_thread::get_id(), caller);
    EXPECT_GE(state.overall, overall);
    overall = state.overall;
    ++told;
  });
  EXPECT_NEAR(overall, 1, 1e-9);
}

// What the first prompt leaves open is looked at again with two, while others are to be measured.
TEST_F(CalibrateOnRanks, ADoubtIsToldAgainBehindTheSecondPrompt) {
  options_.repetition = "off";
  const auto doubts_at = [&](double density, const std::string& profile) {
    options_.density = density;
    warnings_.clear();
    try {
      plan_of({Before()}, profile);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    }
    std::vector<std::string> doubts;
    for (const std::string& line : warnings_) {
      if (line.starts_with("what is measured so far")) doubts.push_back(line.substr(0, line.find(", the least")));
    }
    return doubts;
  };
  const std::string one = "what is measured so far (1 of the prompts) says: the density ",
                    two = "what is measured so far (2 of the prompts) says: the density ";
  EXPECT_THAT(doubts_at(0.26, "certain"), ElementsAre(one + "0.26 cannot be reached"));
  EXPECT_THAT(doubts_at(0.33, "open"), ElementsAre(one + "0.33 may not be reached", two + "0.33 may not be reached"));
  EXPECT_THAT(doubts_at(0.4, "possible"), ElementsAre());
  // With prompts that were there before, the latest that they say.
  std::filesystem::remove(prompt_file(folder_ / "open", 3));
  EXPECT_THAT(doubts_at(0.33, "open"), ElementsAre(two + "0.33 may not be reached"));
  // Behind the last nothing is left to decide.
  options_.prompts.resize(2);
  EXPECT_THAT(doubts_at(0.33, "two"), ElementsAre(one + "0.33 may not be reached"));
}

TEST_F(CalibrateOnRanks, ARangeOfPromptsIsMeasuredSideBySideToo) {
  options_.prompt_range = {1, 4};
  plan_of({pauses(), pauses()}, "together");
  EXPECT_EQ(summary_.prompts_recorded, 3);
  EXPECT_FALSE(summary_.plan_written);
  for (int prompt = 0; prompt < 4; ++prompt) {
    EXPECT_EQ(std::filesystem::exists(prompt_file(folder_ / "together", prompt)), prompt > 0) << prompt;
  }
}

}  // namespace
}  // namespace calibatt
