#include <gtest/gtest.h>

#include "io/atomic_file.h"
#include "plan/test_dump.h"
#include "plan/test_plans.h"

// The committed files of every format version are read forever. tests/fuzz/make_plan_fixtures.cpp made them.
namespace calibatt {
namespace {

class PlanFixture : public ::testing::TestWithParam<std::string> {
 protected:
  std::string fixture(const char* ending) const {
    return std::string(CALIBATT_GOLDEN_DIR) + "/plan_" + GetParam() + ending;
  }
};

TEST_P(PlanFixture, StillReadsAsWhatWasWritten) {
  const auto plan = load_plan(fixture(".safetensors"));
  EXPECT_TRUE(test::same_plan(*plan, Plan(test::fixture_parts(GetParam().substr(3)))));
  EXPECT_EQ(test::dump(*plan), read_text_file(fixture(".txt")));
}

INSTANTIATE_TEST_SUITE_P(Version1, PlanFixture, ::testing::Values("v1_example", "v1_tiles"));
INSTANTIATE_TEST_SUITE_P(Version2, PlanFixture, ::testing::Values("v2_example", "v2_tiles", "v2_drift"));
INSTANTIATE_TEST_SUITE_P(Version3, PlanFixture,
                         ::testing::Values("v3_example", "v3_tiles", "v3_drift", "v3_experts", "v3_reuse", "v3_bits"));

}  // namespace
}  // namespace calibatt
