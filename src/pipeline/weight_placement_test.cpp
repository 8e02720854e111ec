#include "pipeline/weight_placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"

namespace calibatt {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

constexpr uint64_t kGigabyte = 1'000'000'000;

LoadOptions on_two(ShardWeights asked = ShardWeights::kAuto) {
  LoadOptions options;
  options.devices = {0, 1};
  options.shard_weights = asked;
  return options;
}

PlacementRoom room(uint64_t available) {
  return {.whole = 30 * kGigabyte,
          .shards = 16 * kGigabyte,
          .video = 10 * kGigabyte,
          .available = available * kGigabyte,
          .unreadable = ""};
}

TEST(WeightPlacement, WholeWhereAllFitsAndInPartsWhereNot) {
  EXPECT_EQ(choose_weight_placement(on_two(), room(40)).placement, WeightPlacement::kWhole);
  EXPECT_EQ(choose_weight_placement(on_two(), room(40)).message, "");
  const ChosenPlacement parts = choose_weight_placement(on_two(), room(39));
  EXPECT_EQ(parts.placement, WeightPlacement::kShards);
  EXPECT_EQ(parts.message,
            "each of 2 GPUs keeps 1/2 of the transformer's blocks, and gathers the others as it comes to them: whole, "
            "they and a video take about 40.0 GB of a GPU's memory, and 39.0 GB are free");
  EXPECT_THAT(choose_weight_placement(on_two(), room(25)).message, HasSubstr("may not fit either"));
  EXPECT_EQ(choose_weight_placement(on_two(ShardWeights::kOff), room(25)).placement, WeightPlacement::kWhole);
  EXPECT_EQ(choose_weight_placement(on_two(ShardWeights::kOn), room(99)).placement, WeightPlacement::kShards);
}

TEST(WeightPlacement, WhatCannotBeSharedStaysWhole) {
  PlacementRoom apart = room(39);
  apart.unreadable = "GPU 1 cannot read the memory of GPU 0";
  const ChosenPlacement whole = choose_weight_placement(on_two(), apart);
  EXPECT_EQ(whole.placement, WeightPlacement::kWhole);
  EXPECT_THAT(whole.message, AllOf(HasSubstr("GPU 1 cannot read the memory of GPU 0"), HasSubstr("--offload")));
  PlacementRoom two_transformers = room(39);
  two_transformers.shards = 31 * kGigabyte;
  const ChosenPlacement larger = choose_weight_placement(on_two(), two_transformers);
  EXPECT_EQ(larger.placement, WeightPlacement::kWhole);
  EXPECT_THAT(larger.message, AllOf(HasSubstr("parts of them would take 31.0 GB"), HasSubstr("--offload")));
  PlacementRoom of_mochi = room(39);
  of_mochi.shards = 0;
  EXPECT_EQ(choose_weight_placement(on_two(), of_mochi).placement, WeightPlacement::kWhole);
  PlacementRoom host = room(1);
  host.available = {};
  EXPECT_EQ(choose_weight_placement(on_two(), host).placement, WeightPlacement::kWhole);
}

TEST(WeightPlacement, OffloadedWeightsAreInHostMemoryOnce) {
  LoadOptions options = on_two();
  options.offload = true;
  EXPECT_EQ(choose_weight_placement(options, room(99)).placement, WeightPlacement::kHost);
  PlacementRoom host = room(99);
  host.available = {};
  EXPECT_EQ(choose_weight_placement(options, host).placement, WeightPlacement::kWhole) << "they are there already";
}

TEST(WeightPlacement, WhatCannotBeIsRefused) {
  const auto refusal = [](const LoadOptions& options, bool shards_weights) -> std::string {
    ModelDescription model;
    model.kind = "SomeModel";
    model.shards_weights = shards_weights;
    try {
      check_weight_placement(options, model);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      return error.what();
    }
    return "";
  };
  LoadOptions one;
  EXPECT_EQ(refusal(one, false), "");
  one.shard_weights = ShardWeights::kOn;
  EXPECT_THAT(refusal(one, true), AllOf(HasSubstr("--shard-weights on: one GPU"), HasSubstr("--gpus N")));
  LoadOptions several = on_two(ShardWeights::kOn);
  EXPECT_EQ(refusal(several, true), "");
  EXPECT_THAT(refusal(several, false), AllOf(HasSubstr("--shard-weights on: SomeModel is held whole"),
                                             HasSubstr("--weights-dtype int8 (or fp8) takes less")));
  several.weights = WeightsPrecision::kFP8;
  EXPECT_THAT(refusal(several, false), Not(HasSubstr("--weights-dtype")));
  several.offload = true;
  EXPECT_THAT(refusal(several, true), HasSubstr("leave one of them out"));
  several.shard_weights = ShardWeights::kAuto;
  EXPECT_EQ(refusal(several, true), "");
  EXPECT_THAT(refusal(several, false), HasSubstr("--offload with several GPUs: SomeModel is held whole"));
}

TEST(WeightPlacement, WhatLeavesADeviceMoreRoomIsWhatItsJobTakes) {
  ModelDescription model;
  model.shards_weights = true;
  const RankLayout alone, four{.num_ranks = 4, .num_groups = 2};
  EXPECT_EQ(more_room(model, alone, 1), ", or give --offload");
  EXPECT_THAT(more_room(model, four, 1), HasSubstr("--shard-weights on"));
  EXPECT_EQ(more_room(model, four, 4), ", or give --offload") << "they are in parts";
  const RankLayout calibration{.num_ranks = 4, .num_groups = 4, .whole_weights = true};
  EXPECT_EQ(more_room(model, calibration, 1), ", or take one GPU, with --offload");
  model.shards_weights = false;
  EXPECT_EQ(more_room(model, four, 1), "");
  EXPECT_EQ(more_room(model, calibration, 1), ", or take one GPU, with --offload");
}

}  // namespace
}  // namespace calibatt
