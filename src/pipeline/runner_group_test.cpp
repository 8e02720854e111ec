// Generations of several ranks with a model that is none of this library's: who computes what, and how they end.
#include "pipeline/runner_group.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>

#include "backend/cpu/make_backend.h"
#include "base/random.h"
#include "calibatt/pipeline.h"
#include "pipeline/fake_model.h"

namespace calibatt {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

/// What a rank's model does in place of predicting zeros.
struct Behaviour {
  std::function<void(int forward, const WorkProgress& progress)> forward = {};
  std::function<void()> encode = {};
  std::function<void(const WorkProgress& progress)> decode = {};
};

class RankModel final : public FakeModel {
 public:
  RankModel(Backend& backend, std::vector<std::string>& log, Behaviour behaviour)
      : FakeModel(backend, log), behaviour_(std::move(behaviour)) {}
  std::unique_ptr<Conditioning> encode(const Prompt& prompt, const Prompt* negative,
                                       const WorkProgress& progress) override {
    if (behaviour_.encode) behaviour_.encode();
    return FakeModel::encode(prompt, negative, progress);
  }
  Tensor forward(const Tensor& latents, const StepSettings& step, GuidanceBranch branch,
                 const Conditioning& conditioning, SelfAttention& attention, TransformerTimes& times,
                 const WorkProgress& progress) override {
    if (behaviour_.forward) behaviour_.forward(forwards_++, progress);
    Tensor prediction = FakeModel::forward(latents, step, branch, conditioning, attention, times, progress);
    // Each branch another, and another at each latents.
    const float scale = branch == GuidanceBranch::kConditional ? 0.5f : -0.25f;
    for (int64_t i = 0; i < prediction.size(); ++i) prediction.f32()[i] = scale * latents.f32()[i];
    return prediction;
  }
  /// The video is the latents. Of ranks each gives the first one a number of them in turn.
  VideoFrames decode(const Tensor& latents, const WorkProgress& progress, Communicator* ranks) override {
    if (behaviour_.decode) behaviour_.decode(progress);
    VideoFrames video;
    const int num_ranks = ranks != nullptr ? ranks->size() : 1, rank = ranks != nullptr ? ranks->rank() : 0;
    for (int64_t i = 0; i < latents.size(); i += num_ranks) {
      std::vector<float> values(static_cast<size_t>(num_ranks));
      const float own = i + rank < latents.size() ? latents.f32()[i + rank] : 0;
      std::vector<Piece> receive;
      for (float& value : values) receive.push_back({&value, sizeof(value)});
      if (ranks != nullptr) {
        ranks->all_gather({&own, sizeof(own)}, receive);
      } else {
        values = {own};
      }
      values.resize(static_cast<size_t>(std::min<int64_t>(num_ranks, latents.size() - i)));
      const auto* bytes = reinterpret_cast<const uint8_t*>(values.data());
      video.rgb.insert(video.rgb.end(), bytes, bytes + values.size() * sizeof(float));
    }
    return rank == 0 ? video : VideoFrames();
  }

 private:
  ModelDescription description_;
  Behaviour behaviour_;
  int forwards_ = 0;
};

class Ranks : public testing::Test {
 protected:
  Ranks() {
    options_.prompt = "cat";
    options_.negative_prompt = "dog";
    options_.width = options_.height = 64;
    options_.video_frames = 5;
    options_.flow_shift = 1;
    options_.scheduler = "euler";
    options_.timesteps = {1000, 600, 300};
  }
  std::unique_ptr<Pipeline> pipeline(const std::vector<Behaviour>& behaviours) {
    logs_.assign(behaviours.size(), {});
    std::vector<std::unique_ptr<Runner>> runners;
    for (size_t rank = 0; rank < behaviours.size(); ++rank) {
      auto backend = make_backend("cpu");
      auto model = std::make_unique<RankModel>(*backend, logs_[rank], behaviours[rank]);
      runners.push_back(std::make_unique<Runner>(std::move(backend), std::move(model)));
    }
    return std::make_unique<Pipeline>(std::make_unique<RunnerGroup>(std::move(runners)));
  }
  Pipeline::Result made_by(int num_ranks) {
    return pipeline(std::vector<Behaviour>(static_cast<size_t>(num_ranks)))->generate(options_);
  }
  /// What the ranks' pipeline throws.
  std::string error_of(const std::vector<Behaviour>& behaviours, ErrorKind kind = ErrorKind::kDevice) {
    std::string what;
    try {
      pipeline(behaviours)->generate(options_);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind);
      what = error.what();
    }
    return what;
  }
  std::vector<std::vector<std::string>> logs_;
  GenerateOptions options_;
};

