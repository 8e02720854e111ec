#include "attention/planned_layers.h"

#include <utility>

#include "plan/head_costs.h"
#include "sparsity/text_extension.h"

namespace calibatt {
namespace {

constexpr size_t kMinLayers = 3;  // the one that runs, and two ahead of it

std::shared_ptr<const TextBehind> make_text(const Plan& plan, int num_tokens) {
  auto text = std::make_shared<TextBehind>();
  text->num_tokens = num_tokens;
  if (!plan.anchor_rows().query_tokens.empty() && num_tokens > 0) {
    AttentionGeometry geometry = plan.geometry();
    geometry.text_tokens += num_tokens;
    text->anchors = make_anchor_rows(geometry, plan.info().anchor_rows_per_frame);
  }
  return text;
}

}  // namespace

PlannedLayer::PlannedLayer(std::shared_ptr<const Plan> plan, int entry, int layer,
                           std::shared_ptr<const TextBehind> text)
    : plan_(std::move(plan)), entry_(entry), layer_(layer), text_(std::move(text)) {
  const AttentionGeometry& geometry = plan_->geometry();
  const int text_blocks = (text_->num_tokens + geometry.block_q - 1) / geometry.block_q;
  for (int head = 0; head < geometry.heads; ++head) {
    const HeadFacts& facts = plan_->facts(entry, layer, head);
    if (text_->num_tokens == 0) token_pairs_ += facts.token_pairs;
    size_bytes_ += sizeof(HeadPlan) + sizeof(HeadSchedule) + facts.num_intervals * sizeof(BlockInterval);
    if (!facts.has_intervals) continue;
    const size_t rows = static_cast<size_t>(geometry.num_query_blocks()) + static_cast<size_t>(text_blocks);
    size_bytes_ += rows * sizeof(uint32_t);
    if (text_->num_tokens > 0) size_bytes_ += rows * sizeof(BlockInterval);
  }
}

int PlannedLayer::num_queries(bool anchored) const {
  return anchored ? static_cast<int>(plan_->anchor_rows().query_tokens.size()) : plan_->geometry().num_tokens();
}

HeadPlan PlannedLayer::with_text(const HeadPlan& head) const {
  const AttentionGeometry& geometry = plan_->geometry();
  const int queries = num_queries(head.anchored), keys = geometry.num_tokens(), text = text_->num_tokens;
  if (!head.intervals) {
    token_pairs_ += int64_t{queries + text} * (keys + text);
    return head;
  }
  HeadPlan extended;
  extended.anchored = head.anchored;
  extended.intervals = extend_to_text(*head.intervals, {queries, keys, geometry.block_q, geometry.block_k}, text);
  token_pairs_ +=
      kept_token_pairs(*extended.intervals, queries + text, geometry.block_q, keys + text, geometry.block_k);
  return extended;
}

void PlannedLayer::decode() const {
  auto heads = plan_->layer(entry_, layer_);
  if (text_->num_tokens > 0) {
    auto extended = std::make_shared<PlanLayer>();
    token_pairs_ = 0;
    for (const HeadPlan& head : *heads) extended->push_back(with_text(head));
    heads = std::move(extended);
  }
  const AnchorRows* anchors = text_->num_tokens > 0 ? &text_->anchors : &plan_->anchor_rows();
  schedules_.assign(heads->size(), {});
  for (size_t i = 0; i < heads->size(); ++i) {
    const HeadPlan& head = (*heads)[i];
    if (head.intervals) schedules_[i].intervals = &*head.intervals;
    schedules_[i].summarize_skipped = plan_->info().summarize_skipped && head.intervals.has_value();
    if (head.anchored) schedules_[i].anchors = anchors;
  }
  heads_ = std::move(heads);
}

std::span<const HeadSchedule> PlannedLayer::heads() const {
  const std::lock_guard lock(mutex_);
  if (heads_ == nullptr) decode();
  return schedules_;
}

std::vector<double> PlannedLayer::head_costs() const {
  return calibatt::head_costs(*plan_, entry_, layer_, {}, text_->num_tokens);
}

int64_t PlannedLayer::token_pairs() const {
  const std::lock_guard lock(mutex_);
  if (heads_ == nullptr && text_->num_tokens > 0) decode();
  return token_pairs_;
}

PlannedLayers::PlannedLayers(std::shared_ptr<const Plan> plan, size_t max_bytes)
    : plan_(std::move(plan)), max_bytes_(max_bytes) {}

std::shared_ptr<const PlannedLayer> PlannedLayers::get(int entry, int layer, int text_tokens) {
  const auto found = place_of_.find({entry, layer, text_tokens});
  if (found != place_of_.end()) {
    recent_.splice(recent_.begin(), recent_, found->second);
    return *found->second;
  }
  std::shared_ptr<const TextBehind>& text = texts_[text_tokens];
  if (text == nullptr) text = make_text(*plan_, text_tokens);
  recent_.push_front(std::make_shared<const PlannedLayer>(plan_, entry, layer, text));
  place_of_[{entry, layer, text_tokens}] = recent_.begin();
  size_bytes_ += recent_.front()->size_bytes();
  while (size_bytes_ > max_bytes_ && recent_.size() > kMinLayers) {
    const PlannedLayer& oldest = *recent_.back();
    size_bytes_ -= oldest.size_bytes();
    place_of_.erase({oldest.entry(), oldest.layer(), oldest.num_text_tokens()});
    recent_.pop_back();
  }
  return recent_.front();
}

}  // namespace calibatt
