#include "plan/plan_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "io/safetensors.h"
#include "io/test_folder.h"
#include "plan/test_plans.h"

namespace calibatt {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

// Applies `change` to the example's file, makes the checksum right again, and tells why it is refused.
std::string refusal(auto&& change, bool repair_checksum = true) {
  PlanFile file = encode_plan(Plan(test::example_parts()));
  for (auto& [name, tensor] : file.tensors) tensor = tensor.clone();
  change(file);
  if (repair_checksum) file.metadata["checksum"] = plan_checksum(file);
  try {
    decode_plan(file, "x.safetensors");
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kFormat);
    EXPECT_THAT(error.what(), HasSubstr("x.safetensors"));
    return error.what();
  }
  return "accepted";
}

std::string json_refusal(auto&& change) {
  return refusal([&](PlanFile& file) {
    Json json = Json::parse(file.metadata["plan"]);
    change(json);
    file.metadata["plan"] = json.dump();
  });
}

TEST(PlanFile, RandomPlansComeBackEqual) {
  const TestFolder folder;
  for (unsigned seed = 0; seed < 100; ++seed) {
    const Plan plan(test::random_parts(seed));
    const std::string path = folder / "plan.safetensors";
    save_plan(plan, path);
    ASSERT_TRUE(test::same_plan(*load_plan(path), plan)) << "seed " << seed;
  }
}

