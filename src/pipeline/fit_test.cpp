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

}  // namespace
}  // namespace calibatt
