// One small model's runs, recorded as level codes and, beside them, as whole maps.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "backend/cpu/make_backend.h"
#include "calibrate/compile/compile.h"
#include "calibrate/record/calibrator.h"
#include "calibrate/record/synthetic_attention.h"
#include "io/test_folder.h"

namespace calibatt {

inline constexpr int kSteps = 4, kLayers = 2, kPrompts = 5;

inline ProfileHeader maps_header() {
  ProfileHeader header;
  header.geometry.frames = 6, header.geometry.height = 12, header.geometry.width = 10;
  header.geometry.heads = 3, header.geometry.head_dim = 16;
  header.geometry.block_q = header.geometry.block_k = 16;  // 720 tokens, 45 blocks: an odd number
  header.num_layers = kLayers;
  header.sigmas = {1.0, 0.9, 0.5, 0.2};
  header.output_errors = false;
  header.anchor_rows.clear();
  header.provenance.num_prompts = kPrompts;
  return header;
}

inline ProfileHeader levels_header(std::vector<int> steps = {0, 1, 2, 3}) {
  ProfileHeader header = maps_header();
  header.measured = Measured::kLevels;
  header.recorded_steps = std::move(steps);
  return header;
}

inline RunPrompt runner(const ProfileHeader& header) {
  return [&header](int prompt, SelfAttention& attention) {
    run_synthetic(header.geometry, header.num_steps(), header.num_layers, prompt, attention);
    return 0.0;
  };
}

inline const Profile& maps() {
  static const Profile profile = [] {
    static const ProfileHeader header = maps_header();
    static const TestFolder folder;
    return record_profile(*make_backend("cpu"), header, folder.path(), runner(header)).profile;
  }();
  return profile;
}

inline Profile record_levels(const ProfileHeader& header, const std::string& folder) {
  return record_profile(*make_backend("cpu"), header, folder, runner(header)).profile;
}

inline CompileOptions energy_options(Agreement agreement) {
  CompileOptions options;
  options.budget = Budget::kEnergy;
  options.repetition = Repetition::kOff;
  options.agreement = agreement;
  options.schedule_k = 0;
  return options;
}

inline CompileOptions constant_energy(Agreement agreement, double level) {
  CompileOptions options = energy_options(agreement);
  options.schedule_a = options.schedule_c = level;
  return options;
}

inline BlockMask mask_of(const CompiledPlan& compiled, size_t head, const AttentionGeometry& g) {
  const HeadPlan& plan = compiled.parts.heads[head];
  return plan.intervals ? plan.intervals->to_mask() : BlockMask(g.num_query_blocks(), g.num_key_blocks(), true);
}

class LevelProfile : public ::testing::Test {
 protected:
  TestFolder folder;
};

}  // namespace calibatt
