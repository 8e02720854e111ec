#include "attention/planned_layers.h"

#include <iterator>
#include <utility>

namespace calibatt {
namespace {

constexpr size_t kMinLayers = 3;  // the one that runs, and two ahead of it

}  // namespace

PlannedLayer::PlannedLayer(std::shared_ptr<const Plan> plan, int entry, int layer)
    : plan_(std::move(plan)), entry_(entry), layer_(layer) {
  for (int head = 0; head < plan_->geometry().heads; ++head) {
    const HeadFacts& facts = plan_->facts(entry, layer, head);
    token_pairs_ += facts.token_pairs;
    size_bytes_ += sizeof(HeadPlan) + sizeof(HeadSchedule) + facts.num_intervals * sizeof(BlockInterval);
    if (facts.has_intervals) {
      size_bytes_ += static_cast<size_t>(plan_->geometry().num_query_blocks()) * sizeof(uint32_t);
    }
  }
}

std::span<const HeadSchedule> PlannedLayer::heads() const {
  const std::lock_guard lock(mutex_);
  if (heads_ == nullptr) {
    auto heads = plan_->layer(entry_, layer_);
    schedules_.assign(heads->size(), {});
    for (size_t i = 0; i < heads->size(); ++i) {
      const HeadPlan& head = (*heads)[i];
      if (head.intervals) schedules_[i].intervals = &*head.intervals;
      schedules_[i].summarize_skipped = plan_->info().summarize_skipped && head.intervals.has_value();
      if (head.anchored) schedules_[i].anchors = &plan_->anchor_rows();
    }
    heads_ = std::move(heads);
  }
  return schedules_;
}

PlannedLayers::PlannedLayers(std::shared_ptr<const Plan> plan, size_t max_bytes)
    : plan_(std::move(plan)), max_bytes_(max_bytes) {
  place_of_.assign(static_cast<size_t>(plan_->num_entries()) * static_cast<size_t>(plan_->num_layers()), recent_.end());
}

std::shared_ptr<const PlannedLayer> PlannedLayers::get(int entry, int layer) {
  const auto place_of = [this](int e, int l) -> auto& {
    return place_of_[static_cast<size_t>(e) * static_cast<size_t>(plan_->num_layers()) + static_cast<size_t>(l)];
  };
  auto& place = place_of(entry, layer);
  if (place != recent_.end()) {
    recent_.splice(recent_.begin(), recent_, place);
    return *place;
  }
  recent_.push_front(std::make_shared<const PlannedLayer>(plan_, entry, layer));
  place = recent_.begin();
  size_bytes_ += recent_.front()->size_bytes();
  while (size_bytes_ > max_bytes_ && recent_.size() > kMinLayers) {
    const PlannedLayer& oldest = *recent_.back();
    size_bytes_ -= oldest.size_bytes();
    place_of(oldest.entry(), oldest.layer()) = recent_.end();
    recent_.pop_back();
  }
  return recent_.front();
}

}  // namespace calibatt
