#include <gtest/gtest.h>

#include "base/random.h"
#include "io/safetensors.h"

// Golden data: tools/golden/text_and_scheduler.py, made with torch's CPU generator.
namespace calibatt {
namespace {

constexpr float kTolerance = 1e-6f;

void expect_close(const Tensor& actual, const Tensor& expected, const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (int64_t i = 0; i < actual.size(); ++i) {
    ASSERT_NEAR(actual.f32()[i], expected.f32()[i], kTolerance) << what << " element " << i;
  }
}

TEST(TorchGenerator, GivesTheNumbersOfTorch) {
  const Safetensors golden = Safetensors::open(std::string(CALIBATT_GOLDEN_DIR) + "/random.safetensors");
  int cases = 0;
  for (const auto& [name, entry] : golden.entries()) {
    if (name.find("/row/") != std::string::npos) continue;
    TorchGenerator generator(std::stoull(name));
    expect_close(generator.randn({entry.shape[0]}), golden.get(name), name);
    ++cases;
  }
  EXPECT_EQ(cases, 5 * 6 + 1);
}

TEST(TorchGenerator, GivesTheNumbersOfTorchInARow) {
  const Safetensors golden = Safetensors::open(std::string(CALIBATT_GOLDEN_DIR) + "/random.safetensors");
  TorchGenerator generator(9);
  int index = 0;
  for (const int64_t size : {3, 17, 4, 1, 32, 2}) {  // short and long calls mixed: the second value of a pair is kept
    const std::string name = "9/row/" + std::to_string(index++) + "/" + std::to_string(size);
    expect_close(generator.randn({size}), golden.get(name), name);
  }
}

}  // namespace
}  // namespace calibatt
