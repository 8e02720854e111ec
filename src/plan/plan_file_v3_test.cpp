// What version 3 of the plan file added: several transformers, how accurate a plan is, features that must be
// understood.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "plan/test_plan_files.h"
#include "plan/test_plans.h"

namespace calibatt {
namespace {

using Json = nlohmann::json;
using ::testing::HasSubstr;

std::string decoding(PlanFile file) {
  file.metadata["checksum"] = plan_checksum(file);
  try {
    decode_plan(file, "x");
    return "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kFormat);
    return error.what();
  }
}

std::string v3_json_refusal(auto&& change) {
  PlanFile file = test::encode(Plan(test::expert_parts()));
  Json json = Json::parse(file.metadata["plan"]);
  change(json);
  file.metadata["plan"] = json.dump();
  return decoding(std::move(file));
}

TEST(PlanFileV3, TransformersStepsAndAccuracyComeBack) {
  const Plan plan(test::expert_parts());
  const PlanFile file = test::encode(plan);
  EXPECT_EQ(file.metadata.at("format_version"), "3");
  const Plan read = decode_plan(file, "x");
  EXPECT_TRUE(test::same_plan(read, plan));
  EXPECT_EQ(read.info().transformer_of(1), 0);
  EXPECT_EQ(read.info().transformer_of(2), 1);
  EXPECT_EQ(read.info().accuracy.measured, 0.125);
  EXPECT_FALSE(test::encode(Plan(test::example_parts())).tensors.contains("step_transformer"));
}

TEST(PlanFileV3, OldVersionsHaveOneTransformerOfAllSteps) {
  const Plan plan(test::example_parts());
  for (const PlanFile& file : {test::encode_v1(plan), test::encode_v2(plan)}) {
    const Plan read = decode_plan(file, "x");
    EXPECT_TRUE(test::same_plan(read, plan));
    EXPECT_EQ(read.info().transformer_of(2), 0);
    EXPECT_FALSE(read.info().accuracy.predicted.has_value());
  }
}

TEST(PlanFileV3, WhatAPlanNeedsAndThisProgramDoesNotKnowIsRefusedByName) {
  EXPECT_EQ(v3_json_refusal([](Json&) {}), "accepted");
  EXPECT_THAT(v3_json_refusal([](Json& j) { j["required_features"] = {"teleportation"}; }),
              ::testing::AllOf(HasSubstr("needs \"teleportation\""), HasSubstr("newer calibatt")));
  // Reserved: their absence has a meaning, anything else is for a later program.
  EXPECT_THAT(v3_json_refusal([](Json& j) { j["head_precision"] = "e4m3"; }), HasSubstr("needs \"head_precision\""));
  EXPECT_EQ(v3_json_refusal([](Json& j) { j["step_reuse"] = nullptr; }), "accepted");
  EXPECT_EQ(v3_json_refusal([](Json& j) { j["note"] = "not needed"; }), "accepted");
  EXPECT_THAT(v3_json_refusal([](Json& j) { j["required_features"] = "all"; }), HasSubstr("required_features"));
  EXPECT_THAT(v3_json_refusal([](Json& j) { j["required_features"] = {7}; }), HasSubstr("required_features"));
}

TEST(PlanFileV3, ReusedStepsComeBackAndOthersTakeNoPlace) {
  const Plan plan(test::reuse_parts());
  const PlanFile file = test::encode(plan);
  const Plan read = decode_plan(file, "x");
  EXPECT_TRUE(test::same_plan(read, plan));
  EXPECT_EQ(read.info().num_reused_steps(), 3);
  EXPECT_EQ(read.info().reuse_of(2), StepReuse::kLinear);
  EXPECT_EQ(read.info().accuracy.latents_predicted, 0.03125);
  // Entries 0 (three steps) and 1 (one) run: 7 and 9, and 9 and 3, of 9 blocks of two heads.
  EXPECT_DOUBLE_EQ(read.density(), (3 * 16.0 / 18 + 12.0 / 18) / 4);
  EXPECT_EQ(read.density(3, 0), 0);
  const std::string before = test::encode(Plan(test::expert_parts())).metadata.at("plan");
  EXPECT_THAT(before, ::testing::Not(HasSubstr("step_reuse")));
  EXPECT_THAT(before, ::testing::Not(HasSubstr("latents")));
}

TEST(PlanFileV3, PartsIn8BitsComeBackAndOthersTakeNoPlace) {
  const Plan plan(test::eight_bit_plan_parts());
  const Plan read = decode_plan(test::encode(plan), "x");
  EXPECT_TRUE(test::same_plan(read, plan));
  EXPECT_EQ(read.info().eight_bits[3], (EightBitParts{.attention = true, .layers = true}));
  EXPECT_THAT(test::encode(Plan(test::reuse_parts())).metadata.at("plan"), ::testing::Not(HasSubstr("eight_bits")));

  const auto refusal = [](Json parts) { return v3_json_refusal([&](Json& j) { j["eight_bits"] = std::move(parts); }); };
  EXPECT_EQ(refusal({"none", "attention", "attention+layers"}), "accepted");
  EXPECT_EQ(refusal(nullptr), "accepted");
  EXPECT_THAT(refusal({"none", "text", "none"}),
              ::testing::AllOf(HasSubstr("eight_bits: text"), HasSubstr("newer calibatt")));
  EXPECT_THAT(refusal({8, 8, 16}), ::testing::AllOf(HasSubstr("eight_bits"), HasSubstr("list of texts")));
  EXPECT_THAT(refusal({"none", "layers"}), HasSubstr("2 steps"));
  for (const char* key : {"eight_bits", "step_reuse"}) {
    EXPECT_THAT(v3_json_refusal([&](Json& j) { j[key] = Json::array(); }),
                ::testing::AllOf(HasSubstr(key), HasSubstr("a text for each step")));
  }
}

TEST(PlanFileV3, ReuseThatCannotBeIsRefused) {
  const auto refusal = [](Json reuse) { return v3_json_refusal([&](Json& j) { j["step_reuse"] = std::move(reuse); }); };
  EXPECT_EQ(refusal({"forward", "hold", "forward"}), "accepted");
  EXPECT_THAT(refusal({"forward", "teleport", "forward"}),
              ::testing::AllOf(HasSubstr("step_reuse: teleport"), HasSubstr("newer calibatt")));
  EXPECT_THAT(refusal({0, 0, 1}), HasSubstr("list of texts"));
  EXPECT_THAT(refusal("hold"), HasSubstr("list of texts"));
  EXPECT_THAT(refusal({"forward", "hold"}), HasSubstr("2 steps"));
  EXPECT_THAT(refusal({"hold", "forward", "forward"}), HasSubstr("step 0 is made from 1 step"));
  EXPECT_THAT(refusal({"forward", "linear", "forward"}), HasSubstr("2 steps before it (linear), but 1 of its"));
  EXPECT_THAT(refusal({"forward", "forward", "hold"}), HasSubstr("step 2")) << "the first of another transformer";
  EXPECT_THAT(v3_json_refusal([](Json& j) { j["accuracy"]["latents_measured"] = -1; }), HasSubstr("accuracy"));
  Plan::Parts parts = test::reuse_parts();
  parts.accuracy.psnr_predicted = 44.5;
  parts.accuracy.psnr_measured = 43.25;
  EXPECT_EQ(decode_plan(test::encode(Plan(parts)), "x").info().accuracy, parts.accuracy);
}

TEST(PlanFileV3, TransformersThatContradictTheStepsAreRefused) {
  EXPECT_THAT(v3_json_refusal([](Json& j) { j["provenance"].erase("transformers"); }), HasSubstr("transformers"));
  EXPECT_THAT(v3_json_refusal([](Json& j) { j["provenance"]["transformers"] = Json::array(); }),
              HasSubstr("at least one"));
  EXPECT_THAT(v3_json_refusal([](Json& j) { j["provenance"]["transformers"][1].erase("fingerprint"); }),
              ::testing::AllOf(HasSubstr("transformers[1]"), HasSubstr("fingerprint")));
  EXPECT_THAT(v3_json_refusal([](Json& j) { j["provenance"]["transformers"].erase(1); }), HasSubstr("tensors"));
  EXPECT_THAT(v3_json_refusal([](Json& j) {
                j["provenance"]["transformers"].push_back({{"name", "x"}, {"fingerprint", ""}});
              }),
              HasSubstr("no step uses transformer 2"));
  EXPECT_THAT(v3_json_refusal([](Json& j) { j["accuracy"]["predicted"] = -0.5; }), HasSubstr("accuracy"));
  EXPECT_THAT(v3_json_refusal([](Json& j) { j["accuracy"] = 3; }), HasSubstr("accuracy"));
  PlanFile file = test::encode(Plan(test::expert_parts()));
  file.tensors.erase("step_transformer");
  EXPECT_THAT(decoding(file), HasSubstr("'step_transformer' is missing"));
  file = test::encode(Plan(test::expert_parts()));
  file.tensors["step_transformer"].data<uint8_t>()[1] = 2;
  EXPECT_THAT(decoding(file), HasSubstr("step 1 uses transformer 2 of 2"));
}

TEST(PlanFile, ThatIsWrittenIntoWhileItIsOpenIsDamagedAndNothingWorse) {
  const TestFolder folder;
  const std::string path = folder / "plan.safetensors";
  save_plan(Plan(test::expert_parts()), path);
  const std::shared_ptr<const Plan> plan = load_plan(path);
  const auto size = static_cast<std::streamoff>(std::filesystem::file_size(path));
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file << std::string(static_cast<size_t>(size), '\xff') << std::flush;
  for (int entry = 0; entry < plan->num_entries(); ++entry) {
    for (int layer = 0; layer < plan->num_layers(); ++layer) {
      try {
        plan->layer(entry, layer);
        ADD_FAILURE() << entry << " " << layer;
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::kFormat);
        EXPECT_THAT(error.what(), HasSubstr("altered or damaged (checksum)"));
      }
    }
  }
}

TEST(Plan, ANoiseLevelFindsTheNearestStepOfItsTransformer) {
  const Plan plan(test::expert_parts());  // noise 1 and 0.75 of the first, 0.25 of the second
  EXPECT_EQ(plan.nearest_step(0.3, 1), 2);
  EXPECT_EQ(plan.nearest_step(0.3, 0), 1);
  EXPECT_EQ(plan.nearest_step(0.9, 1), 2);
}

}  // namespace
}  // namespace calibatt
