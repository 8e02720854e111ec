// Level codes from the recorder to the plan, beside the full maps of the same runs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <set>

#include "backend/cpu/make_backend.h"
#include "base/error.h"
#include "calibrate/compile/compile.h"
#include "calibrate/compile/level_measurements.h"
#include "calibrate/profile/test_level_profile.h"
#include "calibrate/record/calibrator.h"
#include "calibrate/record/fake_device_backend.h"
#include "calibrate/record/level_recorder.h"
#include "calibrate/record/measure.h"
#include "calibrate/record/recording_attention.h"
#include "calibrate/record/synthetic_attention.h"
#include "io/test_folder.h"

namespace calibatt {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST_F(LevelProfile, VotedPlansAtTheLaddersLevelsAreThoseOfTheMaps) {
  const ProfileHeader header = levels_header();
  const Profile levels = record_levels(header, folder.path());
  for (const double rho : {0.5, 0.2, 1.0}) {
    for (const int i : {4, 8, 11, 14}) {
      CompileOptions options = constant_energy(Agreement::kVote, static_cast<double>(kCodeLevels[i]) / kLevelUnits);
      options.agreement_threshold = rho;
      const CompiledPlan from_maps = compile_plan(maps(), options), from_levels = compile_plan(levels, options);
      int64_t different = 0, all = 0;
      for (size_t head = 0; head < from_maps.parts.heads.size(); ++head) {
        const BlockMask a = mask_of(from_maps, head, header.geometry), b = mask_of(from_levels, head, header.geometry);
        for (int r = 0; r < a.num_query_blocks(); ++r) {
          for (int c = 0; c < a.num_key_blocks(); ++c) different += a.kept(r, c) != b.kept(r, c), ++all;
        }
      }
      // Maps hold halves: a block within 2⁻¹¹ of a level falls to either side.
      EXPECT_LT(static_cast<double>(different) / static_cast<double>(all), 1e-3) << "level " << i << ", ρ " << rho;
    }
  }
}

TEST_F(LevelProfile, BetweenTheLaddersLevelsDensitiesAgree) {
  const Profile levels = record_levels(levels_header(), folder.path());
  for (const Agreement agreement : {Agreement::kVote, Agreement::kMean}) {
    for (const double level : {0.6, 0.75, 0.8, 0.84, 0.87, 0.92, 0.97}) {
      const CompileOptions options = constant_energy(agreement, level);
      const double expected = compile_plan(maps(), options).summary.density;
      // A third of a block of a row's 45: where in its rung a block lies is known no better. (Rows of 591 blocks:
      // less.)
      EXPECT_NEAR(compile_plan(levels, options).summary.density, expected, 0.0075)
          << level << (agreement == Agreement::kVote ? " vote" : " mean");
    }
  }
}

TEST_F(LevelProfile, MeanPlansKeepNearlyTheEnergyOfTheFullMaps) {
  const ProfileHeader header = levels_header();
  const Profile levels = record_levels(header, folder.path());
  const int rows = header.geometry.num_query_blocks(), columns = header.geometry.num_key_blocks();
  for (const double level : {0.75, 0.84, 0.9}) {
    const CompiledPlan compiled = compile_plan(levels, constant_energy(Agreement::kMean, level));
    double kept = 0, all = 0;
    for (size_t head = 0; head < compiled.parts.heads.size(); ++head) {
      const BlockMask mask = mask_of(compiled, head, header.geometry);
      const auto energy = mean_energy(maps().prompts, head, rows * columns);
      for (int r = 0; r < rows; ++r) {
        for (int c = 0; c < columns; ++c) {
          all += energy[r * columns + c];
          if (mask.kept(r, c)) kept += energy[r * columns + c];
        }
      }
    }
    EXPECT_GT(kept / all, level - 0.004);
  }
}

TEST_F(LevelProfile, ADensityIsMetByThePlanItself) {
  const Profile levels = record_levels(levels_header({0, 2, 3}), folder.path());
  for (const Agreement agreement : {Agreement::kVote, Agreement::kMean}) {
    for (const int merge_gap : {0, 1}) {
      CompileOptions options = energy_options(agreement);
      options.schedule_k = 3;
      options.density = 0.45;
      options.merge_gap = merge_gap;
      const CompiledPlan compiled = compile_plan(levels, options);
      // One A for all heads moves many equal energies of these small heads at once.
      EXPECT_NEAR(Plan(compiled.parts).density(), 0.45, 0.025 * 0.45) << merge_gap;
      for (const HeadPlan& head : compiled.parts.heads) {
        if (!head.intervals) continue;
        const BlockMask mask = head.intervals->to_mask();
        for (int r = 0; r < mask.num_query_blocks(); ++r) EXPECT_TRUE(mask.kept(r, r)) << "the query block's own keys";
        EXPECT_EQ(*head.intervals, BlockIntervals::from_mask(mask, merge_gap));
      }
    }
  }
}

TEST_F(LevelProfile, StepsThatWereNotRecordedShareTheNearestNoiseLevel) {
  const ProfileHeader header = levels_header({0, 2});
  EXPECT_THAT(entry_of_steps(header), ElementsAre(0, 0, 1, 1));  // noise levels 1, .9, .5, .2
  const Profile levels = record_levels(header, folder.path());
  CompileOptions options = energy_options(Agreement::kMean);
  options.schedule_a = 0.5, options.schedule_c = 0.95, options.schedule_k = 4;
  const CompiledPlan compiled = compile_plan(levels, options);
  const Plan plan(compiled.parts);
  EXPECT_EQ(plan.num_steps(), 4);
  EXPECT_EQ(plan.num_entries(), 2);
  // Each entry keeps what the noisiest of its steps has to keep.
  EXPECT_NEAR(plan.info().energy_targets[1], 0.95, 1e-3);
  EXPECT_NEAR(plan.info().energy_targets[3], 0.5 + 0.45 * std::exp(-2.0), 1e-3);
  EXPECT_EQ(plan.info().provenance.num_prompts, kPrompts);
}

TEST_F(LevelProfile, NothingOnADeviceIsTouchedByTheHost) {
  for (const auto& [encodes_levels, output_errors] : {std::pair{false, false}, {true, false}, {true, true}}) {
    const TestFolder own_folder;
    ProfileHeader header = levels_header({0, 2});
    header.output_errors = output_errors;
    const Profile expected = record_levels(header, own_folder.path());
    FakeDeviceBackend device(encodes_levels);
    PromptProfile profile = PromptProfile::allocate(header, 0);
    LevelRecorder recorder(device, header, {}, profile);
    // q, k and v as a model has them: thirds of one tensor.
    const AttentionGeometry& g = header.geometry;
    const int64_t width = int64_t{g.heads} * g.head_dim, tokens = g.num_tokens();
    Tensor qkv(DType::kF32, {tokens, 3 * width});
    Tensor out = device.empty(DType::kF32, {tokens, width}), device_qkv = device.empty(DType::kF32, qkv.shape());
    for (int step = 0; step < kSteps; ++step) {
      recorder.begin_forward(step, GuidanceBranch::kConditional);
      EXPECT_EQ(recorder.wants_output_context(), output_errors && (step == 0 || step == 2));
      for (int layer = 0; layer < kLayers; ++layer) {
        const SyntheticAttention call(g, 0, step, layer);
        const Tensor* parts[] = {&call.q, &call.k, &call.v};
        for (int64_t token = 0; token < tokens; ++token) {
          for (int64_t part = 0; part < 3; ++part) {
            std::memcpy(qkv.f32() + (token * 3 + part) * width, parts[part]->f32() + token * width,
                        static_cast<size_t>(width) * sizeof(float));
          }
        }
        const Tensor uploaded = device.from_host(qkv);
        const auto view = [&](int64_t part) {
          const char* data = static_cast<const char*>(uploaded.raw()) + part * width * 4;
          return ConstHeadsView{data, DType::kF32, tokens, 3 * width, g.head_dim};
        };
        recorder.attend(layer, g, view(0), view(1), view(2), {out.raw(), DType::kF32, tokens, width, g.head_dim}, {});
      }
    }
    recorder.finish();
    ASSERT_EQ(profile.levels.size(), expected.prompts[0].levels.size());
    EXPECT_EQ(std::memcmp(profile.levels.raw(), expected.prompts[0].levels.raw(), profile.levels.size_bytes()), 0);
    // Energies or codes of recorded steps, and sums of both treatments of skipped blocks.
    EXPECT_EQ(device.copies_to_host, 2 * kLayers * (output_errors ? 3 : 1));
  }
}

TEST_F(LevelProfile, ADeviceThatCannotMeasureOutputErrorsSaysSoBeforeTheRun) {
  FakeDeviceBackend device(true);
  const RecordingBackend backend(device, device, nullptr);
  ProfileHeader header = levels_header();
  PromptProfile profile = PromptProfile::allocate(header, 0);
  header.output_errors = false;
  EXPECT_NO_THROW(LevelRecorder(backend, header, {}, profile)) << "codes are made by the host";
  header.output_errors = true;
  try {
    LevelRecorder(backend, header, {}, profile);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    EXPECT_THAT(error.what(),
                testing::AllOf(testing::HasSubstr("the backend fake"), testing::HasSubstr("--measure maps")));
  }
}

TEST_F(LevelProfile, OutputErrorsOnADeviceAreThoseOfTheHost) {
  ProfileHeader header = maps_header();
  header.output_errors = true;
  header.anchor_rows = {2};
  header.num_layers = 1;
  header.sigmas = {1.0};
  FakeDeviceBackend device;
  const auto cpu = make_backend("cpu");
  const AttentionGeometry& g = header.geometry;
  const SyntheticAttention call(g, 0, 0, 0);
  PromptProfile on_host = PromptProfile::allocate(header, 0), on_device = PromptProfile::allocate(header, 0);
  Tensor out(DType::kF32, call.q.shape());
  RecordingAttention host_recorder(*cpu, header, {}, on_host), device_recorder(device, header, {}, on_device);
  host_recorder.begin_forward(0, GuidanceBranch::kConditional);
  host_recorder.attend(0, g, call.view(call.q), call.view(call.k), call.view(call.v), call.output_view(out), {});
  const Tensor q = device.from_host(call.q), k = device.from_host(call.k), v = device.from_host(call.v);
  Tensor device_out = device.empty(DType::kF32, out.shape());
  device_recorder.begin_forward(0, GuidanceBranch::kConditional);
  device_recorder.attend(0, g, call.view(q), call.view(k), call.view(v), call.output_view(device_out), {});
  for (const auto field : {&PromptProfile::energy, &PromptProfile::harm, &PromptProfile::level_error,
                           &PromptProfile::copy_error, &PromptProfile::similarity}) {
    const Tensor &a = on_host.*field, &b = on_device.*field;
    EXPECT_EQ(std::memcmp(a.raw(), b.raw(), a.size_bytes()), 0);
  }
}

TEST_F(LevelProfile, NotANumberIsReportedByTheNextCallOrTheEnd) {
  const ProfileHeader header = levels_header();
  PromptProfile profile = PromptProfile::allocate(header, 0);
  const auto backend = make_backend("cpu");
  LevelRecorder recorder(*backend, header, {}, profile);
  SyntheticAttention call(header.geometry, 0, 0, 0);
  for (int64_t i = 0; i < call.q.size(); ++i) call.q.f32()[i] = std::numeric_limits<float>::quiet_NaN();
  Tensor out(DType::kF32, call.q.shape());
  recorder.begin_forward(0, GuidanceBranch::kConditional);
  recorder.attend(0, header.geometry, call.view(call.q), call.view(call.k), call.view(call.v), call.output_view(out),
                  {});
  try {
    recorder.finish();
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kNumeric);
    EXPECT_THAT(error.what(), HasSubstr("step 0, layer 0"));
  }
}

