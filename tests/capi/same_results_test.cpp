// The C interface gives what the library's own pipeline gives: bit for bit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <thread>

#include "attention/run_attention.h"
#include "backend/cpu/attention/cpu_attention.h"
#include "base/half.h"
#include "c_api_helpers.h"
#include "calibatt/calibrate.h"
#include "calibrate/profile/profile_header.h"
#include "pipeline/options.h"
#include "pipeline/runner.h"
#include "pipeline/runner_group.h"
#include "plan/test_plans.h"

namespace calibatt::test {
namespace {

// ---- attention -----------------------------------------------------------------------------------------------------

/// The run that a plan was made for, as C++ and C know it.
struct RunOf {
  explicit RunOf(const Plan& plan, int num_steps) {
    const AttentionGeometry& geometry = plan.geometry();
    description.geometry = geometry;
    description.num_layers = plan.num_layers();
    for (int step = 0; step < num_steps; ++step) description.sigmas.push_back(1.0 - 0.9 * step / num_steps);
    run.device = CALIBATT_CPU;
    run.frames = geometry.frames, run.height = geometry.height, run.width = geometry.width;
    run.num_heads = geometry.heads, run.head_dim = geometry.head_dim, run.num_layers = plan.num_layers();
    run.num_steps = num_steps;
    run.sigmas = description.sigmas.data();
  }
  RunDescription description;
  calibatt_run run = sized<calibatt_run>();
};

Tensor typed(const std::vector<float>& values, DType dtype) {
  Tensor tensor(DType::kF32, {static_cast<int64_t>(values.size())});
  std::copy(values.begin(), values.end(), tensor.f32());
  return converted(tensor, dtype);
}

struct TypedCall {
  TypedCall(const AttentionGeometry& geometry, DType dtype, unsigned seed)
      : geometry(geometry), arrays(1, geometry.num_tokens(), geometry.heads, geometry.head_dim, seed), dtype(dtype) {
    q = typed(arrays.q, dtype), k = typed(arrays.k, dtype), v = typed(arrays.v, dtype);
    expected = Tensor::zeros(dtype, q.shape());
    found = Tensor::zeros(dtype, q.shape());
  }
  template <class View>
  View view(Tensor& tensor) const {
    return {tensor.raw(), dtype, geometry.num_tokens(), int64_t{geometry.heads} * geometry.head_dim, geometry.head_dim};
  }
  void run(SelfAttention& attention, int layer) {
    attention.attend(layer, geometry, view<ConstHeadsView>(q), view<ConstHeadsView>(k), view<ConstHeadsView>(v),
                     view<HeadsView>(expected), {});
  }
  calibatt_status run(calibatt_session* session, int layer) {
    auto call = arrays.call();
    call.layer = layer;
    call.dtype = dtype == DType::kF32 ? CALIBATT_F32 : CALIBATT_BF16;
    call.q.data = q.raw(), call.k.data = k.raw(), call.v.data = v.raw(), call.out.data = found.raw();
    return calibatt_session_attend(session, &call);
  }
  bool same() const { return std::memcmp(expected.raw(), found.raw(), found.size_bytes()) == 0; }

