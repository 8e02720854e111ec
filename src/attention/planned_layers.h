#pragma once

#include <cstddef>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "backend/attention_call.h"
#include "plan/plan.h"

namespace calibatt {

/// One (entry, layer) of a plan as a call's schedules, decoded when first asked for, by whichever thread asks.
class PlannedLayer : public ScheduleSource {
 public:
  PlannedLayer(std::shared_ptr<const Plan> plan, int entry, int layer);

  /// Throws what Plan::layer throws.
  std::span<const HeadSchedule> heads() const override;

  int entry() const { return entry_; }
  int layer() const { return layer_; }
  int64_t token_pairs() const { return token_pairs_; }  ///< computed, over all heads
  size_t size_bytes() const { return size_bytes_; }     ///< when decoded, about

 private:
  std::shared_ptr<const Plan> plan_;
  int entry_, layer_;
  int64_t token_pairs_ = 0;
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
  std::shared_ptr<const PlannedLayer> get(int entry, int layer);
  size_t num_layers() const { return recent_.size(); }
  size_t size_bytes() const { return size_bytes_; }

 private:
  std::shared_ptr<const Plan> plan_;
  size_t max_bytes_, size_bytes_ = 0;
  std::list<std::shared_ptr<const PlannedLayer>> recent_;                           // the last used first
  std::vector<std::list<std::shared_ptr<const PlannedLayer>>::iterator> place_of_;  // [entries, layers]; end: absent
};

}  // namespace calibatt
