#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

#include "base/error.h"

namespace calibatt {
namespace {

class ThreadPoolTest : public testing::TestWithParam<int> {
 protected:
  void SetUp() override { set_num_threads(GetParam()); }
  void TearDown() override { set_num_threads(0); }
};

TEST_P(ThreadPoolTest, VisitsEveryIndexOnceInChunksOfAtMostTheGrain) {
  for (const int64_t count : {0, 1, 2, 7, 64, 1001}) {
    for (const int64_t grain : {1, 3, 64, 5000}) {
      std::vector<int> visits(static_cast<size_t>(count), 0);
      std::atomic<bool> sound{true};
      parallel_for(count, grain, [&](int64_t begin, int64_t end, int thread) {
        if (begin >= end || end - begin > grain || begin % grain != 0) sound = false;
        if (thread < 0 || thread >= num_threads()) sound = false;
        for (int64_t i = begin; i < end; ++i) ++visits[static_cast<size_t>(i)];
      });
      EXPECT_TRUE(sound) << count << " by " << grain;
      for (const int visit : visits) ASSERT_EQ(visit, 1) << count << " by " << grain;
    }
  }
}

TEST_P(ThreadPoolTest, ThreadNumbersAreNotSharedAtTheSameTime) {
  std::vector<std::atomic<int>> inside(static_cast<size_t>(num_threads()));
  std::atomic<bool> shared{false};
  for (int round = 0; round < 50; ++round) {
    parallel_for(64, 1, [&](int64_t, int64_t, int thread) {
      if (inside[static_cast<size_t>(thread)].fetch_add(1) != 0) shared = true;
      std::this_thread::yield();
      inside[static_cast<size_t>(thread)].fetch_sub(1);
    });
  }
  EXPECT_FALSE(shared);
}

TEST_P(ThreadPoolTest, TheFirstExceptionReachesTheCallerAndThePoolGoesOn) {
  for (int round = 0; round < 20; ++round) {
    EXPECT_THROW(parallel_for(100, 1,
                              [&](int64_t begin, int64_t, int) {
                                if (begin == 41) throw std::runtime_error("forty-one");
                              }),
                 std::runtime_error);
    std::atomic<int> count{0};
    parallel_for(100, 7, [&](int64_t begin, int64_t end, int) { count += static_cast<int>(end - begin); });
    EXPECT_EQ(count, 100);
  }
}

TEST_P(ThreadPoolTest, NestedCallsRunOnTheirOwnThread) {
  std::atomic<int> count{0};
  std::atomic<bool> same_thread{true};
  parallel_for(8, 1, [&](int64_t, int64_t, int) {
    const auto outer = std::this_thread::get_id();
    parallel_for(16, 4, [&](int64_t begin, int64_t end, int thread) {
      if (std::this_thread::get_id() != outer || thread != 0) same_thread = false;
      count += static_cast<int>(end - begin);
    });
  });
  EXPECT_EQ(count, 8 * 16);
  EXPECT_TRUE(same_thread);
}

TEST_P(ThreadPoolTest, CallersOnSeveralThreadsDoNotDisturbEachOther) {
  std::atomic<int64_t> sum{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&] {
      for (int round = 0; round < 100; ++round) {
        parallel_for(10, 1, [&](int64_t begin, int64_t, int) { sum += begin; });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(sum, 3 * 100 * 45);
}

INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, testing::Values(1, 2, 5));

TEST(ThreadPool, RefusesImpossibleNumbersOfThreads) {
  EXPECT_THROW(set_num_threads(-1), Error);
  EXPECT_THROW(set_num_threads(1'000'000), Error);
  EXPECT_GE(num_threads(), 1);
}

}  // namespace
}  // namespace calibatt