  AttentionGeometry geometry;
  Arrays arrays;
  DType dtype;
  Tensor q, k, v, expected, found;
};

bool runs_forward(calibatt_session* session, int step) {
  auto prediction = sized<calibatt_prediction>();
  EXPECT_EQ(calibatt_session_prediction(session, step, &prediction), CALIBATT_OK) << calibatt_last_error();
  return prediction.reuse == CALIBATT_FORWARD;
}

/// Steps of a run as a denoise loop asks for them, with text of another length in each branch.
void expect_same(SelfAttention& ours, calibatt_session* session, const AttentionGeometry& geometry, int num_steps,
                 int num_layers, DType dtype) {
  for (int step = 0; step < num_steps; ++step) {
    if (!runs_forward(session, step)) continue;
    for (const GuidanceBranch branch : {GuidanceBranch::kConditional, GuidanceBranch::kUnconditional}) {
      const bool conditional = branch == GuidanceBranch::kConditional;
      ours.begin_forward(step, branch);
      ASSERT_EQ(
          calibatt_session_begin_forward(session, step, conditional ? CALIBATT_CONDITIONAL : CALIBATT_UNCONDITIONAL),
          CALIBATT_OK);
      AttentionGeometry with_text = geometry;
      with_text.order = ours.token_order();
      if (geometry.text_tokens == 0) with_text.text_tokens = conditional ? 5 : 0;
      for (int layer = 0; layer < num_layers; ++layer) {
        TypedCall call(with_text, dtype, static_cast<unsigned>(100 * step + layer));
        call.run(ours, layer);
        ASSERT_EQ(call.run(session, layer), CALIBATT_OK) << calibatt_last_error();
        EXPECT_TRUE(call.same()) << "step " << step << ", layer " << layer;
      }
    }
  }
}

TEST(CApiSession, IsThePipelinesPlannedAttention) {
  const Folder folder;
  cpu::CpuAttention engine;
  for (unsigned seed = 0; seed < 12; ++seed) {
    const Plan plan(random_parts(seed));
    if (plan.geometry().text_tokens > 0) continue;  // of old plans, which C does not know
    const std::string path = folder.file("plan" + std::to_string(seed) + ".safetensors");
    save_plan(plan, path);
    const OpenPlan open(path);
    ASSERT_EQ(open.status, CALIBATT_OK) << calibatt_last_error();
    const int num_steps = plan.num_steps() + 1;
    if (plan.info().num_reused_steps() > 0) {
      expect_refusal(OpenSession(open.plan, RunOf(plan, num_steps).run).status, CALIBATT_MISMATCH,
                     "runs no forward in");
    }
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      RunOf run(plan, num_steps);
      run.run.reuses_steps = 1;
      const OpenSession session(open.plan, run.run);
      ASSERT_EQ(session.status, CALIBATT_OK) << calibatt_last_error();
      PlannedAttention ours(engine, load_plan(path), run.description);
      expect_same(ours, session.session, plan.geometry(), num_steps, plan.num_layers(), dtype);
      const auto json = nlohmann::json::parse(session.json());
      EXPECT_EQ(json["calls"], ours.report().calls);
      EXPECT_EQ(json["forwards"], ours.report().calls / plan.num_layers());
      EXPECT_EQ(json["step_reuse"], nlohmann::json(step_reuse_names(ours.step_reuse())));
      EXPECT_EQ(json["planned_eight_bits"], nlohmann::json(eight_bit_parts_names(ours.planned_eight_bits())));
      EXPECT_EQ(json["density"], ours.report().density);
      const auto of_plan = nlohmann::json::parse(calibatt_plan_json(open.plan));
      EXPECT_EQ(json["plan"], of_plan["checksum"]);
      EXPECT_EQ(of_plan["eight_bits"], nlohmann::json(eight_bit_parts_names(plan.info().eight_bits)));
    }
  }
}

TEST(CApiSession, IsThePipelinesDenseAttention) {
  cpu::CpuAttention engine;
  const Plan plan(example_parts());
  const RunOf run(plan, 2);
  const OpenSession session(nullptr, run.run);
  DenseAttention ours(engine, 2, 1);
  expect_same(ours, session.session, plan.geometry(), 2, 1, DType::kF32);
}

// The CPU widens halves, and rounds what it computed.
TEST(CApiSession, HalvesAreThoseOfTheirValues) {
  cpu::CpuAttention engine;
  const Plan plan(example_parts());
  const RunOf run(plan, 1);
  const OpenSession session(nullptr, run.run);
  ASSERT_EQ(calibatt_session_begin_forward(session.session, 0, CALIBATT_CONDITIONAL), CALIBATT_OK);
  TypedCall half(plan.geometry(), DType::kF16, 7), wide(plan.geometry(), DType::kF32, 7);
  for (const auto& [from, to] : {std::pair{&half.q, &wide.q}, {&half.k, &wide.k}, {&half.v, &wide.v}}) {
    *to = converted(*from, DType::kF32);
  }
  DenseAttention ours(engine, 1, 1);
  wide.run(ours, 0);
  // Every second row of an array of twice the size.
  const int64_t width = int64_t{half.geometry.heads} * half.geometry.head_dim;
  Tensor spread = Tensor::zeros(DType::kF16, {2 * half.found.size()});
  calibatt_call call = half.arrays.call();
  call.dtype = CALIBATT_F16;
  call.q.data = half.q.raw(), call.k.data = half.k.raw(), call.v.data = half.v.raw();
  call.out = {spread.raw(), 0, 2 * width, half.geometry.head_dim};
  ASSERT_EQ(calibatt_session_attend(session.session, &call), CALIBATT_OK) << calibatt_last_error();
  const Tensor expected = converted(wide.expected, DType::kF16);
  for (int64_t token = 0; token < half.geometry.num_tokens(); ++token) {
    const auto* row = spread.data<uint16_t>() + token * 2 * width;
    EXPECT_EQ(std::memcmp(row, expected.data<uint16_t>() + token * width, static_cast<size_t>(width) * 2), 0) << token;
    for (int64_t i = width; i < 2 * width; ++i) ASSERT_EQ(row[i], 0) << "between the rows nothing is written";
  }
}

// Each in a thread of its own, on one plan: what they compute is what they compute alone.
TEST(CApiSession, TwoRunBesideEachOther) {
  const Folder folder;
  const Plan plan(drifting_parts());
  save_plan(plan, folder.file("plan.safetensors"));
  const OpenPlan open(folder.file("plan.safetensors"));
  ASSERT_EQ(open.status, CALIBATT_OK) << calibatt_last_error();
  const RunOf run(plan, plan.num_steps());
  const auto work = [&](unsigned seed) {
    cpu::CpuAttention engine;
    const OpenSession session(open.plan, run.run);
    PlannedAttention ours(engine, load_plan(folder.file("plan.safetensors")), run.description);
    for (int round = 0; round < 5; ++round) {
      for (int step = 0; step < plan.num_steps(); ++step) {
        ours.begin_forward(step, GuidanceBranch::kConditional);
        EXPECT_EQ(calibatt_session_begin_forward(session.session, step, CALIBATT_CONDITIONAL), CALIBATT_OK);
        TypedCall call(plan.geometry(), DType::kF32, seed + static_cast<unsigned>(step));
        call.run(ours, 0);
        EXPECT_EQ(call.run(session.session, 0), CALIBATT_OK) << calibatt_last_error();
        EXPECT_TRUE(call.same());
      }
    }
  };
  std::thread other([&] { work(1000); });
  work(2000);
  other.join();
}

// One session, two threads: calls wait for each other.
TEST(CApiSession, TakesCallsOfTwoThreads) {
  const Plan plan(example_parts());
  const RunOf run(plan, 1);
  const OpenSession session(nullptr, run.run);
  ASSERT_EQ(calibatt_session_begin_forward(session.session, 0, CALIBATT_CONDITIONAL), CALIBATT_OK);
  const auto work = [&] {
    for (int i = 0; i < 200; ++i) {
      TypedCall call(plan.geometry(), DType::kF32, 3);
      EXPECT_EQ(call.run(session.session, 0), CALIBATT_OK);
    }
  };
  std::thread other(work);
  work();
  other.join();
  EXPECT_EQ(nlohmann::json::parse(session.json())["calls"], 400);
}

// ---- calibration ---------------------------------------------------------------------------------------------------

constexpr const char* kModel = CALIBATT_MODELS_DIR "/tiny-wan";

/// What a model of the pipeline calls, passed on to a session of the C interface, as a program in C would call it.
class OverC : public SelfAttention {
 public:
  OverC(calibatt_session* session, TokenOrder order) : session_(session), order_(order) {}
  TokenOrder token_order() const override { return order_; }
  void begin_forward(int step, GuidanceBranch branch) override {
    check(calibatt_session_begin_forward(
        session_, step, branch == GuidanceBranch::kConditional ? CALIBATT_CONDITIONAL : CALIBATT_UNCONDITIONAL));
  }
  bool wants_output_context() const override { return calibatt_session_wants_output(session_) == 1; }
  void attend(int layer, const AttentionGeometry& geometry, ConstHeadsView q, ConstHeadsView k, ConstHeadsView v,
              HeadsView out, const OutputContext& context) override {
    auto call = sized<calibatt_call>();
    auto output = sized<calibatt_output>();
    call.layer = layer;
    call.batch = 1;
    call.num_tokens = geometry.num_tokens();
    call.dtype = q.dtype == DType::kF32 ? CALIBATT_F32 : CALIBATT_BF16;
    call.q = heads(q), call.k = heads(k), call.v = heads(v), call.out = heads(out);
    if (context.output_weight != nullptr) {
      output.weight = context.output_weight->raw();
      output.weight_dtype = context.output_weight->dtype() == DType::kF32 ? CALIBATT_F32 : CALIBATT_BF16;
      output.out_features = static_cast<int32_t>(context.output_weight->dim(0));
      output.gate = context.gate.data();
      output.residual_square_sum = context.residual_square_sum;
      call.output = &output;
    }
    check(calibatt_session_attend(session_, &call));
  }