TEST(PlanFile, EqualPlansGiveEqualBytes) {
  const TestFolder folder;
  const auto bytes = [](const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  save_plan(Plan(test::random_parts(3)), folder / "a");
  save_plan(Plan(test::random_parts(3)), folder / "b");
  EXPECT_EQ(bytes(folder / "a"), bytes(folder / "b"));
}

TEST(PlanFile, NumbersAreStoredInTheNarrowestType) {
  Plan::Parts parts = test::example_parts();
  EXPECT_EQ(encode_plan(Plan(parts)).tensors.at("intervals").dtype(), DType::kU8);
  parts.geometry.frames = 100;  // 1,200 tokens, 300 key blocks
  parts.heads.assign(4, HeadPlan{BlockIntervals::dense(300, 300), false});
  EXPECT_EQ(encode_plan(Plan(parts)).tensors.at("intervals").dtype(), DType::kU16);
  parts.geometry.block_k = 1;
  parts.geometry.block_q = 1 << 20;
  parts.geometry.frames = 6000;  // 72,000 key blocks
  parts.heads.assign(4, HeadPlan{BlockIntervals::dense(1, 72000), false});
  const PlanFile file = encode_plan(Plan(parts));
  EXPECT_EQ(file.tensors.at("intervals").dtype(), DType::kU32);
  EXPECT_TRUE(test::same_plan(decode_plan(file, ""), Plan(parts)));
}

TEST(PlanFile, ADensePlanNeedsNoIntervals) {
  Plan::Parts parts = test::example_parts();
  parts.heads.assign(4, HeadPlan{});
  const PlanFile file = encode_plan(Plan(parts));
  EXPECT_FALSE(file.tensors.contains("intervals"));
  EXPECT_FALSE(file.tensors.contains("anchor_rows"));
  EXPECT_TRUE(test::same_plan(decode_plan(file, ""), Plan(parts)));
}

TEST(PlanFile, ANameThatIsNotUtf8IsStoredReadably) {
  Plan::Parts parts = test::example_parts();
  parts.provenance.model_name = "caf\xe9";
  EXPECT_EQ(decode_plan(encode_plan(Plan(parts)), "").parts().provenance.model_name, "caf\xef\xbf\xbd");
}

TEST(PlanFile, ForeignNewerAndAlteredFilesAreRefused) {
  EXPECT_EQ(refusal([](auto&) {}), "accepted");
  EXPECT_THAT(refusal([](auto& f) { f.metadata.clear(); }), HasSubstr("not a plan"));
  EXPECT_THAT(refusal([](auto& f) { f.metadata["format"] = "pt"; }), HasSubstr("not a plan"));
  EXPECT_THAT(refusal([](auto& f) { f.metadata["format_version"] = "2"; }), HasSubstr("use a newer calibatt"));
  EXPECT_THAT(refusal([](auto& f) { f.metadata["format_version"] = "0"; }), HasSubstr("format version"));
  EXPECT_THAT(refusal([](auto& f) { f.metadata["format_version"] = "1x"; }), HasSubstr("format version"));
  EXPECT_THAT(refusal([](auto& f) { f.metadata.erase("format_version"); }), HasSubstr("format version"));
  EXPECT_THAT(refusal([](auto& f) { f.metadata.erase("plan"); }), HasSubstr("no text \"plan\""));
  const auto altered = [](auto&& change) { return refusal(change, false); };
  EXPECT_THAT(altered([](auto& f) { f.tensors["intervals"].template data<uint8_t>()[0] ^= 1; }), HasSubstr("altered"));
  EXPECT_THAT(altered([](auto& f) { f.metadata["note"] = "x"; }), HasSubstr("altered"));
  EXPECT_THAT(altered([](auto& f) { f.metadata.erase("checksum"); }), HasSubstr("altered"));
  EXPECT_THAT(altered([](auto& f) {
                f.tensors["sigmas"] = f.tensors["sigmas"].reshaped({1, 3});
              }),
              HasSubstr("altered"));
  EXPECT_EQ(refusal([](auto& f) { f.metadata["note"] = "unknown keys are other programs' business"; }), "accepted");
}

TEST(PlanFile, HostileTensorsAreRefusedByName) {
  const auto u8 = [](auto& file, const char* name) { return file.tensors.at(name).template data<uint8_t>(); };
  EXPECT_THAT(refusal([](auto& f) { f.tensors.erase("sigmas"); }), HasSubstr("'sigmas' is missing"));
  EXPECT_THAT(refusal([](auto& f) { f.tensors["extra"] = Tensor::zeros(DType::kU8, {1}); }),
              HasSubstr("holds 8 tensors"));
  EXPECT_THAT(refusal([](auto& f) { f.tensors["raster_of_position"] = Tensor::zeros(DType::kU8, {12}); }),
              HasSubstr("holds 8 tensors"));
  EXPECT_THAT(refusal([](auto& f) { f.tensors["sigmas"] = Tensor::zeros(DType::kF32, {3}); }),
              HasSubstr("'sigmas' is F32"));
  EXPECT_THAT(refusal([](auto& f) { f.tensors["sigmas"] = Tensor::zeros(DType::kF64, {0}); }), HasSubstr("no steps"));
  EXPECT_THAT(refusal([](auto& f) { f.tensors["sigmas"].template data<double>()[1] = NAN; }),
              HasSubstr("step 1 is nan"));
  EXPECT_THAT(refusal([](auto& f) { f.tensors["energy_targets"].template data<double>()[1] = -7; }),
              HasSubstr("energy target"));
  EXPECT_THAT(refusal([&](auto& f) { u8(f, "step_entry")[0] = 200; }), HasSubstr("step 0 uses entry 200"));
  EXPECT_THAT(refusal([&](auto& f) { u8(f, "step_entry")[2] = 2; }), HasSubstr("'head_kind' is U8 [2, 1, 2]"));
  EXPECT_THAT(refusal([&](auto& f) { u8(f, "head_kind")[1] = 4; }), HasSubstr("layer 0, head 1: its kind is 4"));
  EXPECT_THAT(refusal([&](auto& f) { u8(f, "head_kind")[1] = 1; }), HasSubstr("no more rows"));
  EXPECT_THAT(refusal([&](auto& f) { u8(f, "head_kind")[0] = 0; }),
              HasSubstr("more intervals than its heads have rows"));
  EXPECT_THAT(refusal([&](auto& f) { u8(f, "interval_counts")[4] = 255; }),
              HasSubstr("head 1: 'intervals' has no more rows"));
  EXPECT_THAT(refusal([&](auto& f) { u8(f, "interval_counts")[0] = 0; }),
              HasSubstr("query block 0 keeps no key block"));
  EXPECT_THAT(refusal([&](auto& f) { u8(f, "intervals")[0] = 9; }),
              HasSubstr("entry 0, layer 0, head 0: block intervals"));
  EXPECT_THAT(refusal([&](auto& f) { u8(f, "intervals")[1] = 4; }), HasSubstr("beyond its 3 key blocks"));
  EXPECT_THAT(refusal([&](auto& f) { u8(f, "intervals")[2] = 2; }), HasSubstr("empty interval"));
  EXPECT_THAT(refusal([&](auto& f) { u8(f, "anchor_rows")[1] = 2; }), HasSubstr("not the anchor rows"));
}

TEST(PlanFile, AWrongPermutationIsRefused) {
  Plan::Parts parts = test::example_parts();
  parts.geometry.order = TokenOrder::tiles(1, 2, 2);
  PlanFile file = encode_plan(Plan(parts));
  std::swap(file.tensors["raster_of_position"].data<uint8_t>()[0],
            file.tensors["raster_of_position"].data<uint8_t>()[1]);
  file.metadata["checksum"] = plan_checksum(file);
  try {
    decode_plan(file, "x");
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("'raster_of_position' is not the token order of this geometry: number 0 is 1"));
  }
}

