#include "models/prompt_embeddings.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/now_seconds.h"

namespace calibatt {

// The run's own first, then those that are expected behind the first of them.
std::vector<PromptEmbeddings::TokenIds> PromptEmbeddings::next_batch(const std::vector<TokenIds>& prompts) const {
  std::vector<TokenIds> batch;
  const auto add = [&](const TokenIds& prompt) {
    if (!kept_.contains(prompt) && std::ranges::find(batch, prompt) == batch.end()) batch.push_back(prompt);
  };
  for (const TokenIds& prompt : prompts) add(prompt);
  if (batch.empty()) return batch;
  for (auto next = std::ranges::find(expected_, prompts.front()); next != expected_.end(); ++next) {
    if (batch.size() >= kMostAtOnce) break;
    add(*next);
  }
  return batch;
}

void PromptEmbeddings::encode(const std::vector<TokenIds>& prompts, const WorkProgress& progress) {
  const std::vector<TokenIds> batch = next_batch(prompts);
  if (batch.empty()) return;
  const double begin = now_seconds();
  std::vector<Tensor> made = encode_all_(batch, progress);
  CALIBATT_ASSERT(made.size() == batch.size());
  const double share = (now_seconds() - begin) / static_cast<double>(batch.size());
  std::erase_if(kept_, [&](const auto& each) { return std::ranges::find(prompts, each.first) == prompts.end(); });
  for (size_t i = 0; i < batch.size(); ++i) kept_[batch[i]] = {std::move(made[i]), share};
}

PromptEmbeddings::Embeddings PromptEmbeddings::of(const std::vector<TokenIds>& prompts, const WorkProgress& progress) {
  const double begin = now_seconds();
  encode(prompts, progress);
  Embeddings result;
  for (const TokenIds& prompt : prompts) {
    const Kept& kept = kept_.at(prompt);
    result.of_prompts.push_back(kept.embedding);
    result.seconds_elsewhere += kept.seconds;
  }
  result.seconds_elsewhere -= now_seconds() - begin;
  return result;
}

}  // namespace calibatt