 private:
  static void check(calibatt_status status) {
    if (status != CALIBATT_OK) throw std::runtime_error(calibatt_last_error());
  }
  template <class View>
  static calibatt_heads heads(const View& view) {
    return {const_cast<void*>(static_cast<const void*>(view.data)), 0, view.token_stride, view.head_stride};
  }
  calibatt_session* session_;
  TokenOrder order_;
};

class CApiCalibration : public ::testing::Test {
 protected:
  CApiCalibration() {
    load_.model_dir = kModel;
    load_.backend = "cpu";
    load_.precision = Precision::kF32;
    options_.run.width = options_.run.height = 64;
    options_.run.video_frames = 9;
    options_.run.steps = 2;
    options_.run.negative_prompt = "blurred";
    options_.run.seed = 41;
    options_.prompts = {{"a red circle", "1"}, {"a blue square", "2"}, {"a red circle", "3"}};
    options_.block_q = options_.block_k = 8;
    options_.token_order = "tiles:2x2x2";
    options_.density = 0.5;
    pipeline_ = Pipeline::load(load_);
  }

  /// The same by the C interface, with the model of the pipeline behind the callback.
  calibatt_status record(const std::string& profile, const char* measure, int first = 0, int end = 0) {
    Runner& runner = pipeline_->runners().first();
    const GenerateOptions run = runner.resolved(options_.run);
    const RunDescription facts = runner.describe_attention(run);
    const std::string fingerprint = facts.transformers[0].fingerprint("");
    const std::string name = runner.model().kind + " " + facts.transformers[0].name;
    const char* const fingerprints[] = {fingerprint.c_str()};
    const char* const names[] = {name.c_str()};
    auto c_run = sized<calibatt_run>();
    c_run.device = CALIBATT_CPU;
    c_run.frames = facts.geometry.frames, c_run.height = facts.geometry.height, c_run.width = facts.geometry.width;
    c_run.num_heads = facts.geometry.heads, c_run.head_dim = facts.geometry.head_dim;
    c_run.num_layers = facts.num_layers;
    c_run.num_steps = static_cast<int32_t>(facts.sigmas.size());
    c_run.sigmas = facts.sigmas.data();
    c_run.fingerprints = fingerprints, c_run.transformer_names = names;
    c_run.video_frames = facts.video_frames, c_run.video_height = facts.video_height;
    c_run.video_width = facts.video_width;
    c_run.flow_shift = facts.flow_shift, c_run.guidance_scale = *facts.guidance_scale;
    c_run.scheduler = facts.scheduler.c_str();
    std::vector<calibatt_prompt> prompts;
    for (size_t i = 0; i < options_.prompts.size(); ++i) {
      prompts.push_back({options_.prompts[i].text.c_str(), "blurred", 41 + i});
    }
    const calibatt_setting settings[] = {
        {"measure", measure}, {"block-q", "8"}, {"block-k", "8"}, {"token-order", "tiles:2x2x2"}, {"density", "0.5"}};
    auto calibration = sized<calibatt_calibration>();
    calibration.run = &c_run;
    calibration.prompts = prompts.data();
    calibration.num_prompts = static_cast<int32_t>(prompts.size());
    calibration.first_prompt = first, calibration.end_prompt = end;
    calibration.precision = "f32";
    calibration.settings = settings;
    calibration.num_settings = 5;
    return calibatt_record(profile.c_str(), &calibration, run_prompt, this, nullptr);
  }
  static int32_t run_prompt(void* user, int32_t prompt, calibatt_session* session, double*) {
    auto& self = *static_cast<CApiCalibration*>(user);
    Runner& runner = self.pipeline_->runners().first();
    GenerateOptions run = runner.resolved(self.options_.run);
    run.prompt = self.options_.prompts[static_cast<size_t>(prompt)].text;
    run.seed += static_cast<uint64_t>(prompt);
    const auto conditioning = runner.encode(run, {});
    TransformerTimes times;
    OverC attention(session, TokenOrder::parse(self.options_.token_order));
    runner.denoise(run, *conditioning, attention, times, {});
    return 0;
  }

