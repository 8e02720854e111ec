#include "base/weight_shards.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"

namespace calibatt {
namespace {

TEST(ShardRange, RangesCoverAllInOrderAndBeginAtMultiples) {
  for (const size_t size_bytes : {0, 1, 255, 256, 257, 1000, 70000}) {
    for (const int num_ranks : {1, 2, 3, 5, 8}) {
      for (const size_t alignment : {1, 64, 256, 4096}) {
        size_t end = 0, most = 0, least = size_bytes;
        for (int rank = 0; rank < num_ranks; ++rank) {
          const ByteRange range = shard_range(size_bytes, rank, num_ranks, alignment);
          EXPECT_EQ(range.begin, end);
          EXPECT_EQ(range.begin % alignment, 0u) << size_bytes << " bytes, rank " << rank << " of " << num_ranks;
          end = range.end;
          most = std::max(most, range.size());
          least = std::min(least, range.size());
        }
        EXPECT_EQ(end, size_bytes);
        EXPECT_LE(most - least, 2 * alignment);
      }
    }
  }
}

std::string error_of(const WeightShards& shards, const std::string& block) {
  try {
    shards.parts_of(block);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kDevice);
    return error.what();
  }
  return "";
}

TEST(WeightShards, APartIsThereForAsLongAsSomebodyHoldsIt) {
  WeightShards shards({0, 0});
  EXPECT_THAT(error_of(shards, "block 1"), testing::HasSubstr("rank 0 of 2 does not have its part of block 1"));
  auto first = std::make_shared<int>(1), second = std::make_shared<int>(2);
  shards.publish("block 1", 0, first);
  EXPECT_THAT(error_of(shards, "block 1"), testing::HasSubstr("rank 1 of 2"));
  shards.publish("block 1", 1, second);
  const auto parts = shards.parts_of("block 1");
  EXPECT_EQ(parts[0].get(), first.get());
  EXPECT_EQ(parts[1].get(), second.get());
  const std::weak_ptr<int> kept = first;
  first.reset();
  EXPECT_FALSE(kept.expired()) << "whoever gathers holds it";
  EXPECT_EQ(shards.parts_of("block 1")[0].get(), parts[0].get());
}

TEST(WeightShards, WhatIsGivenBackIsMissedAndWhatIsLoadedAgainIsFound) {
  WeightShards shards({0});
  auto part = std::make_shared<int>(1);
  shards.publish("block", 0, part);
  part.reset();
  EXPECT_THAT(error_of(shards, "block"), testing::HasSubstr("load the model again"));
  part = std::make_shared<int>(2);
  shards.publish("block", 0, part);
  EXPECT_EQ(shards.parts_of("block")[0].get(), part.get());
}

}  // namespace
}  // namespace calibatt