TEST(PlanFile, HostileJsonIsRefusedByKey) {
  EXPECT_EQ(json_refusal([](Json& j) { j["later_addition"] = 1; }), "accepted");
  EXPECT_THAT(json_refusal([](Json& j) { j.erase("geometry"); }), HasSubstr("geometry"));
  EXPECT_THAT(json_refusal([](Json& j) { j["geometry"]["frames"] = 0; }), HasSubstr("frames"));
  EXPECT_THAT(json_refusal([](Json& j) { j["geometry"]["frames"] = 1e300; }), HasSubstr("frames"));
  EXPECT_THAT(json_refusal([](Json& j) { j["geometry"]["frames"] = 16777216; }), HasSubstr("number of tokens"));
  EXPECT_THAT(json_refusal([](Json& j) { j["geometry"]["heads"] = 3; }), HasSubstr("'head_kind'"));
  EXPECT_THAT(json_refusal([](Json& j) { j["geometry"]["token_order"] = "spiral"; }), HasSubstr("spiral"));
  EXPECT_THAT(json_refusal([](Json& j) { j["geometry"]["token_order"] = "tiles:1x2x2"; }),
              HasSubstr("'raster_of_position' is missing"));
  EXPECT_THAT(json_refusal([](Json& j) { j["geometry"]["block_q"] = 2; }), HasSubstr("rows"));
  EXPECT_THAT(json_refusal([](Json& j) { j["num_layers"] = 2; }), HasSubstr("'head_kind'"));
  EXPECT_THAT(json_refusal([](Json& j) { j["num_layers"] = "1"; }), HasSubstr("num_layers"));
  EXPECT_THAT(json_refusal([](Json& j) { j["anchor_rows_per_frame"] = 0; }), HasSubstr("anchor_rows_per_frame"));
  EXPECT_THAT(json_refusal([](Json& j) { j["anchor_rows_per_frame"] = 3; }), HasSubstr("'anchor_rows'"));
  EXPECT_THAT(json_refusal([](Json& j) { j["provenance"]["settings"]["a"] = 1; }), HasSubstr("settings"));
  EXPECT_THAT(json_refusal([](Json& j) { j["provenance"]["num_prompts"] = -1; }), HasSubstr("num_prompts"));
  EXPECT_THAT(refusal([](auto& f) { f.metadata["plan"] = "[[[["; }), HasSubstr("plan metadata"));
}

TEST(PlanFile, AMissingFileIsNotFound) {
  try {
    load_plan("/nonexistent/plan.safetensors");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kNotFound);
  }
}

}  // namespace
}  // namespace calibatt
