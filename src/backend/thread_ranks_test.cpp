#include "backend/thread_ranks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "backend/test_take_heads.h"
#include "base/error.h"

namespace calibatt {
namespace {

using ::testing::HasSubstr;

// What run_ranks throws, as text.
std::string error_of(int num_ranks, const std::function<void(Communicator&)>& body) {
  try {
    run_ranks(num_ranks, body);
  } catch (const std::exception& error) {
    return error.what();
  }
  return {};
}

TEST(ThreadRanks, AllToAllMovesPiecesOfAnySize) {
  // Rank r sends (r + 2·to) % 4 numbers to rank `to`, so that some pieces are empty.
  const auto count = [](int from, int to) { return static_cast<size_t>((from + 2 * to) % 4); };
  const auto number = [](int from, int to, size_t i) {
    return static_cast<int32_t>(1000 * from + 100 * to) + static_cast<int32_t>(i);
  };
  for (const int size : {1, 2, 3, 5, 8}) {
    run_ranks(size, [&](Communicator& ranks) {
      EXPECT_EQ(ranks.size(), size);
      for (int round = 0; round < 20; ++round) {
        std::vector<std::vector<int32_t>> sent(static_cast<size_t>(size)), received(static_cast<size_t>(size));
        std::vector<ConstPiece> send;
        std::vector<Piece> receive;
        for (int other = 0; other < size; ++other) {
          auto& out = sent[static_cast<size_t>(other)];
          auto& in = received[static_cast<size_t>(other)];
          for (size_t i = 0; i < count(ranks.rank(), other); ++i) out.push_back(number(ranks.rank(), other, i) + round);
          in.resize(count(other, ranks.rank()));
          send.push_back({out.data(), 4 * out.size()});
          receive.push_back({in.data(), 4 * in.size()});
        }
        ranks.all_to_all(send, receive);
        for (auto& out : sent) std::fill(out.begin(), out.end(), -1);  // they are ours again
        for (int other = 0; other < size; ++other) {
          for (size_t i = 0; i < received[static_cast<size_t>(other)].size(); ++i) {
            EXPECT_EQ(received[static_cast<size_t>(other)][i], number(other, ranks.rank(), i) + round);
          }
        }
      }
    });
  }
}

TEST(ThreadRanks, AllGatherAndBroadcast) {
  run_ranks(3, [](Communicator& ranks) {
    const std::vector<int32_t> mine(static_cast<size_t>(ranks.rank() + 1), ranks.rank());
    std::vector<int32_t> all(6, -1);
    ranks.all_gather({mine.data(), 4 * mine.size()}, std::vector<Piece>{{&all[0], 4}, {&all[1], 8}, {&all[3], 12}});
    EXPECT_EQ(all, (std::vector<int32_t>{0, 1, 1, 2, 2, 2}));
    int32_t number = 7 + ranks.rank();
    ranks.broadcast({&number, 4}, 2);
    EXPECT_EQ(number, 9);
  });
}

TEST(ThreadRanks, HeadsAreTakenAndGivenBack) {
  for (const test::TakenHeads& each : test::taken_heads_cases()) {
    run_ranks(each.num_ranks(), [&](Communicator& ranks) { test::HeadTaker(ranks, test::host_memory(), each).run(); });
  }
}

TEST(ThreadRanks, NobodyPassesABarrierBeforeTheLastIsThere) {
  std::atomic<int> arrived = 0;
  run_ranks(4, [&](Communicator& ranks) {
    for (int round = 1; round <= 50; ++round) {
      ++arrived;
      ranks.barrier();
      EXPECT_GE(arrived, 4 * round);
      ranks.barrier();
    }
  });
}

TEST(ThreadRanks, ARankThatThrowsEndsAllAndIsNamed) {
  for (int failing = 0; failing < 3; ++failing) {
    std::atomic<int> ended = 0;
    try {
      run_ranks(3, [&](Communicator& ranks) {
        if (ranks.rank() == failing) {
          ranks.barrier();
          throw Error(ErrorKind::kNumeric, "layer 3: not finite");
        }
        try {
          while (true) ranks.barrier();
        } catch (const Error& error) {
          ++ended;
          EXPECT_EQ(error.kind(), ErrorKind::kDevice);
          EXPECT_EQ(error.what(), "rank " + std::to_string(failing) + " of 3 failed: layer 3: not finite");
          throw;
        }
      });
      ADD_FAILURE() << "nothing was thrown";
    } catch (const Error& error) {  // the cause, not what the others made of it
      EXPECT_EQ(error.kind(), ErrorKind::kNumeric);
      EXPECT_EQ(error.what(), "rank " + std::to_string(failing) + " of 3: layer 3: not finite");
    }
    EXPECT_EQ(ended, 2);
  }
}

TEST(ThreadRanks, TheFirstIsOnTheCallersThread) {
  const std::thread::id caller = std::this_thread::get_id();
  run_ranks(3, [&](Communicator& ranks) { EXPECT_EQ(std::this_thread::get_id() == caller, ranks.rank() == 0); });
}

TEST(ThreadRanks, WhatIsTheSameOnAllNamesNone) {
  EXPECT_EQ(error_of(3, [](Communicator&) { throw Error(ErrorKind::kNotFound, "no such file"); }), "no such file");
}

TEST(ThreadRanks, OneAloneIsNotNamed) {
  EXPECT_EQ(error_of(1, [](Communicator&) { throw Error(ErrorKind::kDevice, "lost"); }), "lost");
}

TEST(ThreadRanks, OtherExceptionsArriveAsTheyAre) {
  struct Stopped : std::runtime_error {
    using std::runtime_error::runtime_error;
  };
  EXPECT_THROW(run_ranks(2,
                         [](Communicator& ranks) {
                           if (ranks.rank() == 1) throw Stopped("by the user");
                           ranks.barrier();
                         }),
               Stopped);
  EXPECT_THROW(run_ranks(2,
                         [](Communicator& ranks) {
                           if (ranks.rank() == 0) throw 5;
                           ranks.barrier();
                         }),
               int);
}

TEST(ThreadRanks, ARankThatLeavesEndsThoseThatWaitForIt) {
  EXPECT_THAT(error_of(3,
                       [](Communicator& ranks) {
                         ranks.barrier();
                         if (ranks.rank() != 1) ranks.barrier();
                       }),
              HasSubstr("rank 1 has ended, while"));
}

TEST(ThreadRanks, AbortEndsAllWithItsReason) {
  EXPECT_THAT(error_of(4,
                       [](Communicator& ranks) {
                         if (ranks.rank() == 2) ranks.abort("its device is lost");
                         while (true) ranks.barrier();
                       }),
              HasSubstr("rank 2 of 4: its device is lost"));
}

TEST(ThreadRanks, HeadsThatNobodyOffersAreAFault) {
  const auto error_of_taking = [](const HeadRows& wanted) {
    return error_of(2, [&](Communicator& ranks) {
      std::vector<float> row(4), taken(4);
      const ConstHeadsView offered{row.data(), DType::kF32, 1, 4, 4};
      const std::vector<HeadMove> moves{{0, 0}};
      HeadRows rows = wanted;
      rows.to.data = taken.data();
      rows.moves = moves;
      ranks.take_heads({&offered, 1}, {&rows, 1}, 4);
    });
  };
  EXPECT_THAT(error_of_taking({1, 1, 0, {nullptr, DType::kF32, 1, 4, 4}, {}}), HasSubstr("offers 1 views"));
  EXPECT_THAT(error_of_taking({1, 0, 1, {nullptr, DType::kF32, 1, 4, 4}, {}}), HasSubstr("tokens 1 to 2"));
  EXPECT_THAT(error_of_taking({1, 0, 0, {nullptr, DType::kBF16, 1, 4, 4}, {}}), HasSubstr("asked for in BF16"));
  EXPECT_EQ(error_of_taking({1, 0, 0, {nullptr, DType::kF32, 1, 4, 4}, {}}), "");
}

TEST(ThreadRanks, SizesThatDisagreeAreAFault) {
  EXPECT_THAT(
      error_of(
          2,
          [](Communicator& ranks) {
            int32_t number = 0;
            const size_t size_bytes = ranks.rank() == 0 ? 4 : 2;
            std::vector<int32_t> all(2);
            ranks.all_gather({&number, size_bytes}, std::vector<Piece>{{&all[0], size_bytes}, {&all[1], size_bytes}});
          }),
      HasSubstr("bytes to rank"));
}

}  // namespace
}  // namespace calibatt