TEST_F(LevelProfile, AlteredCodesAreFoundWhenThePlanIsCompiled) {
  const ProfileHeader header = levels_header({0, 3});
  record_levels(header, folder.path());
  const std::string path = folder / "prompt_0002.safetensors";
  {
    std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
    file.seekg(0, std::ios::end);
    const auto middle = static_cast<std::streamoff>(file.tellg()) / 2;
    file.seekg(middle);
    const char altered = static_cast<char>(file.get() ^ 1);
    file.seekp(middle);
    file.put(altered);
  }
  const Profile profile = load_profile(folder.path());
  try {
    compile_plan(profile, energy_options(Agreement::kVote));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kFormat);
    EXPECT_THAT(error.what(), HasSubstr("prompt_0002"));
  }
}

TEST_F(LevelProfile, AWrittenPlanIsTheOneInMemory) {
  const Profile levels = record_levels(levels_header({0, 2}), folder.path());
  const TestFolder files;
  const auto bytes = [](const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  for (const bool from_maps : {false, true}) {
    for (const double share_steps_iou : {0.0, 0.5}) {
      CompileOptions options = energy_options(Agreement::kVote);
      options.density = 0.5;
      options.share_steps_iou = share_steps_iou;
      const Profile& profile = from_maps ? maps() : levels;
      const CompiledPlan compiled = compile_plan(profile, options);
      save_plan(Plan(compiled.parts), files / "expected");
      const CompileSummary written = compile_to_file(profile, options, files / "written");
      EXPECT_EQ(bytes(files / "written"), bytes(files / "expected"));
      EXPECT_EQ(written.density, compiled.summary.density);
      EXPECT_EQ(written.num_entries, compiled.summary.num_entries);
      EXPECT_EQ(written.predicted_speedup, compiled.summary.predicted_speedup);
      EXPECT_EQ(load_plan(files / "written")->density(), Plan(compiled.parts).density());
    }
  }
  CompileOptions options = energy_options(Agreement::kMean);
  options.density = 2;
  EXPECT_THROW(compile_to_file(levels, options, files / "none"), Error);
  EXPECT_THAT(files.list(), ElementsAre("expected", "written"));
}

TEST_F(LevelProfile, WhatItCannotServeIsRefused) {
  const Profile levels = record_levels(levels_header(), folder.path());
  CompileOptions options = energy_options(Agreement::kMean);
  options.budget = Budget::kError;
  EXPECT_THROW(compile_plan(levels, options), Error);
  options.ranking = Ranking::kEnergy;
  EXPECT_THROW(compile_plan(levels, options), Error) << "no errors were measured";
  options = energy_options(Agreement::kMean);
  options.repetition = Repetition::kSimilarity;
  EXPECT_THROW(compile_plan(levels, options), Error);
  // Maps and levels do not mix in one folder.
  const ProfileHeader other = maps_header();
  try {
    record_profile(*make_backend("cpu"), other, folder.path(), runner(other));
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kMismatch);
    EXPECT_THAT(error.what(), HasSubstr("measured = levels"));
  }
}

}  // namespace
}  // namespace calibatt
