#include "plan/plan_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "calibatt/plan.h"
#include "io/safetensors.h"
#include "io/test_folder.h"
#include "plan/plan_writer.h"
#include "plan/test_plan_files.h"
#include "plan/test_plans.h"

namespace calibatt {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

// Applies `change` to the example's file, makes the checksum right again, and tells why it is refused.
std::string refusal(auto&& change, bool repair_checksum = true) {
  PlanFile file = test::encode_v1(Plan(test::example_parts()));
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

TEST(PlanFileV1, RandomPlansComeBackEqual) {
  for (unsigned seed = 0; seed < 100; ++seed) {
    Plan::Parts parts = test::random_parts(seed);
    parts.step_reuse.clear();
    parts.eight_bits.clear();
    const Plan plan(parts);
    ASSERT_TRUE(test::same_plan(decode_plan(test::encode_v1(plan), "x"), plan)) << "seed " << seed;
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

TEST(PlanFileV1, NumbersAreStoredInTheNarrowestType) {
  Plan::Parts parts = test::example_parts();
  EXPECT_EQ(test::encode_v1(Plan(parts)).tensors.at("intervals").dtype(), DType::kU8);
  parts.geometry.frames = 100;  // 1,200 tokens, 300 key blocks
  parts.heads.assign(4, HeadPlan{BlockIntervals::dense(300, 300), false});
  EXPECT_EQ(test::encode_v1(Plan(parts)).tensors.at("intervals").dtype(), DType::kU16);
  parts.geometry.block_k = 1;
  parts.geometry.block_q = 1 << 20;
  parts.geometry.frames = 6000;  // 72,000 key blocks
  parts.heads.assign(4, HeadPlan{BlockIntervals::dense(1, 72000), false});
  const PlanFile file = test::encode_v1(Plan(parts));
  EXPECT_EQ(file.tensors.at("intervals").dtype(), DType::kU32);
  EXPECT_TRUE(test::same_plan(decode_plan(file, ""), Plan(parts)));
}

TEST(PlanFileV1, ADensePlanNeedsNoIntervals) {
  Plan::Parts parts = test::example_parts();
  parts.heads.assign(4, HeadPlan{});
  const PlanFile file = test::encode_v1(Plan(parts));
  EXPECT_FALSE(file.tensors.contains("intervals"));
  EXPECT_FALSE(file.tensors.contains("anchor_rows"));
  EXPECT_TRUE(test::same_plan(decode_plan(file, ""), Plan(parts)));
}

TEST(PlanFile, ANameThatIsNotUtf8IsStoredReadably) {
  Plan::Parts parts = test::example_parts();
  parts.provenance.transformers[0].name = "caf\xe9";
  EXPECT_EQ(decode_plan(test::encode_v1(Plan(parts)), "").info().provenance.transformers[0].name, "caf\xef\xbf\xbd");
}

TEST(PlanFile, ForeignNewerAndAlteredFilesAreRefused) {
  EXPECT_EQ(refusal([](auto&) {}), "accepted");
  EXPECT_THAT(refusal([](auto& f) { f.metadata.clear(); }), HasSubstr("not a plan"));
  EXPECT_THAT(refusal([](auto& f) { f.metadata["format"] = "pt"; }), HasSubstr("not a plan"));
  EXPECT_THAT(refusal([](auto& f) { f.metadata["format_version"] = "4"; }), HasSubstr("use a newer calibatt"));
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

TEST(PlanFileV1, HostileTensorsAreRefusedByName) {
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

TEST(PlanFileV1, AWrongPermutationIsRefused) {
  Plan::Parts parts = test::example_parts();
  parts.geometry.order = TokenOrder::tiles(1, 2, 2);
  PlanFile file = test::encode_v1(Plan(parts));
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

TEST(PlanFileV1, HostileJsonIsRefusedByKey) {
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

// ---- from version 2 on: masks in sections
// ----------------------------------------------------------------------------

// 20 entries of slowly changing masks, so that sections refer to the entry before.
Plan::Parts drifting_parts(int num_entries) {
  Plan::Parts parts = test::example_parts();
  parts.geometry = {};
  parts.geometry.frames = 4;
  parts.geometry.height = 10;
  parts.geometry.width = 33;
  parts.geometry.heads = 3;
  parts.geometry.block_q = 20;
  parts.geometry.block_k = 10;  // 66 × 132 blocks
  parts.num_layers = 2;
  parts.sigmas.clear();
  parts.step_entry.clear();
  parts.energy_targets.clear();
  parts.heads.clear();
  std::mt19937 random(1);
  std::vector<BlockMask> masks;
  for (int i = 0; i < 2 * 3; ++i) masks.push_back(test::random_mask(random, 66, 132, 0.3));
  for (int entry = 0; entry < num_entries; ++entry) {
    parts.sigmas.push_back(1.0 - 0.01 * entry);
    parts.step_entry.push_back(entry);
    parts.energy_targets.push_back(0.9);
    for (size_t i = 0; i < masks.size(); ++i) {
      for (int change = 0; change < 5; ++change) {
        masks[i].set(static_cast<int>(random() % 66), static_cast<int>(random() % 132), true);
      }
      HeadPlan& head = parts.heads.emplace_back();
      if (i % 3 == 2 && entry % 4 == 1) continue;  // dense now and then: nothing to refer to
      if (i % 3 == 1 && entry % 5 == 2) {          // a diagonal
        BlockMask band(66, 132);
        for (int r = 0; r < 66; ++r) {
          for (int c = std::max(0, 2 * r - 4); c < std::min(132, 2 * r + 5); ++c) band.set(r, c, true);
        }
        head.intervals = BlockIntervals::from_mask(band);
        continue;
      }
      head.intervals = BlockIntervals::from_mask(masks[i]);
    }
  }
  return parts;
}

TEST(PlanFileSections, EveryLayerOfALongRunComesBackInAnyOrder) {
  const TestFolder folder;
  const Plan plan(drifting_parts(20));
  save_plan(plan, folder / "plan");
  const auto loaded = load_plan(folder / "plan");
  for (const int entry : {19, 8, 7, 0, 15, 16, 3}) {
    for (int layer = 0; layer < 2; ++layer) EXPECT_EQ(*loaded->layer(entry, layer), *plan.layer(entry, layer)) << entry;
  }
  EXPECT_EQ(loaded->facts(), plan.facts());
  EXPECT_EQ(loaded->density(), plan.density());
}

TEST(PlanFileSections, MasksThatChangeLittleCostLittle) {
  const TestFolder folder;
  const auto size_of = [&](int num_entries) {
    const Plan plan(drifting_parts(num_entries));
    PlanWriter writer(plan.info(), folder / "plan");
    for (int entry = 0; entry < num_entries; ++entry) {
      for (int layer = 0; layer < 2; ++layer) writer.add_layer(*plan.layer(entry, layer));
    }
    const uint64_t size = writer.bytes_of_masks();
    writer.finish();
    return size;
  };
  EXPECT_LT(size_of(8), 3 * size_of(1)) << "seven entries are differences";
}

TEST(PlanFileSections, APlanIsWrittenAsItsLayersCome) {
  const TestFolder folder;
  Plan::Parts parts = test::example_parts();
  {
    PlanWriter writer(parts, folder / "plan");
    writer.add_layer(std::span(parts.heads).first(2));
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder / ".")) << "an unfinished file leaves nothing";
  PlanWriter writer(parts, folder / "plan");
  std::vector<HeadPlan> wrong(parts.heads.begin(), parts.heads.begin() + 2);
  wrong[1].intervals = BlockIntervals::dense(3, 4);
  try {
    writer.add_layer(wrong);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("entry 0, layer 0, head 1 has 3×4 blocks"));
  }
}

TEST(PlanFileSections, AnchorRowsThatNobodyUsesAreForgotten) {
  const TestFolder folder;
  Plan::Parts parts = test::example_parts();
  parts.heads[3] = {};
  save_plan(Plan(parts), folder / "whole");
  PlanWriter writer(parts, folder / "streamed");
  for (size_t i = 0; i < 4; i += 2) writer.add_layer(std::span(parts.heads).subspan(i, 2));
  writer.finish();
  EXPECT_TRUE(test::same_plan(*load_plan(folder / "streamed"), *load_plan(folder / "whole")));
  EXPECT_EQ(load_plan(folder / "streamed")->info().anchor_rows_per_frame, 0);
}

// What is wrong with the example's file after `change`: at opening it, or at decoding its layers.
std::string refusal_v2(auto&& change, bool repair = true, const Plan& plan = Plan(test::example_parts())) {
  PlanFile file = test::encode(plan);
  change(file);
  if (repair) test::repair_checksums(file);
  try {
    const Plan decoded = decode_plan(file, "x.safetensors");
    try {
      decoded.to_parts();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kFormat);
      EXPECT_THAT(error.what(), HasSubstr("x.safetensors: entry "));
      return std::string("decoding: ") + error.what();
    }
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kFormat);
    EXPECT_THAT(error.what(), HasSubstr("x.safetensors"));
    return std::string("opening: ") + error.what();
  }
  return "accepted";
}

TEST(PlanFileSections, DamagedMasksAreFoundWhenDecodedAndNamed) {
  const auto damage = [](int64_t at) {
    return [at](PlanFile& file) {
      Tensor& sections = file.tensors["sections"];
      sections.data<uint8_t>()[at < 0 ? file.tensors["section_end"].data<int64_t>()[1] + at : at] ^= 1;
    };
  };
  EXPECT_EQ(refusal_v2([](auto&) {}), "accepted");
  EXPECT_THAT(refusal_v2(damage(0), false), AllOf(HasSubstr("decoding"), HasSubstr("entry 0, layer 0: its masks")));
  EXPECT_THAT(refusal_v2(damage(-1), false), AllOf(HasSubstr("decoding"), HasSubstr("entry 1, layer 0: its masks")));
  EXPECT_THAT(refusal_v2(damage(0)), HasSubstr("entry 0, layer 0: its masks are not a zstd frame"));
  const auto in_index = [](const char* name) {
    return refusal_v2([name](auto& f) { static_cast<uint8_t*>(f.tensors[name].raw())[0] ^= 1; }, false);
  };
  for (const char* name : {"section_end", "section_checksum", "num_intervals", "token_pairs", "head_kind", "sigmas"}) {
    EXPECT_THAT(in_index(name), HasSubstr("opening: x.safetensors: the plan was altered")) << name;
  }
}

TEST(PlanFileSections, AnIndexThatContradictsItselfIsRefused) {
  const auto i64 = [](auto& file, const char* name) { return file.tensors.at(name).template data<int64_t>(); };
  const auto u8 = [](auto& file, const char* name) { return file.tensors.at(name).template data<uint8_t>(); };
  EXPECT_THAT(refusal_v2([&](auto& f) { i64(f, "section_end")[0] = -1; }), HasSubstr("entry 0, layer 0: its section"));
  EXPECT_THAT(refusal_v2([&](auto& f) { i64(f, "section_end")[1] = 1 << 20; }), HasSubstr("entry 1, layer 0"));
  EXPECT_THAT(refusal_v2([&](auto& f) { i64(f, "section_end")[0] = 1; }), HasSubstr("not a zstd frame"));
  EXPECT_THAT(refusal_v2([&](auto& f) { i64(f, "token_pairs")[0] = 145; }), HasSubstr("head 0 is said to compute 145"));
  EXPECT_THAT(refusal_v2([&](auto& f) { i64(f, "token_pairs")[0] = 0; }), HasSubstr("opening"));
  EXPECT_THAT(refusal_v2([&](auto& f) { i64(f, "token_pairs")[1] = 143; }), HasSubstr("head 1 is said to compute 143"));
  EXPECT_THAT(refusal_v2([&](auto& f) { i64(f, "token_pairs")[0] = 111; }),
              HasSubstr("entry 0, layer 0: head 0 computes 112 pairs of tokens, but the index says 111"));
  EXPECT_THAT(refusal_v2([&](auto& f) { u8(f, "num_intervals")[0] = 2; }), HasSubstr("said to have 2 intervals"));
  EXPECT_THAT(refusal_v2([&](auto& f) { u8(f, "num_intervals")[0] = 5; }),
              HasSubstr("entry 0, layer 0: head 0: it has other intervals than the 5"));
  EXPECT_THAT(refusal_v2([&](auto& f) { u8(f, "num_intervals")[1] = 1; }), HasSubstr("head 1 is said to have 1"));
  EXPECT_THAT(refusal_v2([&](auto& f) { u8(f, "head_kind")[0] = 0; }), HasSubstr("head 0 is said to have 4 intervals"));
  EXPECT_THAT(refusal_v2([&](auto& f) { u8(f, "head_kind")[0] = 9; }), HasSubstr("head 0: its kind is 9"));
  EXPECT_THAT(refusal_v2([&](auto& f) { f.tensors.erase("sections"); }), HasSubstr("'sections' is missing"));
  EXPECT_THAT(refusal_v2([&](auto& f) { f.tensors["intervals"] = Tensor::zeros(DType::kU8, {1}); }),
              HasSubstr("tensors where this plan has"));
}

// The example with the section of one entry made anew from this content (filters, then rows).
std::string refusal_of_content(const std::vector<uint8_t>& content) {
  return refusal_v2([&](PlanFile& file) {
    Tensor& ends = file.tensors["section_end"];
    const int64_t old_end = ends.data<int64_t>()[0];
    const std::string stored = test::zstd_frame(content);
    const Tensor old = file.tensors["sections"];
    const int64_t growth = static_cast<int64_t>(stored.size()) - old_end;
    Tensor sections = Tensor::zeros(DType::kU8, {old.size() + growth});
    std::copy(stored.begin(), stored.end(), sections.data<uint8_t>());
    std::copy(old.data<uint8_t>() + old_end, old.data<uint8_t>() + old.size(),
              sections.data<uint8_t>() + stored.size());
    for (int site = 0; site < 2; ++site) ends.data<int64_t>()[site] += growth;
    file.tensors["sections"] = sections;
  });
}

TEST(PlanFileSections, HostileMasksAreRefusedByHead) {
  EXPECT_EQ(refusal_of_content({0, 0, 0b111, 0b101, 0b110}), "accepted");
  EXPECT_EQ(refusal_of_content({2, 0, 0b111, 0b010, 0b011}), "accepted") << "differences from the row above";
  EXPECT_THAT(refusal_of_content({0, 0, 0b111, 0b101}), HasSubstr("not a zstd frame of 5 bytes"));
  EXPECT_THAT(refusal_of_content({1, 0, 0b111, 0b101, 0b110}), HasSubstr("head 0: it refers to the entry before"));
  EXPECT_THAT(refusal_of_content({10, 0, 0b111, 0b101, 0b110}), HasSubstr("head 0: its filter is 10"));
  EXPECT_THAT(refusal_of_content({0, 2, 0b111, 0b101, 0b110}), HasSubstr("head 1: its filter is 2"));
  EXPECT_THAT(refusal_of_content({0, 0, 0b111, 0, 0b110}), HasSubstr("head 0: it has other intervals"));
  EXPECT_THAT(refusal_of_content({0, 0, 0b101, 0, 0b101}), HasSubstr("query block 1 keeps no key block"));
  EXPECT_THAT(refusal_of_content({0, 0, 0b1111, 0b101, 0b110}), HasSubstr("beyond its 3 key blocks"));
  EXPECT_THAT(refusal_of_content({0, 0, 0b110, 0b101, 0b110}), HasSubstr("head 0 computes"));
}

TEST(PlanFileSections, DamageBehindAReferenceNamesTheEntryItIsIn) {
  const Plan plan(drifting_parts(4));
  PlanFile file = test::encode(plan);
  const int64_t at = file.tensors["section_end"].data<int64_t>()[2];  // entry 1, layer 1
  file.tensors["sections"].data<uint8_t>()[at + 3] ^= 1;
  const Plan decoded = decode_plan(file, "x");
  EXPECT_EQ(*decoded.layer(3, 0), *plan.layer(3, 0)) << "other layers are sound";
  try {
    decoded.layer(3, 1);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("x: entry 1, layer 1: its masks, bytes "));
  }
}

TEST(PlanFile, WhatIsGivenInAPlansPlaceIsRefusedForWhatItIs) {
  const TestFolder folder;
  const std::string path = folder / "given";
  for (const auto& [content, what] :
       {std::pair{"<!doctype html>\n<html lang=\"en\">",
                  "is a web page, not a plan (a page that `calibatt report` wrote"},
        {"{\n  \"model\": \"m\"\n}\n", "is JSON, not a plan (`calibatt report FILE -o page.html` shows"},
        {"a fox runs\n", "is a text file, not a plan;"}}) {
    std::ofstream(path) << content;
    for (const auto& read : {std::function<void()>([&] { load_plan(path); }), {[&] { plan_checksum_of(path); }}}) {
      try {
        read();
        FAIL() << content;
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::kFormat);
        EXPECT_THAT(error.what(), HasSubstr(path + ": " + what));
        EXPECT_THAT(error.what(), HasSubstr("give the plan itself, the .safetensors file that `calibatt calibrate`"));
      }
    }
  }
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
