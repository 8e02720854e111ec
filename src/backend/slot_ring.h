#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace calibatt {

/// Decides which of a few buffers holds which of many items that are used in turns (StreamedWeights): the bookkeeping
/// alone, without any memory. An item in use keeps its slot; one that was only announced keeps it until it was used or
/// another announcement needs the place (its user gave up); otherwise the slot that was left longest ago is taken.
class SlotRing {
 public:
  struct Place {
    int slot = 0;
    bool fill = false;  ///< the slot holds something else so far: the caller must fill it
  };

  explicit SlotRing(int num_slots);

  /// Makes room for an item that will be used next; nothing when every slot is in use.
  std::optional<Place> announce(int64_t item);
  /// The item's place until end_use. At most num_slots items may be in use at a time.
  Place begin_use(int64_t item);
  void end_use(int64_t item);

  void forget(int64_t item);  ///< its slot, if any, holds nothing from now on; not while it is in use
  void clear();               ///< the same for all

 private:
  enum class State { kIdle, kAnnounced, kInUse };
  struct Slot {
    std::optional<int64_t> item;
    State state = State::kIdle;
    uint64_t touched = 0;  ///< when it last changed its state
  };
  Slot* find(int64_t item);
  Slot* least_recent(State state);
  Place place(const Slot& slot, bool fill) const { return {static_cast<int>(&slot - slots_.data()), fill}; }

  std::vector<Slot> slots_;
  uint64_t clock_ = 0;
};

}  // namespace calibatt
