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

}  // namespace
}  // namespace calibatt
