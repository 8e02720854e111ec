#include "backend/rank_subgroup.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "backend/test_take_heads.h"
#include "backend/thread_ranks.h"
#include "base/error.h"

namespace calibatt {
namespace {

TEST(RankSubgroup, SendsWithinItselfAlone) {
  run_ranks(6, [](Communicator& all) {
    for (const int num_groups : {1, 2, 3, 6}) {
      RankSubgroup group(all, num_groups);
      const int size = 6 / num_groups;
      EXPECT_EQ(group.size(), size);
      EXPECT_EQ(group.rank(), all.rank() % size);
      const int32_t mine = all.rank();
      std::vector<int32_t> found(static_cast<size_t>(size), -1), expected;
      std::vector<Piece> receive;
      for (int32_t& each : found) receive.push_back({&each, sizeof(each)});
      group.all_gather({&mine, sizeof(mine)}, receive);
      for (int rank = 0; rank < size; ++rank) expected.push_back(all.rank() / size * size + rank);
      EXPECT_EQ(found, expected) << num_groups << " groups";
    }
  });
}

TEST(RankSubgroup, TakesHeadsWithinItselfAlone) {
  const test::TakenHeads heads{"a group's own", {{1, 4}, {0, 2, 3}}, 37, 16};
  run_ranks(6, [&](Communicator& all) {
    RankSubgroup group(all, 3);
    test::TakenHeads own = heads;
    own.seed = all.rank() / 2;
    test::HeadTaker(group, test::host_memory(), own).run();
  });
}

TEST(RankSubgroup, ARankThatFailsEndsTheOthersToo) {
  int ended = 0;
  try {
    run_ranks(4, [&](Communicator& all) {
      RankSubgroup group(all, 2);
      if (all.rank() == 3) throw Error(ErrorKind::kDevice, "lost");
      try {
        if (all.rank() == 0) {
          while (true) group.throw_if_ended();  // it computes, and calls nobody
        }
        group.barrier();
      } catch (const Error& error) {
        EXPECT_STREQ(error.what(), "rank 3 of 4 failed: lost");
        if (all.rank() == 0) ++ended;
        throw;
      }
    });
    ADD_FAILURE() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "rank 3 of 4: lost");
  }
  EXPECT_EQ(ended, 1);
}

}  // namespace
}  // namespace calibatt
