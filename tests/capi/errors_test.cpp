// Every way in which the C interface refuses: by a status, and one line that names what cannot be.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <fstream>
#include <functional>
#include <limits>
#include <thread>

#include "c_api_helpers.h"

namespace calibatt::test {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

TEST(CApiErrors, PointersThatAreNone) {
  calibatt_plan* plan = nullptr;
  calibatt_session* session = nullptr;
  const calibatt_run run = example_run();
  size_t bytes = 0;
  char* text = nullptr;
  const auto usage = [](calibatt_status found, const std::string& name) {
    expect_refusal(found, CALIBATT_USAGE, name + ": is NULL");
  };
  usage(calibatt_plan_open(nullptr, &plan), "path");
  usage(calibatt_plan_open("x", nullptr), "plan");
  usage(calibatt_token_order(nullptr, 1, 1, 1, nullptr), "order");
  usage(calibatt_token_order("raster", 1, 1, 1, nullptr), "raster_of_position");
  usage(calibatt_session_open(nullptr, nullptr, CALIBATT_REFUSE, &session), "run");
  usage(calibatt_session_open(nullptr, &run, CALIBATT_REFUSE, nullptr), "session");
  usage(calibatt_session_token_order(nullptr, nullptr), "session");
  usage(calibatt_session_begin_forward(nullptr, 0, CALIBATT_CONDITIONAL), "session");
  usage(calibatt_session_workspace(nullptr, nullptr, &bytes), "session");
  usage(calibatt_session_attend(nullptr, nullptr), "session");
  usage(calibatt_session_prefetch(nullptr, 0, 0), "session");
  usage(calibatt_session_json(nullptr, &text), "session");
  usage(calibatt_record(nullptr, nullptr, nullptr, nullptr, nullptr), "profile_dir");
  usage(calibatt_record("x", nullptr, nullptr, nullptr, nullptr), "run_prompt");
  usage(calibatt_compile(nullptr, "x", nullptr, 0, nullptr, nullptr, nullptr), "profile_dir");
  usage(calibatt_compile("x", nullptr, nullptr, 0, nullptr, nullptr, nullptr), "plan_path");
  usage(calibatt_compile("x", "y", nullptr, 1, nullptr, nullptr, nullptr), "settings");
  usage(calibatt_compile_prompts(nullptr, "x", nullptr, nullptr, nullptr, nullptr), "profile_dir");
  usage(calibatt_compile_prompts("x", nullptr, nullptr, nullptr, nullptr, nullptr), "plan_path");
  usage(calibatt_compile_prompts("x", "y", nullptr, nullptr, nullptr, nullptr), "calibration");
  usage(calibatt_merge_profiles(nullptr, 1, "x", nullptr), "folders");
  usage(calibatt_fingerprint(nullptr, nullptr, &text), "folder");
  usage(calibatt_fingerprint("x", nullptr, nullptr), "fingerprint");
  usage(calibatt_schedule_make(nullptr, nullptr), "schedule");
  usage(calibatt_attention(nullptr), "call");
  usage(calibatt_attention_kernel(nullptr, nullptr, nullptr), "call");
  EXPECT_EQ(calibatt_session_wants_output(nullptr), 0);
  EXPECT_STREQ(calibatt_plan_json(nullptr), "");
  EXPECT_EQ(calibatt_schedule_bytes(nullptr), 0);
  calibatt_plan_close(nullptr);
  calibatt_session_close(nullptr);
  calibatt_schedule_free(nullptr);
  calibatt_string_free(nullptr);
}

TEST(CApiErrors, StructsOfOtherVersions) {
  calibatt_run run = example_run();
  for (const size_t size : {size_t{0}, sizeof run - 1, offsetof(calibatt_run, reuses_steps) - 1, size_t{1} << 40}) {
    run.struct_size = size;
    const OpenSession open(nullptr, run);
    expect_refusal(open.status, CALIBATT_USAGE, "run.struct_size");
  }
  struct Newer {
    calibatt_run run = example_run();
    double added = 0;
  } newer;
  newer.run.struct_size = sizeof newer;
  EXPECT_EQ(OpenSession(nullptr, newer.run).status, CALIBATT_OK) << "what is not used is zero";
  newer.added = 1;
  expect_refusal(OpenSession(nullptr, newer.run).status, CALIBATT_USAGE, "run.struct_size");
}

TEST(CApiErrors, RunsThatCannotBe) {
  static const double rising[] = {0.5, 0.6, 0.2}, large[] = {1.5, 0.6, 0.2}, nan[] = {1, kNan, 0.2};
  static const int32_t third[] = {0, 1, 2};
  static const char* const empty[] = {""};
  const std::pair<const char*, std::function<void(calibatt_run&)>> wrong[] = {
      {"run.frames: is 0", [](auto& r) { r.frames = 0; }},
      {"run.height: is -1", [](auto& r) { r.height = -1; }},
      {"run.width: is -3", [](auto& r) { r.width = -3; }},
      {"run.num_heads", [](auto& r) { r.num_heads = 0; }},
      {"run.head_dim", [](auto& r) { r.head_dim = -64; }},
      {"run.num_layers", [](auto& r) { r.num_layers = 0; }},
      {"run.num_steps", [](auto& r) { r.num_steps = 0; }},
      {"run.sigmas: is NULL", [](auto& r) { r.sigmas = nullptr; }},
      {"run.sigmas[1]", [](auto& r) { r.sigmas = rising; }},
      {"run.sigmas[0]", [](auto& r) { r.sigmas = large; }},
      {"run.sigmas[1]", [](auto& r) { r.sigmas = nan; }},
      {"run.num_transformers", [](auto& r) { r.num_transformers = -1; }},
      {"run.step_transformer: is NULL", [](auto& r) { r.num_transformers = 2; }},
      {"run.step_transformer[2]", [](auto& r) { r.num_transformers = 2, r.step_transformer = third; }},
      {"run.fingerprints[0]", [](auto& r) { r.fingerprints = empty; }},
      {"run.video_width", [](auto& r) { r.video_width = -8; }},
      {"run.flow_shift", [](auto& r) { r.flow_shift = kNan; }},
      {"run.guidance_scale", [](auto& r) { r.guidance_scale = -2; }},
  };
  for (const auto& [message, change] : wrong) {
    calibatt_run run = example_run();
    change(run);
    const OpenSession open(nullptr, run);
    expect_refusal(open.status, CALIBATT_USAGE, message);
    EXPECT_EQ(open.session, nullptr);
  }
  calibatt_run run = example_run();
  run.frames = run.height = run.width = 1 << 20;
  EXPECT_EQ(OpenSession(nullptr, run).status, CALIBATT_USAGE) << "more tokens than an int holds";
  run = example_run();
  run.device = -2;
  EXPECT_NE(OpenSession(nullptr, run).status, CALIBATT_OK);
  run.device = CALIBATT_CPU;
  expect_refusal(OpenSession(nullptr, run, static_cast<calibatt_on_mismatch>(7)).status, CALIBATT_USAGE, "on_mismatch");
}

TEST(CApiErrors, GpusThatAreNotThere) {
  if (calibatt_cuda_available() == CALIBATT_OK) GTEST_SKIP() << "there is one";
  EXPECT_EQ(calibatt_cuda_available(), CALIBATT_DEVICE);
  calibatt_run run = example_run();
  run.device = 0;
  EXPECT_EQ(OpenSession(nullptr, run).status, CALIBATT_DEVICE);
  auto masks = sized<calibatt_masks>();
  masks.num_heads = masks.num_queries = masks.num_keys = masks.block_q = masks.block_k = 1;
  calibatt_schedule* schedule = nullptr;
  EXPECT_EQ(calibatt_schedule_make(&masks, &schedule), CALIBATT_DEVICE);
}

TEST(CApiErrors, CallsThatCannotBe) {
  const OpenSession open(nullptr, example_run());
  Arrays arrays(2, 12, 2, 64, 1);
  const calibatt_call sound = arrays.call();
  expect_refusal(calibatt_session_attend(open.session, &sound), CALIBATT_USAGE, "begin_forward");
  expect_refusal(calibatt_session_begin_forward(open.session, 3, CALIBATT_CONDITIONAL), CALIBATT_USAGE, "step: is 3");
  expect_refusal(calibatt_session_begin_forward(open.session, -1, CALIBATT_CONDITIONAL), CALIBATT_USAGE, "step");
  expect_refusal(calibatt_session_begin_forward(open.session, 0, static_cast<calibatt_branch>(2)), CALIBATT_USAGE,
                 "branch");
  expect_refusal(calibatt_session_prefetch(open.session, 0, 1), CALIBATT_USAGE, "layer: is 1");
  expect_refusal(calibatt_session_prefetch(open.session, 5, 0), CALIBATT_USAGE, "step: is 5");
  ASSERT_EQ(calibatt_session_begin_forward(open.session, 0, CALIBATT_CONDITIONAL), CALIBATT_OK);
  const std::pair<const char*, std::function<void(calibatt_call&)>> wrong[] = {
      {"call.struct_size", [](auto& c) { c.struct_size = 8; }},
      {"call.layer: is 1", [](auto& c) { c.layer = 1; }},
      {"call.layer: is -1", [](auto& c) { c.layer = -1; }},
      {"call.batch: is 0", [](auto& c) { c.batch = 0; }},
      {"call.out.batch_stride", [](auto& c) { c.batch = 2, c.out.batch_stride = 0; }},
      {"call.q.batch_stride", [](auto& c) { c.batch = 2, c.q.batch_stride = -1; }},
      {"call.num_tokens: is 11", [](auto& c) { c.num_tokens = 11; }},
      {"call.num_tokens", [](auto& c) { c.num_tokens = -1; }},
      {"call.dtype: is 9", [](auto& c) { c.dtype = static_cast<calibatt_dtype>(9); }},
      {"call.q.data: is NULL", [](auto& c) { c.q.data = nullptr; }},
      {"call.k.data: is NULL", [](auto& c) { c.k.data = nullptr; }},
      {"call.v.data: is NULL", [](auto& c) { c.v.data = nullptr; }},
      {"call.out.data: is NULL", [](auto& c) { c.out.data = nullptr; }},
      {"k strides", [](auto& c) { c.k.token_stride = -128; }},
      {"rows of out overlap", [](auto& c) { c.out.head_stride = 64, c.out.token_stride = 64; }},
  };
  for (const auto& [message, change] : wrong) {
    calibatt_call call = sound;
    change(call);
    expect_refusal(calibatt_session_attend(open.session, &call), CALIBATT_USAGE, message);
  }
  EXPECT_THAT(arrays.out, ::testing::Each(0.0f)) << "nothing is written before a call is known to be sound";
  EXPECT_EQ(calibatt_session_attend(open.session, &sound), CALIBATT_OK) << calibatt_last_error();
}

TEST(CApiErrors, FilesThatAreNoPlans) {
  const Folder folder;
  std::ofstream(folder.file("short.safetensors")) << "no plan";
  EXPECT_EQ(OpenPlan(folder.file("absent.safetensors")).status, CALIBATT_NOT_FOUND);
  EXPECT_EQ(OpenPlan(folder.path.string()).status, CALIBATT_UNREADABLE);
  EXPECT_EQ(OpenPlan(folder.file("short.safetensors")).status, CALIBATT_FORMAT);
}

TEST(CApiErrors, PlansOfOtherRuns) {
  const OpenPlan plan(kExamplePlan);
  ASSERT_EQ(plan.status, CALIBATT_OK) << calibatt_last_error();
  calibatt_run run = example_run();
  EXPECT_EQ(OpenSession(plan.plan, run).status, CALIBATT_OK) << "what the run does not say is not compared";
  run.num_heads = 3;
  expect_refusal(OpenSession(plan.plan, run).status, CALIBATT_MISMATCH, "2 heads × 64, this run has 3 × 64");
  expect_refusal(OpenSession(plan.plan, run, CALIBATT_WARN).status, CALIBATT_MISMATCH, "3 × 64");
  {
    const OpenSession dense(plan.plan, run, CALIBATT_DENSE);
    ASSERT_EQ(dense.status, CALIBATT_OK);
    Arrays arrays(1, 12, 3, 64, 2);
    const calibatt_call call = arrays.call();
    EXPECT_EQ(calibatt_session_begin_forward(dense.session, 0, CALIBATT_CONDITIONAL), CALIBATT_OK);
    EXPECT_EQ(calibatt_session_attend(dense.session, &call), CALIBATT_OK) << calibatt_last_error();
    EXPECT_THAT(dense.json(), HasSubstr("\"dense_fallback_calls\":1"));
    EXPECT_THAT(dense.json(), HasSubstr("3 × 64"));
  }
  run = example_run();
  run.video_width = 80;
  expect_refusal(OpenSession(plan.plan, run).status, CALIBATT_MISMATCH, "48×64");
  run = example_run();
  const char* const same[] = {"00112233445566778899aabbccddeeff"};
  const char* const other[] = {"ffffffffffffffffffffffffffffffff"};
  const char* const of_values[] = {"values1:00112233445566778899aabbccddeeff"};
  run.fingerprints = same;
  EXPECT_THAT(OpenSession(plan.plan, run).json(), HasSubstr("\"weights\":\"same\""));
  run.fingerprints = of_values;
  EXPECT_THAT(OpenSession(plan.plan, run).json(), HasSubstr("\"weights\":\"not compared\""));
  run.fingerprints = other;
  expect_refusal(OpenSession(plan.plan, run).status, CALIBATT_MISMATCH, "ffffffff");
  expect_refusal(OpenSession(plan.plan, run).status, CALIBATT_MISMATCH,
                 "to a fine-tune all the same with on_mismatch warn");
  EXPECT_THAT(OpenSession(plan.plan, run, CALIBATT_WARN).json(), HasSubstr("applied to other weights"));
}

TEST(CApiErrors, PlansThatReuseSteps) {
  const OpenPlan plan(CALIBATT_GOLDEN_DIR "/plan_v3_reuse.safetensors");
  ASSERT_EQ(plan.status, CALIBATT_OK) << calibatt_last_error();
  expect_refusal(OpenSession(plan.plan, example_run()).status, CALIBATT_MISMATCH, "no forward in 3 steps");
  calibatt_run before = example_run();
  before.struct_size = offsetof(calibatt_run, reuses_steps);
  expect_refusal(OpenSession(plan.plan, before).status, CALIBATT_MISMATCH, "no forward in 3 steps");
}

TEST(CApiErrors, Predictions) {
  const OpenPlan plan(kExamplePlan);
  calibatt_run before = example_run();
  before.struct_size = offsetof(calibatt_run, reuses_steps);  // as programs know it that were compiled before
  const OpenSession open(plan.plan, before);
  ASSERT_EQ(open.status, CALIBATT_OK) << calibatt_last_error();
  auto prediction = sized<calibatt_prediction>();
  EXPECT_EQ(calibatt_session_prediction(open.session, 2, &prediction), CALIBATT_OK);
  EXPECT_EQ(prediction.reuse, CALIBATT_FORWARD);
  EXPECT_EQ(prediction.num_sources, 0);
  expect_refusal(calibatt_session_prediction(open.session, 3, &prediction), CALIBATT_USAGE, "step");
  expect_refusal(calibatt_session_prediction(open.session, 0, nullptr), CALIBATT_USAGE, "prediction");
  expect_refusal(calibatt_session_prediction(nullptr, 0, &prediction), CALIBATT_USAGE, "session");
  prediction.struct_size = 8;
  expect_refusal(calibatt_session_prediction(open.session, 0, &prediction), CALIBATT_USAGE, "prediction.struct_size");
}

TEST(CApiErrors, TokenOrders) {
  int32_t order[8] = {};
  EXPECT_EQ(calibatt_token_order("tiles:1x2x2", 1, 2, 4, order), CALIBATT_OK);
  EXPECT_THAT(order, ::testing::ElementsAre(0, 1, 4, 5, 2, 3, 6, 7));
  EXPECT_EQ(calibatt_token_order("tiles:0x2x2", 1, 2, 4, order), CALIBATT_USAGE);
  EXPECT_EQ(calibatt_token_order("sorted", 1, 2, 4, order), CALIBATT_USAGE);
  expect_refusal(calibatt_token_order("raster", 1, 2, 0, order), CALIBATT_USAGE, "width");
}

calibatt_masks sound_masks(const uint8_t* kept) {
  auto masks = sized<calibatt_masks>();
  masks.device = CALIBATT_CPU;
  masks.num_heads = 1, masks.num_queries = masks.num_keys = 12, masks.block_q = masks.block_k = 4;
  masks.kept = kept;
  return masks;
}

TEST(CApiErrors, MasksThatCannotBe) {
  const uint8_t kept[9] = {1, 0, 0, 0, 0, 0, 0, 1, 1}, all[9] = {1, 1, 1, 1, 1, 1, 1, 1, 1};
  const int32_t tokens[] = {0, 99}, of[12] = {}, beyond[12] = {5};
  const std::pair<const char*, std::function<void(calibatt_masks&)>> wrong[] = {
      {"masks.num_heads", [](auto& m) { m.num_heads = 0; }},
      {"masks.num_keys", [](auto& m) { m.num_keys = -1; }},
      {"masks.block_q", [](auto& m) { m.block_q = 0; }},
      {"masks.summarize_skipped", [](auto& m) { m.kept = nullptr, m.summarize_skipped = 1; }},
      {"masks.num_anchors", [&](auto& m) { m.anchor_tokens = tokens, m.anchor_of = of; }},
      {"masks.anchor_of", [&](auto& m) { m.kept = nullptr, m.anchor_tokens = tokens, m.num_anchors = 1; }},
      {"99", [&](auto& m) { m.kept = nullptr, m.anchor_tokens = tokens, m.num_anchors = 2, m.anchor_of = of; }},
      {"anchor source 5",
       [&](auto& m) { m.kept = nullptr, m.anchor_tokens = of, m.num_anchors = 1, m.anchor_of = beyond; }},
      {"query block 1", [&](auto& m) { m.kept = kept; }},
  };
  for (const auto& [message, change] : wrong) {
    calibatt_masks masks = sound_masks(all);
    change(masks);
    calibatt_schedule* schedule = nullptr;
    expect_refusal(calibatt_schedule_make(&masks, &schedule), CALIBATT_USAGE, message);
    EXPECT_EQ(schedule, nullptr);
  }
}

TEST(CApiErrors, SingleCallsThatCannotBe) {
  const uint8_t all[9] = {1, 1, 1, 1, 1, 1, 1, 1, 1};
  Arrays arrays(1, 12, 1, 64, 1);
  std::vector<float> energy(9);
  auto sound = sized<calibatt_attention_call>();
  sound.device = CALIBATT_CPU;
  sound.q = arrays.heads_of(arrays.q.data()), sound.k = arrays.heads_of(arrays.k.data());
  sound.v = arrays.heads_of(arrays.v.data()), sound.out = arrays.heads_of(arrays.out.data());
  sound.batch = sound.num_heads = 1, sound.head_dim = 64, sound.num_queries = sound.num_keys = 12;
  sound.block_q = sound.block_k = 4;
  sound.scale = 0.125f;
  calibatt_schedule* schedule = nullptr;
  const calibatt_masks masks = sound_masks(all);
  ASSERT_EQ(calibatt_schedule_make(&masks, &schedule), CALIBATT_OK);
  const std::pair<const char*, std::function<void(calibatt_attention_call&)>> wrong[] = {
      {"call.batch", [](auto& c) { c.batch = 0; }},
      {"call.head_dim", [](auto& c) { c.head_dim = 0; }},
      {"call.num_queries", [](auto& c) { c.num_queries = -4; }},
      {"call.scale", [](auto& c) { c.scale = 0; }},
      {"call.dtype", [](auto& c) { c.dtype = static_cast<calibatt_dtype>(-1); }},
      {"call.v.data", [](auto& c) { c.v.data = nullptr; }},
      {"no kernel is named fast", [](auto& c) { c.kernel = "fast"; }},
      {"call.schedule: was made for other", [&](auto& c) { c.schedule = schedule, c.block_k = 8; }},
      {"call.schedule: was made for another device", [&](auto& c) { c.schedule = schedule, c.device = 0; }},
      {"call.block_energy", [&](auto& c) { c.schedule = schedule, c.block_energy = energy.data(); }},
  };
  for (const auto& [message, change] : wrong) {
    calibatt_attention_call call = sound;
    change(call);
    expect_refusal(calibatt_attention(&call), CALIBATT_USAGE, message);
    expect_refusal(calibatt_attention_kernel(&call, nullptr, nullptr), CALIBATT_USAGE, message);
  }
  EXPECT_THAT(arrays.out, ::testing::Each(0.0f));
  EXPECT_EQ(calibatt_attention(&sound), CALIBATT_OK) << calibatt_last_error();
  calibatt_schedule_free(schedule);
}

TEST(CApiErrors, AreOfTheThreadThatMadeThem) {
  EXPECT_EQ(calibatt_plan_open("/no/such/plan", nullptr), CALIBATT_USAGE);
  const std::string ours = calibatt_last_error();
  std::thread([] {
    EXPECT_STREQ(calibatt_last_error(), "");
    calibatt_token_order(nullptr, 1, 1, 1, nullptr);
    EXPECT_THAT(calibatt_last_error(), StartsWith("order"));
  }).join();
  EXPECT_EQ(calibatt_last_error(), ours);
}

TEST(CApiErrors, FingerprintsOfWhatIsNoTransformer) {
  const Folder folder;
  char* text = nullptr;
  EXPECT_EQ(calibatt_fingerprint(folder.file("absent").c_str(), nullptr, &text), CALIBATT_NOT_FOUND);
  std::ofstream(folder.file("config.json")) << R"({"_class_name": "UNet"})";
  expect_refusal(calibatt_fingerprint(folder.path.c_str(), nullptr, &text), CALIBATT_FORMAT, "WanTransformer3DModel");
  EXPECT_EQ(text, nullptr);
}

}  // namespace
}  // namespace calibatt::test