/// A forward that ends when the others do. Where nothing ends it, that fails the test after minutes, and does not hang.
Behaviour computes_for_long() {
  return {.forward = [](int, const WorkProgress& progress) {
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::minutes(2);
    while (std::chrono::steady_clock::now() < give_up) {
      progress(0, kLayers, 0.5);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    throw std::runtime_error("nobody ended it");
  }};
}
Behaviour fails_at(int forward) {
  return {.forward = [forward](int index, const WorkProgress&) {
    if (index == forward) throw Error(ErrorKind::kDevice, "the GPU has fallen off the bus");
  }};
}

TEST_F(Ranks, MakeTheVideoOfOne) {
  for (const double scale : {4.0, 1.0}) {
    options_.cfg_scale = options_.cfg_scale_2 = scale;
    const Pipeline::Result alone = made_by(1);
    EXPECT_FALSE(alone.video.rgb.empty());
    for (const int num_ranks : {2, 3, 4}) {
      const Pipeline::Result together = made_by(num_ranks);
      EXPECT_EQ(together.video.rgb, alone.video.rgb) << num_ranks << " ranks, guidance " << scale;
      EXPECT_EQ(together.report.guidance_groups, scale > 1 && num_ranks % 2 == 0 ? 2 : 1);
      EXPECT_EQ(together.report.decoding_devices, num_ranks);
    }
  }
}

TEST_F(Ranks, BranchesOfGuidanceAreComputedByHalfOfThemEach) {
  made_by(4);
  for (size_t rank = 0; rank < 4; ++rank) {
    int forwards = 0;
    for (const std::string& line : logs_[rank]) {
      if (!line.starts_with("expert")) continue;
      ++forwards;
      EXPECT_THAT(line, HasSubstr(rank < 2 ? " conditional" : " unconditional"));
    }
    EXPECT_EQ(forwards, 3);
  }
}

// Half of them would have nothing to do in a step of one forward.
TEST_F(Ranks, ShareEveryForwardWhereAStepHasOne) {
  options_.cfg_scale_2 = 1;  // of the last two steps
  EXPECT_EQ(made_by(2).report.guidance_groups, 1);
  for (const auto& log : logs_) {
    EXPECT_THAT(log, testing::Contains("expert 0 unconditional"));
    EXPECT_THAT(log, Not(testing::Contains("expert 1 unconditional")));
  }
}

// Its latents have eight.
TEST_F(Ranks, LeaveAVideoOfFewerRowsThanRanksToTheFirst) {
  for (const size_t num_ranks : {size_t{8}, size_t{9}}) {
    std::vector<Behaviour> behaviours(num_ranks);
    std::atomic<int> decoding = 0;
    for (Behaviour& each : behaviours) each.decode = [&](const WorkProgress&) { ++decoding; };
    const Pipeline::Result made = pipeline(behaviours)->generate(options_);
    EXPECT_EQ(made.report.decoding_devices, num_ranks == 8 ? 8 : 1);
    EXPECT_EQ(decoding, made.report.decoding_devices);
    EXPECT_EQ(made.video.rgb, made_by(1).video.rgb);
  }
}

/// Decoding that nothing else ends.
Behaviour decodes_for_long() {
  return {.decode = [](const WorkProgress& progress) {
    while (true) {
      progress(0, 5, 0.5);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }};
}

TEST_F(Ranks, OneThatFailsInDecodingEndsAll) {
  for (const bool others_wait : {true, false}) {
    for (size_t failing = 0; failing < 3; ++failing) {
      std::vector<Behaviour> behaviours(3, others_wait ? Behaviour() : decodes_for_long());
      behaviours[failing].decode = [](const WorkProgress&) { throw Error(ErrorKind::kDevice, "lost"); };
      EXPECT_EQ(error_of(behaviours), "rank " + std::to_string(failing) + " of 3: lost");
    }
  }
}

TEST_F(Ranks, AreStoppedInDecoding) {
  struct Stop {};
  const auto ranks = pipeline(std::vector<Behaviour>(2, decodes_for_long()));
  const auto stop = [](const Progress& progress) {
    if (progress.stage == "decode") throw Stop();
  };
  EXPECT_THROW(ranks->generate(options_, stop), Stop);
}

TEST_F(Ranks, OnlyTheFirstIsHeard) {
  std::vector<double> overall;
  const std::thread::id caller = std::this_thread::get_id();
  pipeline(std::vector<Behaviour>(3))->generate(options_, [&](const Progress& progress) {
    EXPECT_EQ(std::this_thread::get_id(), caller);
    overall.push_back(progress.overall);
  });
  EXPECT_TRUE(std::is_sorted(overall.begin(), overall.end()));
  EXPECT_GT(overall.size(), 6u);
}

TEST_F(Ranks, OneThatFailsEndsAllWithItsReason) {
  for (const int forward : {0, 2}) {
    for (size_t failing = 0; failing < 4; ++failing) {
      std::vector<Behaviour> behaviours(4);
      behaviours[failing] = fails_at(forward);
      EXPECT_EQ(error_of(behaviours), "rank " + std::to_string(failing) + " of 4: the GPU has fallen off the bus");
    }
  }
}

TEST_F(Ranks, OneThatFailsEndsThoseThatComputeForLong) {
  EXPECT_EQ(error_of({computes_for_long(), fails_at(0)}), "rank 1 of 2: the GPU has fallen off the bus");
  EXPECT_EQ(error_of({fails_at(0), computes_for_long()}), "rank 0 of 2: the GPU has fallen off the bus");
}

TEST_F(Ranks, OneThatFailsBeforeTheFirstStepEndsAll) {
  std::vector<Behaviour> behaviours(3);
  behaviours[2].encode = [] { throw Error(ErrorKind::kDevice, "out of memory"); };
  EXPECT_EQ(error_of(behaviours), "rank 2 of 3: out of memory");
}

TEST_F(Ranks, AfterAFailureTheSamePipelineGoesOn) {
  std::atomic<bool> failing = true;
  std::vector<Behaviour> behaviours(2);
  behaviours[1].forward = [&](int, const WorkProgress&) {
    if (failing) throw Error(ErrorKind::kDevice, "lost");
  };
  const auto ranks = pipeline(behaviours);
  EXPECT_THROW(ranks->generate(options_), Error);
  failing = false;
  EXPECT_FALSE(ranks->generate(options_).video.rgb.empty());
}

TEST_F(Ranks, WhoeverListensEndsAllByWhatItThrows) {
  struct Stop {
    int step;
  };
  const auto ranks = pipeline({Behaviour(), computes_for_long(), Behaviour(), computes_for_long()});
  try {
    ranks->generate(options_, [](const Progress& progress) {
      if (progress.stage == "denoise") throw Stop{progress.done};
    });
    ADD_FAILURE() << "it was made";
  } catch (const Stop& stop) {
    EXPECT_EQ(stop.step, 0);
  }
}

TEST_F(Ranks, AnErrorOfWhoeverListensIsNoRanks) {
  const auto ranks = pipeline(std::vector<Behaviour>(2));
  try {
    ranks->generate(options_, [](const Progress&) { throw Error(ErrorKind::kDevice, "the caller's own"); });
    ADD_FAILURE() << "it was made";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "the caller's own");
  }
}

TEST_F(Ranks, WhatCannotBeSharedIsRefusedBeforeAnythingRuns) {
  options_.width = options_.height = 16;  // two latent frames of one token
  EXPECT_THAT(error_of(std::vector<Behaviour>(3), ErrorKind::kUsage),
              HasSubstr("--gpus 3: a video of 2 tokens cannot be shared by 3 GPUs"));
  for (const auto& log : logs_) EXPECT_THAT(log, ElementsAre());
}

TEST(Devices, ThatCannotBeOnePipelinesAreRefused) {
  const auto error_of = [](const LoadOptions& options) -> std::string {
    try {
      check_devices(options);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      return error.what();
    }
    return "";
  };
  LoadOptions options;
  EXPECT_EQ(error_of(options), "");
  options.devices = {};
  EXPECT_THAT(error_of(options), HasSubstr("names no device"));
  options.devices.assign(kMostDevices, 0);
  EXPECT_EQ(error_of(options), "");
  options.devices.push_back(0);
  EXPECT_THAT(error_of(options), HasSubstr("names 65 devices; give at most 64"));
}

}  // namespace
}  // namespace calibatt
