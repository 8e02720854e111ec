// Prompts that are measured at the same time: they leave what one after another leaves.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>

#include "backend/cpu/make_backend.h"
#include "calibrate/record/calibrator.h"
#include "calibrate/record/synthetic_attention.h"
#include "io/test_folder.h"

namespace calibatt {
namespace {

constexpr int kRunSteps = 5, kRunLayers = 2, kRunPrompts = 6;

ProfileHeader maps_header() {
  ProfileHeader header;
  header.geometry.frames = 3, header.geometry.height = 5, header.geometry.width = 6;
  header.geometry.heads = 3, header.geometry.head_dim = 16;
  header.geometry.block_q = header.geometry.block_k = 16;
  header.num_layers = kRunLayers;
  header.sigmas = {1.0, 0.9, 0.7, 0.4, 0.1};
  header.anchor_rows = {1, 2};
  header.provenance.num_prompts = kRunPrompts;
  return header;
}

ProfileHeader codes_header(Ranking ranking) {
  ProfileHeader header = maps_header();
  header.measured = Measured::kLevels;
  header.code_ranking = ranking;
  header.recorded_steps = {0, 2, 3};
  if (ranking == Ranking::kEnergy) header.anchor_rows.clear();
  return header;
}

class SideBySide : public ::testing::Test {
 protected:
  /// Step by step, once `together_` prompts have begun; prompt 0 takes its time.
  RunPrompt runner(const ProfileHeader& header) {
    return [this, &header](int prompt, SelfAttention& attention) {
      ++begun_;
      wait_until_begun(together_);
      struct Slowed : SelfAttention {
        Slowed(SelfAttention& recorder, int pause) : recorder(recorder), pause(pause) {}
        void begin_forward(int step, GuidanceBranch branch) override {
          std::this_thread::sleep_for(std::chrono::milliseconds(pause));
          recorder.begin_forward(step, branch);
        }
        bool wants_output_context() const override { return recorder.wants_output_context(); }
        void attend(int layer, const AttentionGeometry& geometry, ConstHeadsView q, ConstHeadsView k, ConstHeadsView v,
                    HeadsView out, const OutputContext& context) override {
          recorder.attend(layer, geometry, q, k, v, out, context);
        }
        SelfAttention& recorder;
        int pause;
      } slowed(attention, prompt == 0 ? 10 : 0);
      run_synthetic(header.geometry, kRunSteps, kRunLayers, prompt, slowed);
      return 1.0;
    };
  }
  // The scheduler may let one thread do all the work of others, so they meet. Minutes: it fails, and does not hang.
  void wait_until_begun(int count) const {
    const auto give_up = std::chrono::steady_clock::now() + std::chrono::minutes(2);
    while (begun_ < count && std::chrono::steady_clock::now() < give_up) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    EXPECT_GE(begun_, count) << "prompts wait for one another to begin";
  }
  RecordedProfile recorded(const ProfileHeader& header, const std::string& folder, int num_threads) {
    begun_ = 0;
    together_ = num_threads;
    ProfileRecording recording(header, folder);
    std::atomic<size_t> next = 0;
    {
      std::vector<std::jthread> threads;
      for (int i = 0; i < num_threads; ++i) {
        threads.emplace_back([&] {
          const auto backend = make_backend("cpu");
          for (size_t job; (job = next++) < recording.missing().size();) {
            recording.measure(recording.missing()[job], *backend, runner(header));
          }
        });
      }
    }
    return recording.finished();
  }
  static void expect_same(const ProfileHeader& header, const std::string& folder, const std::string& other) {
    for (int prompt = 0; prompt < kRunPrompts; ++prompt) {
      const PromptProfile a = load_prompt(folder, header, prompt).value(), b = *load_prompt(other, header, prompt);
      EXPECT_EQ(a.own_ranking, b.own_ranking);
      EXPECT_EQ(a.ranked_from, b.ranked_from);
      for (const auto field : {&PromptProfile::energy, &PromptProfile::harm, &PromptProfile::harm_scale,
                               &PromptProfile::level_error, &PromptProfile::copy_error, &PromptProfile::similarity,
                               &PromptProfile::levels, &PromptProfile::site_checksums, &PromptProfile::rung_harm}) {
        const Tensor &of_a = a.*field, &of_b = b.*field;
        ASSERT_EQ(of_a.shape(), of_b.shape());
        EXPECT_TRUE(of_a.empty() || std::memcmp(of_a.raw(), of_b.raw(), of_a.size_bytes()) == 0) << prompt;
      }
    }
  }

  TestFolder folder_;
  std::atomic<int> begun_ = 0;
  int together_ = 1;
};

TEST_F(SideBySide, MeasuredIsWhatOneAfterAnotherLeaves) {
  int kind = 0;
  for (const ProfileHeader& header : {maps_header(), codes_header(Ranking::kHarm), codes_header(Ranking::kEnergy)}) {
    const std::string alone = folder_ / ("alone" + std::to_string(kind));
    recorded(header, alone, 1);
    for (const int num_threads : {2, 3, kRunPrompts}) {
      const std::string together = folder_ / ("by" + std::to_string(num_threads) + "_" + std::to_string(kind));
      const RecordedProfile profile = recorded(header, together, num_threads);
      EXPECT_EQ(profile.prompts_recorded, kRunPrompts);
      EXPECT_EQ(profile.transformer_seconds, kRunPrompts);
      expect_same(header, together, alone);
    }
    ++kind;
  }
}

TEST_F(SideBySide, WhatIsThereIsNotMeasuredAgain) {
  const ProfileHeader header = codes_header(Ranking::kHarm);
  const std::string alone = folder_ / "alone", together = folder_ / "together";
  recorded(header, alone, 1);
  std::filesystem::create_directories(together);
  for (const int prompt : {0, 2, 5}) std::filesystem::copy(prompt_file(alone, prompt), together);
  EXPECT_EQ(ProfileRecording(header, together).missing(), (std::vector<int>{1, 3, 4}));
  EXPECT_EQ(recorded(header, together, 2).prompts_resumed, 3);
  expect_same(header, together, alone);
}

struct Stop {};

TEST_F(SideBySide, APromptThatWaitsForOthersCanBeEnded) {
  const ProfileHeader header = maps_header();
  ProfileRecording recording(header, folder_ / "p");
  int polls = 0;
  const auto stop = [&] {
    if (++polls == 3) throw Stop();
  };
  EXPECT_THROW(recording.measure(1, *make_backend("cpu"), runner(header), stop), Stop) << "nobody measures prompt 0";
  EXPECT_EQ(count_prompts(folder_ / "p"), 0);
}

// They do not look at more.
TEST_F(SideBySide, LevelCodesWaitForTheFirstFewPromptsAlone) {
  const ProfileHeader header = codes_header(Ranking::kHarm);
  ProfileRecording recording(header, folder_ / "p");
  const auto backend = make_backend("cpu");
  const auto never_for_long = [begin = std::chrono::steady_clock::now()] {
    if (std::chrono::steady_clock::now() - begin > std::chrono::minutes(2)) throw Stop();
  };
  for (const int prompt : {0, 1, 2, 3, 5}) recording.measure(prompt, *backend, runner(header), never_for_long);
  EXPECT_EQ(count_prompts(folder_ / "p"), 5);
}

}  // namespace
}  // namespace calibatt
