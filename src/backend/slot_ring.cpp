#include "backend/slot_ring.h"

#include <algorithm>

#include "base/error.h"

namespace calibatt {

SlotRing::SlotRing(int num_slots) : slots_(static_cast<size_t>(num_slots)) {
  CALIBATT_ASSERT(num_slots > 0);
}

SlotRing::Slot* SlotRing::find(int64_t item) {
  const auto found = std::ranges::find_if(slots_, [&](const Slot& slot) { return slot.item == item; });
  return found != slots_.end() ? &*found : nullptr;
}

SlotRing::Slot* SlotRing::least_recent(State state) {
  Slot* best = nullptr;
  for (Slot& slot : slots_) {
    if (slot.state == state && (best == nullptr || slot.touched < best->touched)) best = &slot;
  }
  return best;
}

std::optional<SlotRing::Place> SlotRing::announce(int64_t item) {
  Slot* slot = find(item);
  const bool fill = slot == nullptr;
  if (slot == nullptr) slot = least_recent(State::kIdle);
  if (slot == nullptr) slot = least_recent(State::kAnnounced);
  if (slot == nullptr) return std::nullopt;
  if (slot->state != State::kInUse) *slot = {item, State::kAnnounced, ++clock_};
  return place(*slot, fill);
}

SlotRing::Place SlotRing::begin_use(int64_t item) {
  Slot* slot = find(item);
  const bool fill = slot == nullptr;
  if (slot == nullptr) slot = least_recent(State::kIdle);
  if (slot == nullptr) slot = least_recent(State::kAnnounced);
  CALIBATT_ASSERT(slot != nullptr && slot->state != State::kInUse);
  *slot = {item, State::kInUse, ++clock_};
  return place(*slot, fill);
}

void SlotRing::end_use(int64_t item) {
  Slot* const slot = find(item);
  CALIBATT_ASSERT(slot != nullptr && slot->state == State::kInUse);
  *slot = {item, State::kIdle, ++clock_};
}

void SlotRing::forget(int64_t item) {
  Slot* const slot = find(item);
  if (slot == nullptr) return;
  CALIBATT_ASSERT(slot->state != State::kInUse);
  *slot = {};
}

void SlotRing::clear() {
  for (Slot& slot : slots_) {
    CALIBATT_ASSERT(slot.state != State::kInUse);
    slot = {};
  }
}

}  // namespace calibatt
