// Joint attention: tokens of text behind the video's, in another number for each branch of guidance.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "attention/test_attention.h"
#include "backend/cpu/make_backend.h"

namespace calibatt {
namespace {

using test::Layer;
using test::run_of;

// Video tokens and blocks as the plan has them; does the head compute this pair of the run's tokens? packed: the
// query's number among those that the head computes.
bool computed(const Plan& plan, const HeadPlan& head, int num_queries, int packed, int key, int text_tokens) {
  const AttentionGeometry& geometry = plan.geometry();
  const int row = packed / geometry.block_q, column = key / geometry.block_k, num_video = geometry.num_tokens();
  const bool text_in_row = text_tokens > 0 && (row + 1) * geometry.block_q > num_queries;
  const bool text_in_column = text_tokens > 0 && (column + 1) * geometry.block_k > num_video;
  return text_in_row || text_in_column || !head.intervals || head.intervals->to_mask().kept(row, column);
}

// One output row, in obvious loops over tokens.
std::vector<double> expected(const Layer& layer, const Plan& plan, const HeadPlan& head_plan, int head, int token) {
  const int text_tokens = layer.geometry.text_tokens, num_tokens = layer.geometry.num_tokens();
  AnchorRows anchors;
  if (head_plan.anchored) anchors = make_anchor_rows(layer.geometry, plan.info().anchor_rows_per_frame);
  const int packed = head_plan.anchored ? anchors.source_of[static_cast<size_t>(token)] : token;
  const int query = head_plan.anchored ? anchors.query_tokens[static_cast<size_t>(packed)] : token;
  const int num_queries =
      (head_plan.anchored ? static_cast<int>(anchors.query_tokens.size()) : num_tokens) - text_tokens;
  std::vector<double> result(static_cast<size_t>(layer.geometry.head_dim)), key_row(result);
  double weight_sum = 0;
  for (int key = 0; key < num_tokens; ++key) {
    if (!computed(plan, head_plan, num_queries, packed, key, text_tokens)) continue;
    for (size_t d = 0; d < result.size(); ++d) key_row[d] = layer.k[layer.at(key, head, static_cast<int>(d))];
    const double weight = std::exp(layer.dot(query, head, key_row.data()));
    weight_sum += weight;
    for (size_t d = 0; d < result.size(); ++d) {
      result[d] += weight * layer.v[layer.at(key, head, static_cast<int>(d))];
    }
  }
  for (double& x : result) x /= weight_sum;
  return result;
}

// The computed pairs, counted one by one.
int64_t counted_pairs(const Plan& plan, const PlanLayer& heads, int text_tokens) {
  AttentionGeometry geometry = plan.geometry();
  int64_t pairs = 0;
  for (const HeadPlan& head : heads) {
    const int num_queries =
        head.anchored ? static_cast<int>(plan.anchor_rows().query_tokens.size()) : geometry.num_tokens();
    for (int query = 0; query < num_queries + text_tokens; ++query) {
      for (int key = 0; key < geometry.num_tokens() + text_tokens; ++key) {
        pairs += computed(plan, head, num_queries, query, key, text_tokens);
      }
    }
  }
  return pairs;
}

// A plan of random masks, anchored and dense heads, which drops what it skips.
std::shared_ptr<const Plan> random_plan(unsigned seed) {
  Plan::Parts parts = test::random_parts(seed);
  while (parts.geometry.text_tokens > 0) parts = test::random_parts(seed += 100);  // as versions 1 and 2 had it
  parts.summarize_skipped = false;
  return std::make_shared<const Plan>(std::move(parts));
}

TEST(PlannedText, EveryQuerySeesTheTextAndTheTextSeesEverything) {
  const auto backend = make_backend("cpu");
  for (unsigned seed = 0; seed < 8; ++seed) {
    const auto plan = random_plan(seed);
    PlannedAttention attention(*backend, plan, run_of(*plan));
    int64_t pairs = 0, all_pairs = 0;
    for (int step = 0; step < plan->num_steps(); ++step) {
      // One prompt's text is longer than the other's: a token, part of a block, several blocks, none at all.
      const int texts[2] = {step % 2 == 0 ? 23 : 1, step % 3 == 0 ? 0 : 5};
      for (const int branch : {0, 1}) {
        attention.begin_forward(step, branch == 0 ? GuidanceBranch::kConditional : GuidanceBranch::kUnconditional);
        for (int number = 0; number < plan->num_layers(); ++number) {
          AttentionGeometry geometry = plan->geometry();
          geometry.text_tokens = texts[branch];
          Layer layer(geometry, seed * 100 + static_cast<unsigned>(step * 10 + number));
          layer.run(attention, number);
          pairs += counted_pairs(*plan, *plan->layer(plan->entry_of(step), number), geometry.text_tokens);
          all_pairs += int64_t{geometry.num_tokens()} * geometry.num_tokens() * geometry.heads;
          for (int token = 0; token < geometry.num_tokens(); token += 3) {
            for (int head = 0; head < geometry.heads; ++head) {
              const auto row = expected(layer, *plan, plan->head(step, number, head), head, token);
              for (int d = 0; d < 64; d += 9) {
                ASSERT_NEAR(layer.out[layer.at(token, head, d)], row[static_cast<size_t>(d)], 1e-5)
                    << "seed " << seed << " step " << step << " layer " << number << " head " << head << " token "
                    << token << " with " << geometry.text_tokens << " text tokens";
              }
            }
          }
        }
      }
    }
    EXPECT_NEAR(attention.report().density, static_cast<double>(pairs) / static_cast<double>(all_pairs), 1e-12);
    EXPECT_EQ(attention.report().dense_fallback_calls, 0);
  }
}

TEST(PlannedText, AnOldPlanWithTextInItsBlocksHoldsForItsOwnNumberAlone) {
  const auto backend = make_backend("cpu");
  const auto plan = std::make_shared<const Plan>(test::fixture_parts("tiles"));  // 4 text tokens
  PlannedAttention attention(*backend, plan, run_of(*plan));
  AttentionGeometry geometry = plan->geometry();
  Layer(geometry, 1).run(attention, 0);
  geometry.text_tokens = 5;
  Layer other(geometry, 1);
  EXPECT_THROW(other.run(attention, 0), Error);
}

}  // namespace
}  // namespace calibatt
