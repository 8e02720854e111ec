#include "attention/run_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "attention/test_attention.h"
#include "backend/cpu/make_backend.h"
#include "io/test_folder.h"
#include "plan/test_plans.h"

namespace calibatt {
namespace {

using test::example;
using test::Layer;
using test::of_fingerprint;
using test::run_of;

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

// Writes down what it is told and asked, and computes nothing.
class ListeningEngine : public AttentionEngine {
 public:
  std::string_view attention(const AttentionCall& call) override {
    note("run ", call.schedule);
    return "listening";
  }
  void prefetch_schedule(const std::shared_ptr<const ScheduleSource>& schedule, const ScheduleSizes& sizes) override {
    EXPECT_EQ(sizes.num_queries, 12);
    EXPECT_EQ(sizes.block_k, 4);
    note("hear ", schedule.get());
  }
  std::vector<std::string> heard;

 private:
  void note(const std::string& what, const ScheduleSource* schedule) {
    const auto* layer = dynamic_cast<const PlannedLayer*>(schedule);
    ASSERT_NE(layer, nullptr);
    heard.push_back(what + std::to_string(layer->entry()) + "." + std::to_string(layer->layer()));
  }
};

// A run of three steps over the example's two entries, with two layers.
std::vector<std::string> heard_in_run(bool guided) {
  Plan::Parts parts = test::example_parts();
  parts.num_layers = 2;
  const std::vector<HeadPlan> more = parts.heads;
  parts.heads.insert(parts.heads.end(), more.begin(), more.end());
  const auto plan = std::make_shared<const Plan>(std::move(parts));
  ListeningEngine engine;
  PlannedAttention attention(engine, plan, run_of(*plan));
  Layer data(plan->geometry(), 1);
  for (int step = 0; step < 3; ++step) {
    for (const auto branch : {GuidanceBranch::kConditional, GuidanceBranch::kUnconditional}) {
      if (!guided && branch == GuidanceBranch::kUnconditional) continue;
      attention.begin_forward(step, branch);
      for (int layer = 0; layer < 2; ++layer) data.run(attention, layer);
    }
  }
  return engine.heard;
}

TEST(PlannedAttentionHints, TheNextLayerIsAnnouncedBeforeThePresentOneRuns) {
  EXPECT_THAT(heard_in_run(true),
              ElementsAre("hear 0.0", "hear 0.1", "run 0.0", "hear 0.0", "run 0.1",  // then the other branch
                          "hear 0.1", "run 0.0", "hear 1.0", "run 0.1",              // then the next step
                          "hear 1.1", "run 1.0", "hear 1.0", "run 1.1",              //
                          "hear 1.1", "run 1.0", "hear 1.0", "run 1.1",              // the last step shares its entry
                          "hear 1.1", "run 1.0", "hear 1.0", "run 1.1",              //
                          "hear 1.1", "run 1.0", "run 1.1"));
  // That there is no second branch is known from the second step on.
  EXPECT_THAT(heard_in_run(false), ElementsAre("hear 0.0", "hear 0.1", "run 0.0", "hear 0.0", "run 0.1",  //
                                               "hear 1.0", "hear 1.1", "run 1.0", "hear 1.0", "run 1.1",  //
                                               "hear 1.1", "run 1.0", "run 1.1"));
}

TEST(PlannedAttentionHints, StepsWithoutAForwardAreNotAnnounced) {
  Plan::Parts parts = test::example_parts();  // entries 0, 1, 1
  parts.sigmas = {1, 0.9, 0.8, 0.7};
  parts.step_entry = {0, 0, 1, 1};
  parts.energy_targets.assign(4, 0.9);
  parts.step_reuse = {StepReuse::kNone, StepReuse::kHold, StepReuse::kNone, StepReuse::kLinear};
  const auto plan = std::make_shared<const Plan>(std::move(parts));
  ListeningEngine engine;
  PlannedAttention attention(engine, plan, run_of(*plan));
  Layer data(plan->geometry(), 1);
  for (const int step : {0, 2}) {
    for (const auto branch : {GuidanceBranch::kConditional, GuidanceBranch::kUnconditional}) {
      attention.begin_forward(step, branch);
      data.run(attention, 0);
    }
  }
  EXPECT_THAT(engine.heard, ElementsAre("hear 0.0", "hear 0.0", "run 0.0", "hear 1.0", "run 0.0",  //
                                        "hear 1.0", "run 1.0", "run 1.0"));
  const AttentionReport report = attention.report();
  EXPECT_EQ(report.density_map[1][0], 0);
  EXPECT_EQ(report.density_map[3][0], 0);
  EXPECT_NEAR(report.density, plan->density(), 1e-12);
}

TEST(PlannedAttentionHints, WhoStartsElsewhereMaySayWhere) {
  const auto plan = test::example();
  ListeningEngine engine;
  PlannedAttention attention(engine, plan, run_of(*plan));
  attention.prefetch(1, 0);
  attention.begin_forward(1, GuidanceBranch::kConditional);
  Layer data(plan->geometry(), 1);
  data.run(attention, 0);
  EXPECT_THAT(engine.heard, ElementsAre("hear 1.0", "hear 1.0", "run 1.0")) << "once by us, once for the other branch";
}

TEST(PlannedLayers, KeepsWhatWasUsedLastWithinItsLimit) {
  const TestFolder folder;
  save_plan(Plan(test::fixture_parts("tiles")), folder / "plan");  // 2 entries, 2 layers
  const auto plan = load_plan(folder / "plan");
  PlannedLayers all(plan, size_t{1} << 30), few(plan, 1);
  const auto first = all.get(0, 0);
  ASSERT_EQ(first->heads().size(), 3u);
  const BlockIntervals* const decoded = first->heads()[0].intervals;
  ASSERT_NE(decoded, nullptr);
  int64_t pairs = 0;
  for (int head = 0; head < 3; ++head) pairs += plan->entry_token_pairs(0, 0, head);
  EXPECT_EQ(first->token_pairs(), pairs);
  for (PlannedLayers* layers : {&all, &few}) {
    for (int site = 0; site < 4; ++site) layers->get(site / 2, site % 2);
  }
  EXPECT_EQ(all.get(0, 0), first);
  EXPECT_EQ(first->heads()[0].intervals, decoded) << "a layer is decoded once";
  EXPECT_EQ(all.num_layers(), 4u);
  EXPECT_EQ(few.num_layers(), 3u) << "the one that runs and what comes next stay at any limit";
  const auto last = few.get(1, 1);
  EXPECT_EQ(few.get(0, 0)->layer(), 0);
  EXPECT_EQ(few.get(1, 1), last) << "used just before";
}

class RunAttentionTest : public ::testing::Test {
 protected:
  std::string refusal(auto&& change) {
    RunDescription run = run_of(*example());
    change(run);
    try {
      PlannedAttention attention(*backend_, example(), run);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kMismatch);
      EXPECT_THAT(error.what(), HasSubstr("the plan does not fit"));
      return error.what();
    }
    return "accepted";
  }
  std::unique_ptr<Backend> backend_ = make_backend("cpu");
};

TEST_F(RunAttentionTest, EverySiteComputesWhatItsHeadsSay) {
  for (unsigned seed = 0; seed < 12; ++seed) {
    const auto plan = std::make_shared<const Plan>(test::random_parts(seed));
    PlannedAttention attention(*backend_, plan, run_of(*plan));
    EXPECT_EQ(attention.token_order(), plan->geometry().order);
    EXPECT_EQ(attention.step_reuse(), plan->info().step_reuse);
    for (int step = 0; step < plan->num_steps(); ++step) {
      if (plan->info().reuse_of(step) != StepReuse::kNone) continue;
      attention.begin_forward(step, GuidanceBranch::kConditional);
      for (int layer = 0; layer < plan->num_layers(); ++layer) {
        Layer data(plan->geometry(), seed * 100 + static_cast<unsigned>(step * 10 + layer));
        data.geometry.block_q = data.geometry.block_k = 64;  // the model's idea of blocks does not matter
        data.run(attention, layer);
        for (int token = 0; token < data.geometry.num_tokens(); token += 5) {
          for (int head = 0; head < data.geometry.heads; ++head) {
            const auto expected = data.expected(*plan, plan->head(step, layer, head), head, token);
            for (int d = 0; d < 64; d += 9) {
              ASSERT_NEAR(data.out[data.at(token, head, d)], expected[static_cast<size_t>(d)], 1e-5)
                  << "seed " << seed << " step " << step << " layer " << layer << " head " << head << " token "
                  << token;
            }
          }
        }
      }
    }
    const AttentionReport report = attention.report();
    EXPECT_EQ(report.calls, (plan->num_steps() - plan->info().num_reused_steps()) * plan->num_layers());
    EXPECT_EQ(report.dense_fallback_calls, 0);
    EXPECT_THAT(report.fallback_reason, IsEmpty());
    EXPECT_THAT(report.step_mapping, IsEmpty());
    EXPECT_NEAR(report.density, plan->density(), 1e-12);
    for (int step = 0; step < plan->num_steps(); ++step) {
      for (int layer = 0; layer < plan->num_layers(); ++layer) {
        EXPECT_NEAR(report.density_map[static_cast<size_t>(step)][static_cast<size_t>(layer)],
                    plan->density(step, layer), 1e-12);
      }
    }
  }
}

TEST_F(RunAttentionTest, EveryMismatchNamesBothValues) {
  EXPECT_EQ(refusal([](auto&) {}), "accepted");
  EXPECT_THAT(refusal([](auto& r) { r.transformers = of_fingerprint("abc"); }),
              AllOf(HasSubstr("00112233445566778899aabbccddeeff"), HasSubstr("'this model' with fingerprint abc")));
  EXPECT_THAT(refusal([](auto& r) { r.video_frames = 5; }),
              AllOf(HasSubstr("1 frame of 48×64"), HasSubstr("5 frames of 48×64")));
  EXPECT_THAT(refusal([](auto& r) { r.video_width = 80; }), AllOf(HasSubstr("48×64"), HasSubstr("80×64")));
  EXPECT_THAT(refusal([](auto& r) { r.geometry.height = 5; }),
              AllOf(HasSubstr("1×4×3 tokens"), HasSubstr("1×5×3 tokens")));
  EXPECT_EQ(refusal([](auto& r) { r.geometry.text_tokens = 7; }), "accepted") << "text may have any number";
  EXPECT_THAT(refusal([](auto& r) { r.transformers.resize(2); }),
              AllOf(HasSubstr("a model of 1 transformer, this run has 2")));
  EXPECT_THAT(refusal([](auto& r) { r.geometry.heads = 3; }), AllOf(HasSubstr("2 heads × 64"), HasSubstr("3 × 64")));
  EXPECT_THAT(refusal([](auto& r) { r.geometry.head_dim = 32; }), HasSubstr("2 × 32"));
  EXPECT_THAT(refusal([](auto& r) { r.num_layers = 8; }), AllOf(HasSubstr("1 layer"), HasSubstr("8")));
  EXPECT_EQ(refusal([](auto& r) { r.geometry.block_q = 128; }), "accepted") << "the plan brings the blocks";
}

TEST_F(RunAttentionTest, OnMismatchDenseRunsDenseAndCountsEveryCall) {
  RunDescription run = run_of(*example());
  run.transformers = of_fingerprint("abc");
  PlannedAttention attention(*backend_, example(), run, OnMismatch::kDense);
  DenseAttention dense(*backend_, 3, 1);
  EXPECT_EQ(attention.token_order(), TokenOrder::raster());
  for (int step = 0; step < 3; ++step) {
    Layer planned_data(run.geometry, 1), dense_data(run.geometry, 1);
    attention.begin_forward(step, GuidanceBranch::kConditional);
    dense.begin_forward(step, GuidanceBranch::kConditional);
    planned_data.run(attention, 0);
    dense_data.run(dense, 0);
    EXPECT_EQ(planned_data.out, dense_data.out);
  }
  const AttentionReport report = attention.report();
  EXPECT_EQ(report.calls, 3);
  EXPECT_EQ(report.dense_fallback_calls, 3);
  EXPECT_EQ(report.density, 1.0);
  EXPECT_THAT(report.fallback_reason, HasSubstr("fingerprint abc"));
  EXPECT_EQ(dense.report().dense_fallback_calls, 0) << "dense by choice is no fallback";
  EXPECT_EQ(dense.report().calls, 3);
  EXPECT_EQ(dense.report().density_map, (std::vector<std::vector<double>>{{1}, {1}, {1}}));
}

TEST_F(RunAttentionTest, AFineTuneIsWarnedOfWhereThatWasChosen) {
  RunDescription run = run_of(*example());
  run.transformers = of_fingerprint("abc");
  PlannedAttention attention(*backend_, example(), run, OnMismatch::kWarn);
  Layer(run.geometry, 1).run(attention, 0);
  const AttentionReport report = attention.report();
  EXPECT_EQ(report.dense_fallback_calls, 0);
  EXPECT_LT(report.density, 1) << "the plan is applied";
  ASSERT_TRUE(report.plan.has_value());
  EXPECT_EQ(report.plan->weights, "other");
  EXPECT_THAT(report.plan->warnings, ElementsAre(AllOf(HasSubstr("other weights"), HasSubstr("fingerprint abc"),
                                                       HasSubstr("00112233445566778899aabbccddeeff"))));
  run.video_frames = 5;
  EXPECT_THROW(PlannedAttention(*backend_, example(), run, OnMismatch::kWarn), Error) << "of another size";
}

TEST_F(RunAttentionTest, ACallOfAnotherSizeIsCaughtToo) {
  const auto plan = example();
  AttentionGeometry other = plan->geometry();
  other.width = 5;
  Layer data(other, 1);

  PlannedAttention strict(*backend_, plan, run_of(*plan));
  EXPECT_THROW(data.run(strict, 0), Error);

  PlannedAttention lenient(*backend_, plan, run_of(*plan), OnMismatch::kDense);
  data.run(lenient, 0);
  Layer fitting(plan->geometry(), 1);
  fitting.run(lenient, 0);
  EXPECT_EQ(lenient.report().calls, 2);
  EXPECT_EQ(lenient.report().dense_fallback_calls, 1);
  EXPECT_THAT(lenient.report().fallback_reason, AllOf(HasSubstr("1×4×3"), HasSubstr("1×4×5")));
}

TEST_F(RunAttentionTest, OtherStepsAreMappedByNoiseLevel) {
  const auto plan = example();  // noise 1, 0.75, 0.25
  RunDescription run = run_of(*plan);
  run.sigmas = {1.0, 0.9, 0.7, 0.52, 0.3, 0.1};
  run.flow_shift = 5;
  EXPECT_EQ(map_steps(*plan, run), (std::vector<int>{0, 0, 1, 1, 2, 2}));
  PlannedAttention attention(*backend_, plan, run);
  for (int step = 0; step < 6; ++step) {
    attention.begin_forward(step, GuidanceBranch::kConditional);
    Layer(run.geometry, 1).run(attention, 0);
  }
  const AttentionReport report = attention.report();
  EXPECT_EQ(
      report.step_mapping,
      "6 steps (flow shift 5) use the plan's 3 steps (flow shift 3) of the nearest noise level, at most 0.23 away: "
      "0–1→0, 2–3→1, 4–5→2");
  for (size_t step = 0; step < 6; ++step) {
    EXPECT_NEAR(report.density_map[step][0], plan->density(static_cast<int>(step / 2), 0), 1e-12) << step;
  }
  run.sigmas = plan->info().sigmas;
  run.sigmas[1] += 1e-7;  // rounding is no difference
  EXPECT_THAT(PlannedAttention(*backend_, plan, run).report().step_mapping, IsEmpty());
}

TEST_F(RunAttentionTest, OtherStepsReuseNoFartherThanThePlanDoes) {
  using enum StepReuse;
  const auto plan = std::make_shared<const Plan>(test::reuse_parts());
  // Noise 1, .9, .8 (linear), .7 (hold) of the first transformer; .5, .4, .25 (residual) of the second.
  RunDescription run = run_of(*plan);
  run.transformers = {run.transformers[0], run.transformers[0]};
  run.step_transformer = plan->info().step_transformer;
  const auto reuse_of = [&] { return map_reuse(*plan, run, map_steps(*plan, run)); };
  EXPECT_EQ(reuse_of(), plan->info().step_reuse);
  // Twice as many steps: both at .8 and at .75 lie within the plan's reach of its step, .7's two do not both.
  run.sigmas = {1, 0.95, 0.9, 0.82, 0.78, 0.72, 0.68, 0.5, 0.4, 0.26, 0.23};
  run.step_transformer = {0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1};
  EXPECT_EQ(reuse_of(),
            (std::vector{kNone, kNone, kNone, kLinear, kNone, kHold, kHold, kNone, kNone, kResidual, kNone}));
  PlannedAttention attention(*backend_, plan, run);
  EXPECT_THAT(attention.report().step_mapping, HasSubstr("the plan reuses 3 of its steps, this run 4"));
  // So few that each is far from what it would be made from.
  run.sigmas = {1, 0.7, 0.25};
  run.step_transformer = {0, 0, 1};
  EXPECT_THAT(PlannedAttention(*backend_, plan, run).report().step_mapping,
              HasSubstr("the plan reuses 3 of its steps, this run none (all lie too far"));
  // Another scheduler's rounding.
  run.sigmas = {1, 0.903, 0.797, 0.6986, 0.501, 0.404, 0.2478};
  run.step_transformer = plan->info().step_transformer;
  EXPECT_EQ(reuse_of(), plan->info().step_reuse);
  // Half as many: the step that ran last is too far away, or of the other transformer.
  run.sigmas = {1, 0.8, 0.6, 0.25};
  run.step_transformer = {0, 0, 0, 1};
  EXPECT_EQ(reuse_of(), (std::vector{kNone, kNone, kHold, kNone}));
  EXPECT_THAT(PlannedAttention(*backend_, example(), run_of(*example())).step_reuse(), IsEmpty());
}

TEST_F(RunAttentionTest, LinesAreNotDrawnOnFarFromStepsThatAreCloseTogether) {
  using enum StepReuse;
  const auto plan = std::make_shared<const Plan>(test::reuse_parts());  // step 2, at .8, draws on from 1 and .9
  RunDescription run = run_of(*plan);
  run.transformers = {run.transformers[0], run.transformers[0]};
  run.step_transformer = {0, 0, 0};
  const auto how = [&](double first, double second) {
    run.sigmas = {first, second, 0.84};
    return map_reuse(*plan, run, map_steps(*plan, run))[2];
  };
  EXPECT_EQ(how(1, 0.9), kLinear);
  EXPECT_EQ(how(0.96, 0.91), kLinear);
  EXPECT_EQ(how(0.95, 0.93), kNone) << "weights of 5.5 and −4.5 would make much of little";
  EXPECT_EQ(how(0.93, 0.93), kNone);
}

TEST_F(RunAttentionTest, TheFactoryChoosesByThePlan) {
  const auto plan = example();
  EXPECT_EQ(dynamic_cast<PlannedAttention*>(make_run_attention(*backend_, nullptr, run_of(*plan)).get()), nullptr);
  EXPECT_NE(dynamic_cast<PlannedAttention*>(make_run_attention(*backend_, plan, run_of(*plan)).get()), nullptr);
}

TEST(AttentionReport, OfTwoBranchesIsThatOfWhoeverComputesBoth) {
  AttentionMeter one(3, 2), other(3, 2), both(3, 2);
  for (AttentionMeter* meter : {&one, &other, &both}) meter->skip_step(1);
  const auto call = [&](AttentionMeter& meter, int step, int layer, int64_t computed, int64_t all) {
    const char* kernel = computed < 40 ? "planned" : "dense";
    meter.add(step, layer, computed, all, kernel);
    both.add(step, layer, computed, all, kernel);
  };
  call(one, 0, 0, 30, 100);
  call(other, 0, 0, 70, 130);  // more text
  call(one, 2, 1, 10, 100);
  call(other, 2, 1, 40, 130);
  other.add_fallback();
  both.add_fallback();
  AttentionReport report = one.report();
  report.add_branch(other.report());
  const AttentionReport expected = both.report();
  EXPECT_EQ(report.density, expected.density);
  EXPECT_EQ(report.density_map, expected.density_map);
  EXPECT_EQ(report.density_map[1], (std::vector<double>{0, 0}));
  EXPECT_EQ(report.calls, expected.calls);
  EXPECT_THAT(report.kernel_calls, ElementsAre(Pair("dense", 2), Pair("planned", 2)));
  EXPECT_EQ(report.kernel_calls, expected.kernel_calls);
  EXPECT_EQ(report.dense_fallback_calls, expected.dense_fallback_calls);
}

TEST(AttentionMeter, WeighsByPairsAndKeepsStrayCallsOutOfTheMap) {
  AttentionMeter meter(1, 2);
  meter.add(0, 0, 10, 100, "a");
  meter.add(0, 0, 30, 100, "b");
  meter.add(7, 0, 0, 200, "");  // a rank without heads ran none
  const AttentionReport report = meter.report();
  EXPECT_EQ(report.calls, 3);
  EXPECT_THAT(report.kernel_calls, ElementsAre(Pair("a", 1), Pair("b", 1)));
  EXPECT_DOUBLE_EQ(report.density, 0.1);
  EXPECT_DOUBLE_EQ(report.density_map[0][0], 0.2);
  EXPECT_DOUBLE_EQ(report.density_map[0][1], 1.0) << "no call was made there";
}

}  // namespace
}  // namespace calibatt
