#include "calibatt/fit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backend/cpu/make_backend.h"
#include "pipeline/no_int8.h"

namespace calibatt {
namespace {

// What `info` and `serve` ask before a run is what the run asks of its device.
TEST(CheckArithmetic, ATypeOfLayersThatTheDeviceLacksIsRefused) {
  add_backend({"no-int8", [] { return false; },
               [](int) -> std::unique_ptr<Backend> { return std::make_unique<NoInt8Backend>(); }});
  LoadOptions load;
  load.model_dir = CALIBATT_MODELS_DIR "/tiny-wan";
  load.backend = "no-int8";
  load.weights = WeightsPrecision::kFP8;
  EXPECT_NO_THROW(check_arithmetic(load, {}));
  load.weights = WeightsPrecision::kINT8;
  EXPECT_THAT([&] { check_arithmetic(load, {}); }, ::testing::ThrowsMessage<Error>("no int8 here"));
  load.kept_layers = {"blocks"};
  EXPECT_NO_THROW(check_arithmetic(load, {})) << "none is left in 8 bits";
}

TEST(ModelOnDisk, CountsHostMemoryOfEachGpuUnlessTheyShareWeights) {
  const auto host_weights = [](std::vector<int> devices, ShardWeights shards, bool offload) {
    LoadOptions load;
    load.model_dir = CALIBATT_MODELS_DIR "/tiny-wan";
    load.backend = "cuda";
    load.weights = WeightsPrecision::kFP8;
    load.devices = std::move(devices);
    load.shard_weights = shards;
    load.offload = offload;
    return ModelOnDisk::open(load).memory({}, Precision::kBF16, load.weights).host_weights;
  };
  const uint64_t one = host_weights({0}, ShardWeights::kAuto, false);
  EXPECT_GT(one, 0U) << "layers of the steps without 8 bits";
  EXPECT_EQ(host_weights({0, 1}, ShardWeights::kAuto, false), 2 * one);
  EXPECT_EQ(host_weights({0, 1}, ShardWeights::kOn, false), one);
  EXPECT_EQ(host_weights({0, 1}, ShardWeights::kAuto, true), host_weights({0}, ShardWeights::kAuto, true));
}

// A layer that --keep-layers names takes two bytes a weight, where the others take one in 8 bits.
TEST(ModelOnDisk, CountsLayersThatAreKeptInEveryPlaceOnce) {
  const auto memory = [](const std::string& model, std::vector<std::string> kept, std::vector<int> devices) {
    LoadOptions load;
    load.model_dir = CALIBATT_MODELS_DIR "/" + model;
    load.backend = "cuda";
    load.weights = WeightsPrecision::kFP8;
    load.kept_layers = std::move(kept);
    load.shard_weights = devices.size() > 1 ? ShardWeights::kOn : ShardWeights::kAuto;
    load.devices = std::move(devices);
    return ModelOnDisk::open(load).memory({}, Precision::kBF16, load.weights);
  };
  const auto added = [](uint64_t before, uint64_t after) { return static_cast<int64_t>(after - before); };
  // One matrix of 384 x 384 in each of 6 blocks. Steps without 8 bits use those on the device.
  constexpr int64_t kMochi = int64_t{6} * 384 * 384;
  const MemoryEstimate mochi = memory("tiny-mochi", {}, {0}), mochi_kept = memory("tiny-mochi", {"attn1.to_out"}, {0});
  EXPECT_EQ(added(mochi.weights, mochi_kept.weights), kMochi);
  EXPECT_EQ(added(mochi.host_weights, mochi_kept.host_weights), -2 * kMochi);
  // Of Wan's blocks these steps reserve all that is theirs.
  constexpr int64_t kWan = int64_t{8} * 256 * 256;
  const MemoryEstimate wan = memory("tiny-wan", {}, {0}), wan_kept = memory("tiny-wan", {"attn1.to_out"}, {0});
  EXPECT_EQ(added(wan.weights, wan_kept.weights), kWan);
  EXPECT_EQ(wan_kept.host_weights, wan.host_weights);
  // In parts each of two GPUs has half of them.
  const MemoryEstimate parts = memory("tiny-wan", {}, {0, 1}),
                       parts_kept = memory("tiny-wan", {"attn1.to_out"}, {0, 1});
  EXPECT_EQ(added(parts.weights, parts_kept.weights), kWan / 2);
}

}  // namespace
}  // namespace calibatt
