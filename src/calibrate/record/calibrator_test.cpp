#include "calibrate/record/calibrator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>

#include "backend/cpu/make_backend.h"
#include "base/error.h"
#include "calibrate/profile/profile_header.h"
#include "calibrate/record/recording_attention.h"
#include "calibrate/record/synthetic_attention.h"
#include "io/safetensors.h"
#include "io/test_folder.h"

namespace calibatt {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int kSteps = 2, kLayers = 2, kPrompts = 3;

ProfileHeader small_header() {
  ProfileHeader header;
  header.geometry.frames = 3, header.geometry.height = 5, header.geometry.width = 6;
  header.geometry.heads = 3, header.geometry.head_dim = 16;
  header.geometry.block_q = header.geometry.block_k = 16;
  header.geometry.order = TokenOrder::tiles(2, 2, 2);
  header.num_layers = kLayers;
  header.sigmas = {1.0, 0.4};
  header.anchor_rows = {1, 2};
  header.provenance.transformers[0].fingerprint = "f00d";
  header.provenance.prompts_hash = "beef";
  header.precision = "f32";
  header.provenance.num_prompts = kPrompts;
  header.provenance.guidance_scale = 5.0;
  header.provenance.settings["seed"] = "3";
  return header;
}

RunPrompt runner(const ProfileHeader& header, std::vector<int>* ran = nullptr) {
  return [&header, ran](int prompt, SelfAttention& attention) {
    if (ran != nullptr) ran->push_back(prompt);
    run_synthetic(header.geometry, header.num_steps(), header.num_layers, prompt, attention);
    return 0.0;
  };
}

std::string bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::map<std::string, std::string> contents(const TestFolder& folder) {
  std::map<std::string, std::string> files;
  for (const std::string& name : folder.list()) files[name] = bytes_of(folder / name);
  return files;
}

// All but the seconds that the run took.
void expect_same_measurements(const PromptProfile& a, const PromptProfile& b) {
  EXPECT_EQ(a.prompt, b.prompt);
  EXPECT_EQ(a.own_ranking, b.own_ranking);
  EXPECT_EQ(a.ranked_from, b.ranked_from);
  for (const auto field : {&PromptProfile::energy, &PromptProfile::harm, &PromptProfile::harm_scale,
                           &PromptProfile::level_error, &PromptProfile::copy_error, &PromptProfile::similarity,
                           &PromptProfile::levels, &PromptProfile::site_checksums}) {
    const Tensor &of_a = a.*field, &of_b = b.*field;
    ASSERT_EQ(of_a.shape(), of_b.shape());
    EXPECT_TRUE(of_a.empty() || std::memcmp(of_a.raw(), of_b.raw(), of_a.size_bytes()) == 0);
  }
}

class Calibration : public ::testing::Test {
 protected:
  std::unique_ptr<Backend> backend = make_backend("cpu");
  ProfileHeader header = small_header();
  TestFolder folder;
};

TEST_F(Calibration, RecordsEveryPromptOnceAndReadsItBack) {
  std::vector<int> ran;
  const RecordedProfile recorded = record_profile(*backend, header, folder.path(), runner(header, &ran));
  EXPECT_EQ(ran, (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(recorded.prompts_recorded, 3);
  EXPECT_TRUE(recorded.profile.prompts[0].own_ranking);
  EXPECT_FALSE(recorded.profile.prompts[2].own_ranking);
  const Profile loaded = load_profile(folder.path());
  EXPECT_EQ(loaded.header.geometry, header.geometry);
  EXPECT_EQ(loaded.header.sigmas, header.sigmas);
  EXPECT_EQ(loaded.header.anchor_rows, header.anchor_rows);
  EXPECT_EQ(loaded.header.provenance, header.provenance);
  ASSERT_EQ(loaded.prompts.size(), 3u);
  for (size_t p = 0; p < 3; ++p) {
    const auto same = [](const Tensor& a, const Tensor& b) {
      return a.shape() == b.shape() && std::memcmp(a.raw(), b.raw(), a.size_bytes()) == 0;
    };
    EXPECT_TRUE(same(loaded.prompts[p].energy, recorded.profile.prompts[p].energy));
    EXPECT_TRUE(same(loaded.prompts[p].harm, recorded.profile.prompts[p].harm));
    EXPECT_TRUE(same(loaded.prompts[p].level_error, recorded.profile.prompts[p].level_error));
    EXPECT_TRUE(same(loaded.prompts[p].copy_error, recorded.profile.prompts[p].copy_error));
    EXPECT_EQ(loaded.prompts[p].own_ranking, p == 0);
  }
}

/// Hands every call on twice, for each branch in turn, as a model does that has both in one batch.
class TakingTurns : public SelfAttention {
 public:
  explicit TakingTurns(SelfAttention& attention) : attention_(attention) {}
  TokenOrder token_order() const override { return attention_.token_order(); }
  bool wants_output_context() const override { return true; }
  void attend(int layer, const AttentionGeometry& geometry, ConstHeadsView q, ConstHeadsView k, ConstHeadsView v,
              HeadsView out, const OutputContext& context) override {
    if (branch_ == GuidanceBranch::kUnconditional) return;
    for (const GuidanceBranch branch : {GuidanceBranch::kUnconditional, GuidanceBranch::kConditional}) {
      attention_.begin_forward(step_, branch);
      attention_.attend(layer, geometry, q, k, v, out, context);
    }
  }

 private:
  SelfAttention& attention_;
};

TEST_F(Calibration, BranchesMayTakeTurnsInEachLayer) {
  for (const Measured measured : {Measured::kMaps, Measured::kLevels}) {
    header.measured = measured;
    if (measured == Measured::kLevels) header.recorded_steps = {0, 1};
    const std::string name = measured == Measured::kMaps ? "maps" : "levels";
    const RecordedProfile expected = record_profile(*backend, header, folder / name, runner(header));
    const auto in_turns = [&](int prompt, SelfAttention& attention) {
      TakingTurns turns(attention);
      return runner(header)(prompt, turns);
    };
    const RecordedProfile found = record_profile(*backend, header, folder / (name + "_turns"), in_turns);
    for (size_t i = 0; i < expected.profile.prompts.size(); ++i) {
      expect_same_measurements(expected.profile.prompts[i], found.profile.prompts[i]);
    }
    EXPECT_GT(found.attention_seconds, 0) << "calls that take turns are measured, too";
  }
}

TEST_F(Calibration, EnergiesAreDistributionsAndErrorsFallWithTheLevel) {
  const RecordedProfile recorded = record_profile(*backend, header, folder.path(), runner(header));
  const int rows = header.geometry.num_query_blocks(), columns = header.geometry.num_key_blocks();
  const size_t levels = kEnergyLevels.size();
  for (const PromptProfile& prompt : recorded.profile.prompts) {
    for (size_t head = 0; head < kSteps * kLayers * 3; ++head) {
      const auto energy = energy_of(prompt, head, rows * columns);
      for (int r = 0; r < rows; ++r) {
        float sum = 0;
        for (int c = 0; c < columns; ++c) sum += energy[r * columns + c];
        EXPECT_NEAR(sum, 1, 5e-3);
      }
      for (size_t curve = 0; curve < 4; ++curve) {
        const float* error = prompt.level_error.f32() + (head * 4 + curve) * levels;
        EXPECT_GT(error[0], error[levels / 2]);
        EXPECT_EQ(error[levels - 1], 0.0f);
      }
    }
  }
}

TEST_F(Calibration, GoesOnWhereItWasKilledAndEndsWithTheSameFiles) {
  TestFolder whole;
  record_profile(*backend, header, whole.path(), runner(header));
  // "Killed" in the last layer of the second prompt: nothing of it may count.
  struct Killed {};
  EXPECT_THROW(record_profile(*backend, header, folder.path(),
                              [&](int prompt, SelfAttention& attention) {
                                const double seconds = runner(header)(prompt, attention);
                                if (prompt == 1) throw Killed();
                                return seconds;
                              }),
               Killed);
  EXPECT_THAT(folder.list(), ::testing::ElementsAre("prompt_0000.safetensors"));
  std::vector<int> ran;
  const RecordedProfile resumed = record_profile(*backend, header, folder.path(), runner(header, &ran));
  EXPECT_EQ(ran, (std::vector<int>{1, 2}));
  EXPECT_EQ(resumed.prompts_resumed, 1);
  ASSERT_EQ(folder.list(), whole.list());
  for (int prompt = 0; prompt < kPrompts; ++prompt) {
    expect_same_measurements(*load_prompt(folder.path(), header, prompt), *load_prompt(whole.path(), header, prompt));
  }
}

TEST_F(Calibration, CanBeEndedBetweenItsPartsAndLeavesOnlyWholePrompts) {
  struct Stop {};
  int polls = 0;
  record_profile(*backend, header, folder.path(), runner(header), [&] { ++polls; });
  const std::vector<std::string> whole = folder.list();
  // Before every head that is measured, every prompt, and every part of a file.
  EXPECT_GT(polls, kPrompts * kSteps * kLayers * header.geometry.heads);
  for (int at = 0; at < polls; at += 5) {
    TestFolder ended;
    int count = 0;
    const auto stop = [&] {
      if (count++ == at) throw Stop();
    };
    EXPECT_THROW(record_profile(*backend, header, ended.path(), runner(header), stop), Stop);
    const std::vector<std::string> left = ended.list();
    EXPECT_LT(left.size(), whole.size());
    EXPECT_TRUE(std::equal(left.begin(), left.end(), whole.begin())) << "a part of a file was left";
  }
}

TEST_F(Calibration, ASavedProfileOfSomethingElseIsRefusedNamingBoth) {
  record_profile(*backend, header, folder.path(), runner(header));
  const auto expect_refused = [&](const ProfileHeader& other, const std::string& field, const std::string& saved,
                                  const std::string& wanted) {
    try {
      record_profile(*backend, other, folder.path(), [](int, SelfAttention&) {
        ADD_FAILURE() << "nothing may run";
        return 0.0;
      });
      FAIL() << field;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kMismatch);
      EXPECT_THAT(error.what(), AllOf(HasSubstr(field), HasSubstr(saved), HasSubstr(wanted)));
    }
  };
  ProfileHeader other = header;
  other.provenance.transformers[0].fingerprint = "cafe";
  expect_refused(other, "(fingerprint ", "f00d", "cafe");
  other = header;
  other.geometry.block_k = 32;
  expect_refused(other, "", "--block-k 16,", "--block-k 32");
  other = header;
  other.geometry.order = TokenOrder::raster();
  expect_refused(other, "", "--token-order tiles:2x2x2,", "--token-order raster");
  other = header;
  other.precision = "bf16";
  expect_refused(other, "precision", "f32", "bf16");
  other = header;
  other.sigmas[1] = 0.41;
  expect_refused(other, "--sigmas", "0.4", "0.41");
  other.sigmas = {1, 0.9, 0.8, 0.7, 0.6};  // as other steps and another shift make them
  other.provenance.flow_shift = 7;
  const std::string steps = "--steps " + std::to_string(header.num_steps());
  expect_refused(other, "",
                 "measured with " + steps + " --flow-shift " + number_text(header.provenance.flow_shift) + ",",
                 "has --steps 5 --flow-shift 7;");
}

TEST_F(Calibration, WhatHoldsOfAProfileIsKeptPerPrompt) {
  header.prompt_identities = {"a cat", "a dog", "a cow"};
  const auto measured = [&](const ProfileHeader& each) {
    std::vector<int> ran;
    const RecordedProfile recorded = record_profile(*backend, each, folder.path(), runner(each, &ran));
    for (size_t i = 0; i < recorded.profile.prompts.size(); ++i) {
      EXPECT_EQ(recorded.profile.prompts[i].prompt, static_cast<int>(i));
    }
    return ran;
  };
  EXPECT_EQ(measured(header), (std::vector<int>{0, 1, 2}));
  const std::map<std::string, std::string> before = contents(folder);

  ProfileHeader more = header;  // in another order, with one more, in a folder of another name
  more.prompt_identities = {"a cow", "a fox", "a cat", "a dog"};
  more.provenance.num_prompts = 4;
  more.provenance.prompts_hash = "another";
  more.provenance.transformers[0].name = "another folder";
  EXPECT_EQ(measured(more), (std::vector<int>{1}));
  EXPECT_EQ(count_other_prompts(folder.path(), more), 0);
  EXPECT_EQ(count_other_prompts(folder.path(), header), 1);
  EXPECT_EQ(measured(more), std::vector<int>{}) << "and again";

  ProfileHeader others = header;  // another negative prompt: another identity for all
  others.prompt_identities = {"a cat, no mice", "a dog, no mice", "a cow, no mice"};
  others.provenance.prompts_hash = "a third";
  EXPECT_EQ(count_other_prompts(folder.path(), others), 4);
  EXPECT_EQ(measured(others), (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(measured(header), std::vector<int>{}) << "the first ones are still there";
  const std::map<std::string, std::string> after = contents(folder);
  for (const auto& [name, content] : before) EXPECT_EQ(after.at(name), content) << name;
}

TEST_F(Calibration, AnotherSeedMeasuresAnewBesideWhatIsThere) {
  record_profile(*backend, header, folder.path(), runner(header));
  ProfileHeader other = header;
  other.provenance.settings["seed"] = "4";
  std::vector<int> ran;
  record_profile(*backend, other, folder.path(), runner(other, &ran));
  EXPECT_EQ(ran, (std::vector<int>{0, 1, 2}));
  ran.clear();
  record_profile(*backend, header, folder.path(), runner(header, &ran));
  EXPECT_THAT(ran, ::testing::IsEmpty());
}

TEST_F(Calibration, WeightsAreComparedInTheSchemeThatTheProfileHas) {
  record_profile(*backend, header, folder.path(), runner(header));  // fingerprint f00d, without a scheme
  ProfileHeader now = header;
  now.provenance.transformers[0].fingerprint = "values1:beef";
  std::string stored = "f00d";
  now.fingerprint = [&](int, const std::string& like) {
    return like == "f00d" ? stored : "asked for the wrong scheme";
  };
  EXPECT_EQ(record_profile(*backend, now, folder.path(), runner(now)).prompts_resumed, 3);
  stored = "cafe";
  EXPECT_THROW(record_profile(*backend, now, folder.path(), runner(now)), Error);
}

TEST_F(Calibration, ADamagedProfileIsRefused) {
  record_profile(*backend, header, folder.path(), runner(header));
  const std::string path = folder / "prompt_0001.safetensors";
  const std::string good = bytes_of(path);
  const auto expect_refused = [&](std::string bytes) {
    std::ofstream(path, std::ios::binary) << bytes;
    try {
      load_profile(folder.path());
      FAIL();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kFormat);
      EXPECT_THAT(error.what(), AllOf(HasSubstr("prompt_0001"), HasSubstr("delete that file and run calibrate again"),
                                      Not(HasSubstr("copy it anew"))));
    }
  };
  expect_refused(good.substr(0, good.size() - 1));
  std::string altered = good;
  altered[good.size() - 5] ^= 1;
  expect_refused(altered);
  expect_refused("");
  for (const size_t bytes : {size_t{4}, size_t{100}, good.size() / 2}) expect_refused(good.substr(0, bytes));
  std::string times = good;
  const size_t at = times.find("\"run_seconds\":\"") + 15;
  times.replace(at, 3, "nan");
  expect_refused(times);
}

TEST_F(Calibration, FilesOfVersionOneAreRead) {
  record_profile(*backend, header, folder.path(), runner(header));
  const PromptProfile written = *load_prompt(folder.path(), header, 0);
  EXPECT_GT(written.attention_seconds, 0);
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> metadata;
  {
    const Safetensors file = Safetensors::open(prompt_file(folder.path(), 0));
    for (const auto& [name, entry] : file.entries()) tensors[name] = file.get(name).clone();
    metadata = file.metadata();
  }
  metadata["version"] = "1";  // which had no times and no ranges
  for (const char* field : {"ranked_from", "attention_seconds", "run_seconds", "prompt_identity", "precision"}) {
    EXPECT_EQ(metadata.erase(field), 1u) << field;
  }
  write_safetensors(prompt_file(folder.path(), 0), tensors, metadata);
  const PromptProfile read = *load_prompt(folder.path(), header, 0);
  expect_same_measurements(read, written);
  EXPECT_EQ(read.attention_seconds, 0);
  metadata["version"] = "4";
  write_safetensors(prompt_file(folder.path(), 0), tensors, metadata);
  EXPECT_THROW(load_prompt(folder.path(), header, 0), Error);
}

TEST_F(Calibration, AnEmptyFolderHasNoProfile) {
  try {
    load_profile(folder.path());
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kNotFound);
  }
}

TEST_F(Calibration, ARunThatSkipsALayerIsNoProfile) {
  EXPECT_THROW(record_profile(*backend, header, folder.path(),
                              [&](int prompt, SelfAttention& attention) {
                                run_synthetic(header.geometry, kSteps, kLayers - 1, prompt, attention);
                                return 0.0;
                              }),
               Error);
  EXPECT_TRUE(folder.list().empty());
}

TEST_F(Calibration, AnotherGeometryThanAnnouncedIsRefused) {
  AttentionGeometry other = header.geometry;
  other.height = 4;
  try {
    record_profile(*backend, header, folder.path(), [&](int prompt, SelfAttention& attention) {
      run_synthetic(other, kSteps, kLayers, prompt, attention);
      return 0.0;
    });
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kMismatch);
  }
}

TEST_F(Calibration, NotANumberIsReported) {
  PromptProfile profile = PromptProfile::allocate(header, 0);
  RecordingAttention attention(*backend, header, {}, profile);
  SyntheticAttention call(header.geometry, 0, 0, 0);
  for (int64_t i = 0; i < call.q.size(); ++i) call.q.f32()[i] = std::numeric_limits<float>::quiet_NaN();
  Tensor out(DType::kF32, call.q.shape());
  attention.begin_forward(0, GuidanceBranch::kConditional);
  try {
    attention.attend(0, header.geometry, call.view(call.q), call.view(call.k), call.view(call.v), call.output_view(out),
                     {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kNumeric);
  }
}

TEST_F(Calibration, TheRecordedRunIsTheDenseRun) {
  PromptProfile profile = PromptProfile::allocate(header, 0);
  RecordingAttention attention(*backend, header, {}, profile);
  SyntheticAttention call(header.geometry, 0, 0, 0);
  Tensor recorded(DType::kF32, call.q.shape()), unconditional(DType::kF32, call.q.shape());
  attention.begin_forward(0, GuidanceBranch::kConditional);
  EXPECT_TRUE(attention.wants_output_context());
  attention.attend(1, header.geometry, call.view(call.q), call.view(call.k), call.view(call.v),
                   call.output_view(recorded), {});
  attention.begin_forward(0, GuidanceBranch::kUnconditional);
  EXPECT_FALSE(attention.wants_output_context());
  attention.attend(1, header.geometry, call.view(call.q), call.view(call.k), call.view(call.v),
                   call.output_view(unconditional), {});
  for (int64_t i = 0; i < recorded.size(); ++i) ASSERT_NEAR(recorded.f32()[i], unconditional.f32()[i], 1e-5);
}

}  // namespace
}  // namespace calibatt
