#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "attention/run_attention.h"
#include "attention/test_attention.h"
#include "plan/test_plans.h"

namespace calibatt {
namespace {

using test::Layer;
using test::run_of;

using ::testing::ElementsAre;
using ::testing::Pair;

// Which calls were to be in 8 bits, and what was left to be done to their queries and keys.
class BitsEngine : public AttentionEngine {
 public:
  explicit BitsEngine(bool takes_norm = false) : takes_norm_(takes_norm) {}
  bool takes_norm() const override { return takes_norm_; }
  std::string_view attention(const AttentionCall& call) override {
    eight_bits.push_back(call.eight_bits);
    norms.push_back(call.norm);
    if (call.norm != nullptr) {
      EXPECT_EQ(call.q.data, call.norm->query.data);
      EXPECT_EQ(call.k.data, call.norm->key.data);
    }
    return call.eight_bits ? "few bits" : "many bits";
  }
  std::vector<bool> eight_bits;
  std::vector<const QueryKeyNorm*> norms;

 private:
  bool takes_norm_;
};

TEST(EightBitSteps, AreThoseFromTheGivenOneOn) {
  const auto plan = std::make_shared<const Plan>(test::example_parts());
  BitsEngine engine;
  const auto expect_steps = [&](RunAttention& attention) {
    Layer data(plan->geometry(), 1);
    engine.eight_bits.clear();
    attention.begin_forward(0, GuidanceBranch::kConditional);
    data.run(attention, 0);  // before it is told
    attention.use_eight_bits({false, false, true});
    for (int step = 0; step < 3; ++step) {
      attention.begin_forward(step, GuidanceBranch::kConditional);
      data.run(attention, 0);
    }
    EXPECT_THAT(engine.eight_bits, ElementsAre(false, false, false, true));
    EXPECT_THAT(attention.report().kernel_calls, ElementsAre(Pair("few bits", 1), Pair("many bits", 3)));
  };
  expect_steps(*make_run_attention(engine, nullptr, run_of(*plan)));
  expect_steps(*make_run_attention(engine, plan, run_of(*plan)));
}

TEST(EightBitSteps, AloneMayLeaveTheNormOfQueriesAndKeysToTheEngine) {
  const auto plan = std::make_shared<const Plan>(test::example_parts());
  for (const bool planned : {false, true}) {
    BitsEngine other, engine(true);
    const auto without = make_run_attention(other, planned ? plan : nullptr, run_of(*plan)),
               attention = make_run_attention(engine, planned ? plan : nullptr, run_of(*plan));
    for (RunAttention* each : {without.get(), attention.get()}) each->use_eight_bits({false, true});
    Layer data(plan->geometry(), 1);
    const QueryKeyNorm norm{.query = data.view<HeadsView>(data.q), .key = data.view<HeadsView>(data.k)};
    const auto step = [&](RunAttention& each, int at) -> RunAttention& {
      each.begin_forward(at, GuidanceBranch::kConditional);
      return each;
    };
    EXPECT_FALSE(step(*without, 1).takes_norm());
    EXPECT_FALSE(step(*attention, 0).takes_norm());
    data.run(*attention, 0);
    ASSERT_TRUE(step(*attention, 1).takes_norm());
    attention->norm_and_attend(0, data.geometry, norm, data.view<ConstHeadsView>(data.v),
                               data.view<HeadsView>(data.out));
    data.run(*attention, 0);
    EXPECT_THAT(engine.norms, ElementsAre(nullptr, &norm, nullptr));
    EXPECT_THAT(engine.eight_bits, ElementsAre(false, true, true));
  }
}

TEST(EightBitSteps, AreThePlansOfTheNearestNoiseLevel) {
  const auto plan = std::make_shared<const Plan>(test::eight_bit_plan_parts());
  BitsEngine engine;
  RunDescription run = run_of(*plan);
  run.transformers = {run.transformers[0], run.transformers[0]};
  run.step_transformer = plan->info().step_transformer;
  EXPECT_EQ(PlannedAttention(engine, plan, run).planned_eight_bits(), plan->info().eight_bits);
  run.sigmas = {1, 0.88, 0.71, 0.69, 0.41};  // the last is of the second transformer, like the plan's last three
  run.step_transformer = {0, 0, 0, 0, 1};
  EXPECT_THAT(eight_bit_parts_names(PlannedAttention(engine, plan, run).planned_eight_bits()),
              ElementsAre("none", "attention", "attention+layers", "attention+layers", "attention+layers"));
  const auto silent = std::make_shared<const Plan>(test::reuse_parts());
  EXPECT_TRUE(PlannedAttention(engine, silent, run).planned_eight_bits().empty());
  EXPECT_TRUE(make_run_attention(engine, nullptr, run)->planned_eight_bits().empty());
  run.geometry.height += 1;
  EXPECT_TRUE(PlannedAttention(engine, plan, run, OnMismatch::kDense).planned_eight_bits().empty());
}

}  // namespace
}  // namespace calibatt
