// Forwards of Mochi's golden models on several ranks against one: video shared, text on every rank.
#include <gtest/gtest.h>

#include <cmath>

#include "golden_rank.h"
#include "models/mochi/transformer.h"

namespace calibatt {
namespace {

/// What one rank makes of one forward.
struct Made {
  Tensor prediction;
  std::vector<Tensor> text;  // the text's stream behind each block, on the host
};

struct MochiRanks : GoldenRanks<MochiTransformer> {
  MochiRanks() : GoldenRanks("mochi") {}

  Tensor text() const {
    const std::string name = std::string(case_.name) + ".text";
    return file_.contains(name) ? file_.get(name) : Tensor();
  }
  /// Another prompt than the golden one.
  Tensor text_of(int64_t tokens, const MochiTransformer& model) const {
    Tensor text(DType::kF32, {tokens, model.config().text_embed_dim});
    for (int64_t i = 0; i < text.size(); ++i) text.f32()[i] = std::sin(static_cast<float>(i));
    return text;
  }
  Made forward(Backend& backend, MochiTransformer& model, RunAttention& attention, const Tensor& text,
               GuidanceBranch branch = GuidanceBranch::kConditional) const {
    Made made;
    attention.begin_forward(0, branch);
    made.prediction = model.forward(golden("latents"), golden("timestep").f32()[0], model.prepare_prompt(text),
                                    attention, nullptr, [&](int, const Tensor&, const Tensor& stream) {
                                      made.text.push_back(stream.empty() ? Tensor() : backend.to_host(stream).clone());
                                    });
    return made;
  }
  Made forward(const LoadedRank<MochiTransformer>& at, const Tensor& text,
               GuidanceBranch branch = GuidanceBranch::kConditional) const {
    return forward(*at.rank.backend, at.model, at.attention, text, branch);
  }
  /// Both forwards of a guided step by one rank. The other branch's text is of another length.
  std::vector<Made> alone(bool planned, int64_t other_tokens) const {
    const auto backend = make_backend(name_);
    MochiTransformer model = load(*backend);
    const RunDescription run = describe(model);
    const auto attention = make_run_attention(*backend, planned ? plan_for(run) : nullptr, run);
    std::vector<Made> made{forward(*backend, model, *attention, text())};
    const Tensor other = other_tokens > 0 ? text_of(other_tokens, model) : Tensor();
    made.push_back(forward(*backend, model, *attention, other, GuidanceBranch::kUnconditional));
    return made;
  }
  void expect_same(const Made& made, const Made& expected, const std::string& where) const {
    EXPECT_LT(relative_error(made.prediction, expected.prediction), rounding_of(name_)) << where;
    ASSERT_EQ(made.text.size(), expected.text.size());
    for (size_t layer = 0; layer < made.text.size(); ++layer) {
      ASSERT_EQ(made.text[layer].empty(), expected.text[layer].empty()) << where;
      if (made.text[layer].empty()) continue;
      EXPECT_LT(relative_error(made.text[layer], expected.text[layer]), rounding_of(name_))
          << where << ", text of layer " << layer;
    }
  }
};

TEST_P(MochiRanks, ComputeTheForwardsOfBothBranchesAsOneDoes) {
  constexpr int64_t kOtherTokens = 11;
  for (const bool planned : {false, true}) {
    const std::vector<Made> expected = alone(planned, kOtherTokens);
    for (const int num_ranks : {1, 2, 3, 5}) {  // more than heads, too
      on_ranks(num_ranks, {.planned = planned}, [&](const LoadedRank<MochiTransformer>& at) {
        const Made first = forward(at, text());
        expect_same(first, expected[0], at.where);
        if (!planned) {
          EXPECT_LT(relative_error(first.prediction, golden("output")), 1e-5) << at.where;
        }
        expect_same(forward(at, text_of(kOtherTokens, at.model), GuidanceBranch::kUnconditional), expected[1],
                    at.where + ", the other branch");
        EXPECT_EQ(at.attention.report().dense_fallback_calls, 0);
      });
    }
  }
}

// Each group's text is as long as its own branch's; there may be none.
TEST_P(MochiRanks, InTwoGroupsComputeABranchOfGuidanceEach) {
  for (const int64_t other_tokens : {0, 31}) {
    for (const bool planned : {false, true}) {
      const std::vector<Made> expected = alone(planned, other_tokens);
      on_groups(4, 2, {.planned = planned}, [&](const LoadedRank<MochiTransformer>& at) {
        const bool other = at.index >= 2;
        const Tensor own = !other ? text() : other_tokens > 0 ? text_of(other_tokens, at.model) : Tensor();
        expect_same(forward(at, own, other ? GuidanceBranch::kUnconditional : GuidanceBranch::kConditional),
                    expected[other ? 1 : 0],
                    at.where + ", " + std::to_string(other_tokens) + " tokens of the other text");
      });
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, MochiRanks,
                         testing::Combine(kBackends,
                                          testing::Values(GoldenCase{"head128", "odd"}, GoldenCase{"head128", "line"},
                                                          GoldenCase{"tiny", "odd"}, GoldenCase{"tiny", "even"},
                                                          GoldenCase{"plain", "full"}, GoldenCase{"deep", "odd"},
                                                          GoldenCase{"deep", "empty"}, GoldenCase{"single", "odd"})),
                         backend_and_case);

struct MochiRanksOfTiny : MochiRanks {};

TEST_P(MochiRanksOfTiny, OneThatFailsWithinAForwardEndsAllWithItsReason) {
  const std::optional<Error> error = error_on_ranks(3, [&](const LoadedRank<MochiTransformer>& at) {
    at.attention.begin_forward(0, GuidanceBranch::kConditional);
    at.model.forward(golden("latents"), 500, at.model.prepare_prompt(text()), at.attention, nullptr,
                     [&](int layer, const Tensor&, const Tensor&) {
                       if (at.index == 1 && layer == 0) throw Error(ErrorKind::kDevice, "layer 0: the GPU is lost");
                     });
  });
  ASSERT_TRUE(error) << "nothing was thrown";
  EXPECT_STREQ(error->what(), "rank 1 of 3: layer 0: the GPU is lost");
}

// A row's scale is its own, whichever rank has it. By how much 8 bits err here is in mochi_eight_bits_test.cpp: .037.
TEST_P(MochiRanksOfTiny, ComputeIn8BitsAsOneDoes) {
  if (name_ != "cpu") GTEST_SKIP() << "widths that tensor cores do not take";
  const auto backend = make_backend(name_);
  const ModelLoadOptions eight_bits{.eight_bit_layers = true};
  MochiTransformer model = load(*backend, eight_bits, DType::kBF16);
  GoldenDenseAttention attention(*backend);
  const Tensor alone = model.forward(golden("latents"), 500, model.prepare_prompt(text()), attention);
  const Loading loading{.dtype = DType::kBF16, .options = [&](int) { return eight_bits; }};
  for (const int num_ranks : {2, 3}) {
    on_ranks(num_ranks, loading, [&](const LoadedRank<MochiTransformer>& at) {
      at.attention.begin_forward(0, GuidanceBranch::kConditional);
      const Tensor output = at.model.forward(golden("latents"), 500, at.model.prepare_prompt(text()), at.attention);
      EXPECT_LT(relative_error(output, alone), 5e-3) << at.where;
    });
  }
}

TEST_P(MochiRanksOfTiny, MoreThanTokensAreRefused) {
  const std::optional<Error> error = error_on_ranks(2, [&](const LoadedRank<MochiTransformer>& at) {
    const MochiTransformerConfig& config = at.model.config();
    RunDescription run = describe(at.model);
    run.geometry = at.model.geometry(1, config.patch_size, config.patch_size);
    const auto attention = at.rank.attention(nullptr, run);
    at.model.forward(Tensor::zeros(DType::kF32, {config.in_channels, 1, config.patch_size, config.patch_size}), 500,
                     at.model.prepare_prompt(text()), *attention);
  });
  ASSERT_TRUE(error) << "it was computed";
  EXPECT_EQ(error->kind(), ErrorKind::kUsage);
  EXPECT_NE(std::string(error->what()).find("1 token cannot be shared by 2 ranks"), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Models, MochiRanksOfTiny,
                         testing::Combine(kBackends, testing::Values(GoldenCase{"tiny", "odd"})), backend_and_case);

}  // namespace
}  // namespace calibatt
