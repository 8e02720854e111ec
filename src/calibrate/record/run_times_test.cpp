// What a recording says of the run's time: how much of it is attention, and how much the recording's own.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "backend/cpu/make_backend.h"
#include "calibrate/profile/profile_header.h"
#include "calibrate/record/calibrator.h"
#include "calibrate/record/synthetic_attention.h"
#include "io/test_folder.h"

namespace calibatt {
namespace {

ProfileHeader small_header(Measured measured) {
  ProfileHeader header;
  header.geometry.frames = 3, header.geometry.height = 5, header.geometry.width = 6;
  header.geometry.heads = 3, header.geometry.head_dim = 16;
  header.geometry.block_q = header.geometry.block_k = 16;
  header.num_layers = 2;
  header.sigmas = {1.0, 0.4};
  header.anchor_rows = {1, 2};
  header.measured = measured;
  if (measured == Measured::kLevels) {
    header.recorded_steps = {0, 1};
    header.code_ranking = Ranking::kHarm;
  }
  header.provenance.transformers[0].fingerprint = "f00d";
  header.provenance.prompts_hash = "beef";
  header.precision = "f32";
  header.provenance.num_prompts = 1;
  return header;
}

/// Tells which step has begun.
class Watched : public SelfAttention {
 public:
  Watched(SelfAttention& attention, int& step) : attention_(attention), begun_(step) {}
  TokenOrder token_order() const override { return attention_.token_order(); }
  bool wants_output_context() const override { return attention_.wants_output_context(); }
  void begin_forward(int step, GuidanceBranch branch) override { attention_.begin_forward(begun_ = step, branch); }
  void attend(int layer, const AttentionGeometry& geometry, ConstHeadsView q, ConstHeadsView k, ConstHeadsView v,
              HeadsView out, const OutputContext& context) override {
    attention_.attend(layer, geometry, q, k, v, out, context);
  }

 private:
  SelfAttention& attention_;
  int& begun_;
};

// As on a machine that gets other work to do: what the first steps took says nothing of the others.
TEST(RunTimes, WhatRecordingCostIsLeftOutOfTheRunInEveryStep) {
  const std::unique_ptr<Backend> backend = make_backend("cpu");
  for (const Measured measured : {Measured::kMaps, Measured::kLevels}) {
    const ProfileHeader header = small_header(measured);
    int step = -1, delays = 0;
    constexpr auto kDelay = std::chrono::milliseconds(10);
    const auto poll = [&] {
      if (step <= 0) return;
      ++delays;
      std::this_thread::sleep_for(kDelay);
    };
    double seconds = 0;
    const auto run = [&](int prompt, SelfAttention& attention) {
      const auto begin = std::chrono::steady_clock::now();
      Watched watched(attention, step);
      run_synthetic(header.geometry, header.num_steps(), header.num_layers, prompt, watched);
      step = -1;
      return seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    };
    const TestFolder own;
    const RecordedProfile recorded = record_profile(*backend, header, own.path(), run, poll);
    ASSERT_GE(delays, header.num_layers * header.geometry.heads);
    const double others = seconds - delays * std::chrono::duration<double>(kDelay).count();
    EXPECT_LE(recorded.profile.prompts[0].run_seconds, std::max(others, recorded.attention_seconds));
  }
}

TEST(RunTimes, TheShareOfAttentionIsTheMedianOfPrompts) {
  Profile profile;
  const auto share_of = [&](const std::vector<std::pair<double, double>>& times) {
    profile.prompts.clear();
    for (const auto& [attention, run] : times) {
      profile.prompts.emplace_back();
      profile.prompts.back().attention_seconds = attention;
      profile.prompts.back().run_seconds = run;
    }
    return measured_attention_share(profile);
  };
  EXPECT_EQ(share_of({}), std::nullopt);
  EXPECT_EQ(share_of({{1, 0}}), std::nullopt) << "not known";
  EXPECT_DOUBLE_EQ(*share_of({{2, 4}}), 0.5);
  EXPECT_DOUBLE_EQ(*share_of({{2, 4}, {3, 4}}), 0.625);
  // One prompt ran while the machine was starved: of all seconds together attention would have .46.
  EXPECT_NEAR(*share_of({{6.67, 10}, {24, 60}, {6.6, 10}, {0, 0}, {6.7, 10}}), 0.6635, 1e-3);
}

}  // namespace
}  // namespace calibatt
