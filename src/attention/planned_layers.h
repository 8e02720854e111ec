#pragma once

#include <cstddef>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <tuple>
#include <vector>

#include "backend/attention_call.h"
#include "plan/plan.h"

namespace calibatt {

/// The tokens of text that a run has behind those that its plan speaks of.
struct TextBehind {
  int num_tokens = 0;
  AnchorRows anchors;  ///< the plan's, with the text among the queries; empty where the plan has none
};

/// One (entry, layer) of a plan as a call's schedules, decoded when first asked for, by whichever thread asks. With
/// text behind the plan's tokens masks are extended to it (sparsity/text_extension.h).
class PlannedLayer : public ScheduleSource {
 public:
  PlannedLayer(std::shared_ptr<const Plan> plan, int entry, int layer, std::shared_ptr<const TextBehind> text);

  /// Throws what Plan::layer throws.
  std::span<const HeadSchedule> heads() const override;
  std::vector<double> head_costs() const override;

  int entry() const { return entry_; }
  int layer() const { return layer_; }
  int num_text_tokens() const { return text_->num_tokens; }
  int64_t token_pairs() const;                       ///< computed, over all heads; decodes where there is text
  size_t size_bytes() const { return size_bytes_; }  ///< when decoded, about

 private:
  void decode() const;
  HeadPlan with_text(const HeadPlan& head) const;
  int num_queries(bool anchored) const;  ///< without the text behind

  std::shared_ptr<const Plan> plan_;
  int entry_, layer_;
  std::shared_ptr<const TextBehind> text_;
  mutable int64_t token_pairs_ = 0;
  size_t size_bytes_ = 0;
  mutable std::mutex mutex_;
  mutable std::shared_ptr<const PlanLayer> heads_;  // null until decoded
  mutable std::vector<HeadSchedule> schedules_;     // pointing into it
};

/// The layers of a plan that were used last. Holds at most `max_bytes` of decoded intervals, but always as many layers
/// as a run looks ahead. Layers in use elsewhere live on when they are dropped here. One thread.
class PlannedLayers {
 public:
  PlannedLayers(std::shared_ptr<const Plan> plan, size_t max_bytes);
  /// text_tokens: behind the plan's tokens.
  std::shared_ptr<const PlannedLayer> get(int entry, int layer, int text_tokens = 0);
  size_t num_layers() const { return recent_.size(); }
  size_t size_bytes() const { return size_bytes_; }

 private:
  std::shared_ptr<const Plan> plan_;
  size_t max_bytes_, size_bytes_ = 0;
  using Key = std::tuple<int, int, int>;                   // entry, layer, tokens of text
  std::list<std::shared_ptr<const PlannedLayer>> recent_;  // the last used first
  std::map<Key, std::list<std::shared_ptr<const PlannedLayer>>::iterator> place_of_;
  std::map<int, std::shared_ptr<const TextBehind>> texts_;  // a run has few: one per branch of guidance
};

}  // namespace calibatt
