#include "backend/slot_ring.h"

#include <gtest/gtest.h>

namespace calibatt {
namespace {

TEST(SlotRing, BlocksInTurnAlwaysFindTheNextSlotFree) {
  SlotRing ring(2);
  constexpr int kBlocks = 5;
  std::vector<int> held(2, -1);  // what the caller put into the slots
  int fills = 0;
  for (int forward = 0; forward < 3; ++forward) {
    for (int block = 0; block < kBlocks; ++block) {
      const SlotRing::Place place = ring.begin_use(block);
      EXPECT_EQ(place.fill, forward == 0 && block == 0) << "all but the very first were announced";
      if (place.fill) held[static_cast<size_t>(place.slot)] = block, ++fills;
      const auto next = ring.announce((block + 1) % kBlocks);
      ASSERT_TRUE(next.has_value());
      EXPECT_TRUE(next->fill);
      EXPECT_NE(next->slot, place.slot) << "what is in use is never overwritten";
      held[static_cast<size_t>(next->slot)] = (block + 1) % kBlocks, ++fills;
      EXPECT_EQ(held[static_cast<size_t>(place.slot)], block);
      ring.end_use(block);
    }
  }
  EXPECT_EQ(fills, 3 * kBlocks + 1);
}

TEST(SlotRing, WhatFitsIsFilledOnce) {
  SlotRing ring(2);
  int fills = 0;
  for (int turn = 0; turn < 6; ++turn) {
    fills += ring.begin_use(turn % 2).fill;
    fills += ring.announce((turn + 1) % 2)->fill;
    ring.end_use(turn % 2);
  }
  EXPECT_EQ(fills, 2);
}

TEST(SlotRing, AnAnnouncementNobodyCameForDoesNotBlockTheRing) {
  SlotRing ring(2);
  ring.begin_use(0);
  ring.announce(1);
  ring.end_use(0);  // here the run is interrupted; another model part begins
  for (int item = 10; item < 14; ++item) {
    const auto place = ring.begin_use(item);
    const auto next = ring.announce(item + 1);
    ASSERT_TRUE(next.has_value());
    EXPECT_NE(next->slot, place.slot);
    ring.end_use(item);
  }
}

TEST(SlotRing, NoRoomWhileAllAreInUse) {
  SlotRing ring(2);
  ring.begin_use(0);
  ring.begin_use(1);
  EXPECT_FALSE(ring.announce(2).has_value());
  EXPECT_FALSE(ring.announce(1)->fill);
  ring.end_use(0);
  EXPECT_EQ(ring.announce(2)->slot, 0);
  ring.end_use(1);
}

TEST(SlotRing, WhatIsForgottenMustBeFilledAgain) {
  SlotRing ring(2);
  ring.begin_use(0);
  ring.end_use(0);
  EXPECT_FALSE(ring.announce(0)->fill);
  ring.forget(0);
  EXPECT_TRUE(ring.announce(0)->fill);
  ring.clear();
  EXPECT_TRUE(ring.begin_use(0).fill);
}

}  // namespace
}  // namespace calibatt
