#pragma once

// Profiles of a synthetic model, whose steps were seen, for tests of what is chosen for all steps together.

#include <gtest/gtest.h>

#include <utility>

#include "backend/cpu/make_backend.h"
#include "base/error.h"
#include "calibrate/compile/compile.h"
#include "calibrate/compile/synthetic_steps.h"
#include "calibrate/record/calibrator.h"
#include "calibrate/record/synthetic_attention.h"
#include "io/test_folder.h"

namespace calibatt::test {

inline constexpr int kSteps = 8, kLayers = 2, kHeads = 2;

enum class Source : uint8_t { kMaps, kEnergyCodes, kHarmCodes };

inline ProfileHeader header_of(Source source) {
  ProfileHeader header;
  header.geometry.frames = 6, header.geometry.height = 8, header.geometry.width = 8;
  header.geometry.heads = kHeads, header.geometry.head_dim = 16;
  header.geometry.block_q = header.geometry.block_k = 16;
  header.num_layers = kLayers;
  for (int step = 0; step < kSteps; ++step) header.sigmas.push_back(1 - 0.9 * step / kSteps);
  header.anchor_rows = {2};
  header.provenance.num_prompts = 3;
  if (source == Source::kMaps) return header;
  header.measured = Measured::kLevels;
  header.code_ranking = source == Source::kHarmCodes ? Ranking::kHarm : Ranking::kEnergy;
  header.recorded_steps = {0, 2, 4, 5, 6, 7};
  if (source == Source::kEnergyCodes) header.anchor_rows.clear();
  return header;
}

/// Of a synthetic model, whose steps were seen.
inline const Profile& profile_of(Source source) {
  const auto record = [](Source kind, const TestFolder& folder) {
    const ProfileHeader header = header_of(kind);
    const auto run = [&](int prompt, SelfAttention& attention) {
      run_synthetic(header.geometry, kSteps, kLayers, prompt, attention);
      return 0.0;
    };
    return record_profile(*make_backend("cpu"), header, folder.path(), run, {}, {},
                          [&](PromptProfile& profile) { test::add_synthetic_steps(header, profile); })
        .profile;
  };
  static const TestFolder maps_folder, energy_folder, harm_folder;
  static const Profile maps = record(Source::kMaps, maps_folder),
                       by_energy = record(Source::kEnergyCodes, energy_folder),
                       by_harm = record(Source::kHarmCodes, harm_folder);
  return source == Source::kMaps ? maps : source == Source::kEnergyCodes ? by_energy : by_harm;
}

class JointChoices : public ::testing::TestWithParam<Source> {
 protected:
  JointChoices() {
    options.anchor_rows_per_frame = 2;
    options.attention_share = 0.7;
    if (GetParam() == Source::kEnergyCodes) {
      options.repetition = Repetition::kOff;
      options.ranking = Ranking::kEnergy;
    }
    StepGrowth growth;
    growth.factors = {{2, 80}, {4, 40}};
    growth.mask_changes = {{1, 4}, {6, 1}};
    growth.latents_error = 0.05;
    growth.psnr_db = 30;
    options.growth = growth;
  }
  const Profile& profile() const { return profile_of(GetParam()); }
  CompiledPlan at_speedup(double speedup) {
    options.speedup = speedup;
    return compile_plan(profile(), options);
  }
  std::string refusal() const {
    try {
      compile_plan(profile(), options);
      return "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      return error.what();
    }
  }
  CompileOptions options;
};

}  // namespace calibatt::test