  Folder folder_;
  LoadOptions load_;
  CalibrateOptions options_;
  std::unique_ptr<Pipeline> pipeline_;
};

void expect_same_tensor(const Tensor& a, const Tensor& b, const char* name) {
  ASSERT_EQ(a.empty(), b.empty()) << name;
  if (a.empty()) return;
  ASSERT_EQ(a.shape(), b.shape()) << name;
  EXPECT_EQ(std::memcmp(a.raw(), b.raw(), a.size_bytes()), 0) << name;
}

void expect_same_profiles(const Profile& ours, const Profile& theirs) {
  EXPECT_EQ(to_metadata(ours.header), to_metadata(theirs.header));
  ASSERT_EQ(ours.prompts.size(), theirs.prompts.size());
  for (size_t i = 0; i < ours.prompts.size(); ++i) {
    const PromptProfile &a = ours.prompts[i], &b = theirs.prompts[i];
    expect_same_tensor(a.energy, b.energy, "energy");
    expect_same_tensor(a.harm, b.harm, "harm");
    expect_same_tensor(a.harm_scale, b.harm_scale, "harm_scale");
    expect_same_tensor(a.rung_harm, b.rung_harm, "rung_harm");
    expect_same_tensor(a.level_error, b.level_error, "level_error");
    expect_same_tensor(a.copy_error, b.copy_error, "copy_error");
    expect_same_tensor(a.similarity, b.similarity, "similarity");
    expect_same_tensor(a.levels, b.levels, "levels");
    expect_same_tensor(a.site_checksums, b.site_checksums, "site_checksums");
    EXPECT_EQ(a.own_ranking, b.own_ranking);
  }
}

TEST_F(CApiCalibration, MeasuresWhatTheCommandLineMeasures) {
  for (const char* measure : {"maps", "levels"}) {
    const std::string name = measure;
    options_.measure = measure;
    options_.profile_dir = folder_.file(name + ".cli");
    const std::string cli_plan = folder_.file(name + "_cli.safetensors"),
                      c_plan = folder_.file(name + "_c.safetensors");
    calibrate(*pipeline_, options_, cli_plan);
    ASSERT_EQ(record(folder_.file(name + ".c"), measure), CALIBATT_OK) << calibatt_last_error();
    expect_same_profiles(load_profile(options_.profile_dir), load_profile(folder_.file(name + ".c")));

    // The plans differ in their predicted speedup alone, which comes of the seconds that runs took.
    const calibatt_setting settings[] = {{"density", "0.5"}};
    ASSERT_EQ(calibatt_compile(options_.profile_dir.c_str(), c_plan.c_str(), settings, 1, nullptr, nullptr, nullptr),
              CALIBATT_OK)
        << calibatt_last_error();
    const OpenPlan cli(cli_plan), ours(c_plan);
    EXPECT_STREQ(calibatt_plan_json(cli.plan), calibatt_plan_json(ours.plan));
  }
}

TEST_F(CApiCalibration, GoesOnWithWhatTheCommandLineBeganAndTheOtherWayRound) {
  const std::string profile = folder_.file("profile");
  options_.profile_dir = profile;
  options_.prompt_range = {0, 1};
  calibrate(*pipeline_, options_, "");
  ASSERT_EQ(record(profile, "auto", 0, 2), CALIBATT_OK) << calibatt_last_error();
  options_.prompt_range.reset();
  const CalibrationSummary summary = calibrate(*pipeline_, options_, folder_.file("plan.safetensors"));
  EXPECT_EQ(summary.prompts_resumed, 2);
  EXPECT_EQ(summary.prompts_recorded, 1);
}

TEST_F(CApiCalibration, FingerprintsAreThePipelines) {
  Runner& runner = pipeline_->runners().first();
  const RunDescription run = runner.describe_attention(runner.resolved(options_.run));
  for (const char* like : {"", "00112233445566778899aabbccddeeff"}) {
    char* fingerprint = nullptr;
    ASSERT_EQ(calibatt_fingerprint((std::string(kModel) + "/transformer").c_str(), like, &fingerprint), CALIBATT_OK)
        << calibatt_last_error();
    EXPECT_EQ(fingerprint, run.transformers[0].fingerprint(like));
    calibatt_string_free(fingerprint);
  }
}

TEST(CApiFingerprint, OfMochi) {
  LoadOptions load;
  load.model_dir = CALIBATT_MODELS_DIR "/tiny-mochi";
  load.backend = "cpu";
  const auto pipeline = Pipeline::load(load);
  Runner& runner = pipeline->runners().first();
  const RunDescription run = runner.describe_attention(runner.resolved({}));
  char* fingerprint = nullptr;
  ASSERT_EQ(calibatt_fingerprint((load.model_dir + "/transformer").c_str(), nullptr, &fingerprint), CALIBATT_OK)
      << calibatt_last_error();
  EXPECT_EQ(fingerprint, run.transformers[0].fingerprint(""));
  calibatt_string_free(fingerprint);
}

}  // namespace
}  // namespace calibatt::test
