// What a profile says of its runs' steps, beside attention: tables of each prompt, and how errors grow.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>

#include "backend/cpu/make_backend.h"
#include "base/error.h"
#include "calibrate/compile/synthetic_steps.h"
#include "calibrate/profile/growth_part.h"
#include "calibrate/profile/held_out_latents.h"
#include "calibrate/profile/profile.h"
#include "calibrate/profile/step_growth.h"
#include "calibrate/record/calibrator.h"
#include "calibrate/record/synthetic_attention.h"
#include "io/atomic_file.h"
#include "io/safetensors.h"
#include "io/test_folder.h"

namespace calibatt {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

class StepTables : public ::testing::Test {
 protected:
  StepTables() {
    header.geometry.frames = 2, header.geometry.height = 6, header.geometry.width = 6;
    header.geometry.heads = 2, header.geometry.head_dim = 16;
    header.geometry.block_q = header.geometry.block_k = 16;
    header.num_layers = 1;
    header.sigmas = {1.0, 0.6, 0.3, 0.1};
    header.anchor_rows = {2};
    header.provenance.num_prompts = 1;
    growth.factors = {{1, 3.25}, {2, 1.5}};
    growth.mask_changes = {{0, 4.5}, {2, 0.125}};
    growth.latents_error = 0.0625;
    growth.psnr_db = 31.5;
  }
  Profile record(bool with_steps) {
    const auto run = [this](int prompt, SelfAttention& attention) {
      run_synthetic(header.geometry, header.num_steps(), header.num_layers, prompt, attention);
      return 0.0;
    };
    const auto complete = [&](PromptProfile& profile) {
      if (with_steps) test::add_synthetic_steps(header, profile);
    };
    return record_profile(*make_backend("cpu"), header, folder.path(), run, {}, {}, complete).profile;
  }
  template <class Act>
  static std::string message(ErrorKind kind, const Act& act) {
    try {
      act();
      return "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind);
      return error.what();
    }
  }
  /// As step_growth.json was before it had one.
  static std::string without_checksum(std::string text) {
    const size_t at = text.find("\"checksum\"");
    return text.erase(at, text.find('\n', at) - at);
  }
  ProfileHeader header;
  StepGrowth growth;
  TestFolder folder;
};

TEST_F(StepTables, ComeBackFromTheFile) {
  const Profile made = record(true);
  const Profile read = load_profile(folder.path());
  for (const auto field : {&PromptProfile::step_products, &PromptProfile::solver_weights}) {
    const Tensor &a = made.prompts[0].*field, &b = read.prompts[0].*field;
    ASSERT_EQ(a.shape(), b.shape());
    EXPECT_TRUE(std::equal(a.data<double>(), a.data<double>() + a.size(), b.data<double>()));
  }
}

TEST_F(StepTables, MayBeAbsent) {
  record(false);
  EXPECT_TRUE(load_profile(folder.path()).prompts[0].step_products.empty());
}

TEST_F(StepTables, ThatAreAlteredAreRefusedAndTheRestIsAsBefore) {
  record(true);
  const std::string path = prompt_file(folder.path(), 0);
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> metadata;
  {
    const Safetensors file = Safetensors::open(path);
    metadata = file.metadata();
    for (const auto& [name, entry] : file.entries()) tensors[name] = file.get(name).clone();
  }
  const auto refusal = [&](auto&& change) {
    auto changed = tensors;
    for (auto& [name, tensor] : changed) tensor = tensor.clone();
    auto texts = metadata;
    change(changed, texts);
    write_safetensors(path, changed, texts);
    return message(ErrorKind::kFormat, [&] { load_profile(folder.path()); });
  };
  EXPECT_EQ(refusal([](auto&, auto&) {}), "accepted");
  EXPECT_THAT(refusal([](auto& t, auto&) { t["step_products"].template data<double>()[3] += 1; }),
              AllOf(HasSubstr("step_checksum"), HasSubstr("altered")));
  EXPECT_THAT(refusal([](auto& t, auto&) { t["solver_weights"].template data<double>()[3] = NAN; }),
              HasSubstr("cannot be"));
  EXPECT_THAT(refusal([](auto& t, auto&) { t.erase("step_products"); }), HasSubstr("step_products"));
  // A program from before reads the parts that it knows: their checksum does not know the tables.
  EXPECT_EQ(refusal([](auto& t, auto& m) {
              t.erase("step_products");
              t.erase("solver_weights");
              m.erase("step_checksum");
            }),
            "accepted");
}

TEST_F(StepTables, GrowthComesBackForTheSameRunAlone) {
  EXPECT_FALSE(load_growth(folder.path(), header).has_value());
  save_growth(folder.path(), header, growth);
  EXPECT_EQ(load_growth(folder.path(), header), growth);
  header.provenance.num_prompts = 7;
  EXPECT_EQ(load_growth(folder.path(), header), growth) << "other prompts are the same run";
  header.sigmas[1] = 0.5;
  EXPECT_THAT(message(ErrorKind::kMismatch, [&] { load_growth(folder.path(), header); }), HasSubstr("--sigmas"));
}

TEST_F(StepTables, WhatEightBitsDoComesBackToo) {
  const EightBitParts both{.attention = true, .layers = true};
  EXPECT_TRUE(growth.knows({}, "fp8"));
  EXPECT_FALSE(growth.knows({.layers = true}, "fp8"));
  growth.layer_changes = {{0, 0.0078125}, {2, 0.03125}};
  growth.layers = "fp8";
  EXPECT_TRUE(growth.knows({.layers = true}, "fp8"));
  EXPECT_FALSE(growth.knows({.layers = true}, "fp8, but for ffn")) << "of other layers";
  EXPECT_FALSE(growth.knows(both, "fp8"));
  growth.attention_changes = {{1, 0.001953125}};
  EXPECT_TRUE(growth.knows(both, "fp8"));
  save_growth(folder.path(), header, growth);
  EXPECT_EQ(load_growth(folder.path(), header), growth);
  const std::string path = folder / "step_growth.json";
  const std::string sound = without_checksum(read_text_file(path));
  EXPECT_THAT(sound, HasSubstr("\"version\": 2")) << "programs from before read it, and pass over the two lists";
  std::string text = sound;
  std::ofstream(path) << text.replace(text.find("0.03125"), 7, "-1");
  EXPECT_THAT(message(ErrorKind::kFormat, [&] { load_growth(folder.path(), header); }), HasSubstr("layer_changes[1]"));
}

TEST_F(StepTables, WhatOtherKernelsDidIsNotKnownOfThePresentOnes) {
  growth.layer_changes = growth.attention_changes = {{0, 0.0078125}};
  growth.layers = "fp8";
  save_growth(folder.path(), header, growth);
  const std::string path = folder / "step_growth.json", sound = without_checksum(read_text_file(path));
  const auto read_with = [&](const std::string& part, const std::string& arithmetic) {
    std::string text = sound;
    const size_t at = text.find("\"" + part + "_arithmetic\""), end = text.find(',', at);
    text.replace(at, end - at, arithmetic);
    std::ofstream(path) << text;
    return load_growth(folder.path(), header).value();
  };
  const EightBitParts layers{.layers = true}, attention{.attention = true};
  for (const std::string other : {"99", "0"}) {
    StepGrowth read = read_with("layer", "\"layer_arithmetic\": " + other);
    EXPECT_FALSE(read.knows(layers, "fp8"));
    EXPECT_TRUE(read.knows(attention, "fp8")) << "each part has its own";
    read = read_with("attention", "\"attention_arithmetic\": " + other);
    EXPECT_FALSE(read.knows(attention, "fp8"));
    EXPECT_TRUE(read.knows(layers, "fp8"));
  }
  // Files from before do not say; kernels of attention have changed since.
  EXPECT_EQ(read_with("attention", "\"another\": 1").attention_arithmetic, 1);
  EXPECT_EQ(read_with("layer", "\"another\": 1").layer_arithmetic, 1);
}

TEST_F(StepTables, GrowthOfAnEarlierVersionIsMeasuredAnew) {
  save_growth(folder.path(), header, growth);
  const std::string path = folder / "step_growth.json";
  std::string text = read_text_file(path);
  text.replace(text.find("\"version\": 2"), 12, "\"version\": 1");
  std::ofstream(path) << without_checksum(text);
  EXPECT_FALSE(load_growth(folder.path(), header).has_value());
}

TEST_F(StepTables, GrowthOfTwoOfFewStepsIsMeasuredAnewAndOfManyIsKept) {
  header.sigmas = {1.0, 0.9, 0.8, 0.6, 0.3, 0.1};
  EXPECT_THAT(steps_of_growth(header), ElementsAre(1, 2, 3, 4));
  growth.factors = {{2, 6}, {4, 2}};  // as versions before 30 November 2026 did
  save_growth(folder.path(), header, growth);
  EXPECT_FALSE(load_growth(folder.path(), header).has_value());
  EXPECT_EQ(read_growth(folder.path(), header), growth) << "what 8 bits do is kept";
  growth.factors = {{1, 8}, {2, 6}, {3, 4}, {4, 2}};
  save_growth(folder.path(), header, growth);
  EXPECT_EQ(load_growth(folder.path(), header), growth);

  header.step_transformer = {0, 0, 0, 1, 1, 1};
  EXPECT_THAT(steps_of_growth(header), ElementsAre(1, 2, 4)) << "none behind a transformer that takes over";

  header.step_transformer.clear();
  header.sigmas.clear();
  for (int step = 0; step < 20; ++step) header.sigmas.push_back(1 - 0.05 * step);
  EXPECT_THAT(steps_of_growth(header), ElementsAre(8, 14));
  growth.factors = {{6, 6}, {11, 2}};
  save_growth(folder.path(), header, growth);
  EXPECT_EQ(load_growth(folder.path(), header), growth);
}

TEST_F(StepTables, GrowthThatCannotBeIsRefused) {
  growth.layer_changes = growth.attention_changes = {{0, 0.0078125}};
  growth.layers = "fp8";
  save_growth(folder.path(), header, growth);
  const std::string path = folder / "step_growth.json";
  std::string sound = read_text_file(path);
  const auto refusal = [&](const std::string& from, const std::string& to) {
    std::string text = sound;
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    std::ofstream(path) << text.replace(at, from.size(), to);
    return message(ErrorKind::kFormat, [&] { load_growth(folder.path(), header); });
  };
  EXPECT_THAT(refusal("31.5", "30.5"), AllOf(HasSubstr("altered or damaged"), HasSubstr("delete that file")));
  EXPECT_THAT(refusal("\"run\"", "\"ruin\""), HasSubstr("altered or damaged")) << "all of it is looked at";
  EXPECT_THAT(refusal("\"checksum\": \"", "\"checksum\": \"0"), HasSubstr("altered or damaged"));

  // As before there were checksums.
  sound = without_checksum(sound);
  EXPECT_EQ(refusal("31.5", "30.5"), "accepted");
  for (const auto& [from, to] : {std::pair{"3.25", "-1"},
                                 {"\"step\": 2", "\"step\": 1"},
                                 {"3.25", "1e13"},
                                 {"0.0625", "0"},
                                 {"0.0625", "1e200"},
                                 {"31.5", "-1"},
                                 {"31.5", "1e9"},
                                 {"31.5", "null"},
                                 {"0.0078125", "1e100"},
                                 {"\"layer_arithmetic\": 2", "\"layer_arithmetic\": 4294967298"},
                                 {"\"attention_arithmetic\": 2", "\"attention_arithmetic\": -4294967294"},
                                 {"\"version\": 2", "\"version\": 3"},
                                 {"0.125", "0"},
                                 {"{", "["}}) {
    EXPECT_THAT(refusal(from, to), AllOf(HasSubstr("step_growth.json"), HasSubstr("calibrate measures it anew"))) << to;
  }
}

// Whatever part of a file a crash or a copy left: it is refused, and what to do is said, since nobody has another one.
TEST_F(StepTables, TornFilesBesideThePromptsAreToBeDeleted) {
  const HeldOutKey run{header, "a cat", 7};
  save_growth(folder.path(), header, growth);
  save_held_out_latents(folder.path(), run, Tensor::zeros(DType::kF32, {2, 3}));
  const auto torn = [&](const std::string& path, const std::function<void()>& load) {
    const std::string sound = read_text_file(path);
    for (const double kept : {0.0, 0.1, 0.5, 0.9}) {
      std::ofstream(path, std::ios::binary) << sound.substr(0, static_cast<size_t>(kept * sound.size()));
      EXPECT_THAT(message(ErrorKind::kFormat, load),
                  AllOf(HasSubstr(path), HasSubstr("delete that file"), Not(HasSubstr("copy it anew"))))
          << kept;
    }
  };
  torn(folder / "step_growth.json", [&] { load_growth(folder.path(), header); });
  torn(folder / "held_out_run.safetensors", [&] { load_held_out_latents(folder.path(), run); });
  save_growth_part(folder.path(), run, {growth, Tensor::zeros(DType::kF32, {2, 3})});
  torn(folder / "step_growth_part.safetensors", [&] { load_growth_part(folder.path(), run); });
}

TEST_F(StepTables, WhatIsMeasuredOfGrowthComesBackForThatRunAloneAndIsNeverTheWhole) {
  const HeldOutKey run{header, "a cat", 7};
  EXPECT_EQ(load_growth_part(folder.path(), run).growth, StepGrowth());
  growth.factors.pop_back();
  growth.latents_error = growth.psnr_db = 0;  // known at the end
  growth.layer_changes = {{0, 0.0078125}, {3, 1.0 / 3}};
  growth.layers = "int8";
  growth.layer_arithmetic = 1, growth.attention_arithmetic = 3;
  Tensor changed(DType::kF32, {2, 3});
  for (int i = 0; i < 6; ++i) changed.f32()[i] = 0.5f + static_cast<float>(i);
  for (const bool has_latents : {false, true}) {
    save_growth_part(folder.path(), run, {growth, has_latents ? changed : Tensor()});
    const GrowthPart back = load_growth_part(folder.path(), run);
    EXPECT_EQ(back.growth, growth);
    ASSERT_EQ(!back.changed.empty(), has_latents);
    if (!has_latents) continue;
    EXPECT_TRUE(std::equal(changed.f32(), changed.f32() + 6, back.changed.f32()));
  }
  EXPECT_FALSE(read_growth(folder.path(), header).has_value());
  ProfileHeader other = header;
  other.provenance.prompts_hash = "other prompts, which masks are made of";
  for (const HeldOutKey& another :
       {HeldOutKey{header, "a dog", 7}, HeldOutKey{header, "a cat", 8}, HeldOutKey{other, "a cat", 7}}) {
    const GrowthPart none = load_growth_part(folder.path(), another);
    EXPECT_EQ(none.growth, StepGrowth());
    EXPECT_TRUE(none.changed.empty());
  }
  const std::string path = folder / "step_growth_part.safetensors", sound = read_text_file(path);
  for (const size_t at : {sound.find("int8"), sound.size() - 1}) {
    std::string bytes = sound;
    bytes[at] = static_cast<char>(bytes[at] ^ 1);
    std::ofstream(path, std::ios::binary) << bytes;
    EXPECT_THAT(message(ErrorKind::kFormat, [&] { load_growth_part(folder.path(), run); }),
                AllOf(HasSubstr("altered or damaged"), HasSubstr("delete that file")));
  }
  remove_growth_part(folder.path());
  EXPECT_EQ(load_growth_part(folder.path(), run).growth, StepGrowth());
  growth.factors = {{1, 2}, {4, 2}};  // of four steps
  save_growth_part(folder.path(), run, {growth, {}});
  EXPECT_THAT(message(ErrorKind::kFormat, [&] { load_growth_part(folder.path(), run); }), HasSubstr("\"factors\""));
}

TEST_F(StepTables, LatentsOfAHeldOutRunComeBackForThatRunAlone) {
  Tensor latents(DType::kF32, {2, 3});
  for (int i = 0; i < 6; ++i) latents.f32()[i] = 0.5f + static_cast<float>(i);
  EXPECT_FALSE(load_held_out_latents(folder.path(), {header, "a cat", 7}).has_value());
  save_held_out_latents(folder.path(), {header, "a cat", 7}, latents);
  const std::optional<Tensor> back = load_held_out_latents(folder.path(), {header, "a cat", 7});
  ASSERT_TRUE(back.has_value());
  ASSERT_EQ(back->shape(), latents.shape());
  EXPECT_TRUE(std::equal(latents.f32(), latents.f32() + 6, back->f32()));
  EXPECT_FALSE(load_held_out_latents(folder.path(), {header, "a dog", 7}).has_value());
  EXPECT_FALSE(load_held_out_latents(folder.path(), {header, "a cat", 8}).has_value());

  // One bit of them.
  const std::string path = folder / "held_out_run.safetensors";
  std::string bytes = read_text_file(path);
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  std::ofstream(path, std::ios::binary) << bytes;
  EXPECT_THAT(message(ErrorKind::kFormat,
                      [&] {
                        load_held_out_latents(folder.path(), {header, "a cat", 7});
                      }),
              AllOf(HasSubstr("altered or damaged"), HasSubstr("delete that file")));
}

}  // namespace
}  // namespace calibatt
