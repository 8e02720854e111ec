#include "models/prompt_embeddings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <stdexcept>
#include <thread>

namespace calibatt {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using TokenIds = PromptEmbeddings::TokenIds;

/// A text encoder that writes down how often it is read, and for what: the sum of a prompt's tokens is its embedding.
class CountedEncoder {
 public:
  std::vector<float> of(const std::vector<TokenIds>& prompts) {
    std::vector<float> sums;
    for (const Tensor& each : embeddings_.of(prompts, {}).of_prompts) sums.push_back(*each.f32());
    return sums;
  }
  void expect(std::vector<TokenIds> prompts) { embeddings_.expect(std::move(prompts)); }
  std::vector<std::vector<TokenIds>> readings;  ///< the prompts of each
  bool fails = false;

 private:
  PromptEmbeddings embeddings_{[this](const std::vector<TokenIds>& prompts, const WorkProgress&) {
    readings.push_back(prompts);
    if (fails) throw std::runtime_error("a torn file");
    std::vector<Tensor> made;
    for (const TokenIds& prompt : prompts) {
      Tensor sum = Tensor::zeros(DType::kF32, {1});
      for (const int32_t id : prompt) *sum.f32() += static_cast<float>(id);
      made.push_back(std::move(sum));
    }
    return made;
  }};
};

TEST(PromptEmbeddings, WithoutExpectationsEachRunIsReadFor) {
  CountedEncoder encoder;
  EXPECT_THAT(encoder.of({{1, 2}, {7}}), ElementsAre(3, 7));
  EXPECT_THAT(encoder.of({{1, 2}, {7}}), ElementsAre(3, 7)) << "the same once more, as bench does";
  EXPECT_THAT(encoder.of({{4}, {7}}), ElementsAre(4, 7));
  EXPECT_THAT(encoder.readings, ElementsAre(ElementsAre(TokenIds{1, 2}, TokenIds{7}), ElementsAre(TokenIds{4})));
}

TEST(PromptEmbeddings, OneReadingServesThirtyTwoPrompts) {
  CountedEncoder encoder;
  const TokenIds negative{1000};
  std::vector<TokenIds> prompts;
  for (int32_t prompt = 0; prompt < 70; ++prompt) prompts.push_back({prompt, 1});
  encoder.expect(prompts);
  for (const TokenIds& prompt : prompts) {
    EXPECT_THAT(encoder.of({prompt, negative}), ElementsAre(static_cast<float>(prompt[0] + 1), 1000));
  }
  ASSERT_EQ(encoder.readings.size(), 3u);
  EXPECT_EQ(encoder.readings[0].size(), 32u) << "31 of them and the negative one";
  EXPECT_EQ(encoder.readings[1].size(), 32u) << "which is kept";
  EXPECT_EQ(encoder.readings[2].size(), 7u);
}

TEST(PromptEmbeddings, GoesOnWhereARunIs) {
  CountedEncoder encoder;
  encoder.expect({{1}, {2}, {2}, {3}});
  EXPECT_THAT(encoder.of({{2}}), ElementsAre(2));  // the first was made before, by another process
  EXPECT_THAT(encoder.readings, ElementsAre(ElementsAre(TokenIds{2}, TokenIds{3})));
  EXPECT_THAT(encoder.of({{3}}), ElementsAre(3));
  EXPECT_THAT(encoder.of({{9}}), ElementsAre(9));  // one that nobody expected
  EXPECT_THAT(encoder.readings.back(), ElementsAre(TokenIds{9}));
}

TEST(PromptEmbeddings, AFailureKeepsNothingHalf) {
  CountedEncoder encoder;
  encoder.expect({{1}, {2}});
  encoder.fails = true;
  EXPECT_THROW(encoder.of({{1}}), std::runtime_error);
  encoder.fails = false;
  EXPECT_THAT(encoder.of({{1}}), ElementsAre(1));
  EXPECT_THAT(encoder.of({{2}}), ElementsAre(2));
  EXPECT_EQ(encoder.readings.size(), 2u);
}

// A run that waits for the reading tells of its own share alone, and so do those that find what they need.
TEST(PromptEmbeddings, TimeIsSharedAmongThePromptsOfAReading) {
  using std::chrono::milliseconds;
  using Seconds = std::chrono::duration<double>;
  constexpr milliseconds kReading{20};
  PromptEmbeddings embeddings([&](const std::vector<TokenIds>& prompts, const WorkProgress&) {
    std::this_thread::sleep_for(kReading);
    return std::vector<Tensor>(prompts.size(), Tensor::zeros(DType::kF32, {1}));
  });
  embeddings.expect({{1}, {2}, {3}, {4}});
  const auto share_of = [&](const TokenIds& prompt, double& elsewhere) {
    const auto begin = std::chrono::steady_clock::now();
    elsewhere = embeddings.of({prompt}, {}).seconds_elsewhere;
    return Seconds(std::chrono::steady_clock::now() - begin).count() + elsewhere;
  };
  const double share = Seconds(kReading).count() / 4;
  double elsewhere = 0;
  EXPECT_GE(share_of({1}, elsewhere), share);
  EXPECT_LE(elsewhere, -3 * share) << "what it did for the other three";
  EXPECT_GE(share_of({2}, elsewhere), share) << "though it waited for nothing";
}

}  // namespace
}  // namespace calibatt
