#include "calibrate/record/fold_queue.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <stdexcept>
#include <vector>

namespace calibatt {
namespace {

TEST(FoldQueue, DoesJobsInOrderAndFinishes) {
  std::vector<int> done;
  FoldQueue queue(2);
  for (int i = 0; i < 50; ++i) queue.submit([&done, i] { done.push_back(i); });
  queue.finish();
  ASSERT_EQ(done.size(), 50u);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(done[i], i);
}

TEST(FoldQueue, TheCallerGoesOnUntilTheQueueIsFull) {
  std::promise<void> gate;
  const std::shared_future<void> opened = gate.get_future().share();
  std::atomic<int> done = 0;
  FoldQueue queue(2);
  for (int i = 0; i < 2; ++i) {
    queue.submit([&] {
      opened.wait();
      ++done;
    });
  }
  EXPECT_EQ(done, 0);  // both submitted, none done: submit did not wait
  auto third = std::async(std::launch::async, [&] { queue.submit([&] { ++done; }); });
  EXPECT_EQ(third.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout)
      << "no room, but it did not wait";
  gate.set_value();
  third.get();
  queue.finish();
  EXPECT_EQ(done, 3);
}

TEST(FoldQueue, AnExceptionReachesTheCallerAndStopsTheRest) {
  FoldQueue queue(2);
  bool later = false;
  queue.submit([] { throw std::runtime_error("folded"); });
  EXPECT_THROW(
      {
        queue.finish();
        queue.submit([&] { later = true; });
      },
      std::runtime_error);
  EXPECT_THROW(queue.finish(), std::runtime_error);
  EXPECT_FALSE(later);
}

}  // namespace
}  // namespace calibatt
