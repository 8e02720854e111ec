#include <gtest/gtest.h>

#include "io/atomic_file.h"
#include "io/test_folder.h"
#include "plan/test_dump.h"
#include "plan/test_plans.h"

// The committed files of format version 1 are read forever. tests/fuzz/make_plan_fixtures.cpp made them.
namespace calibatt {
namespace {

class PlanFixture : public ::testing::TestWithParam<std::string> {
 protected:
  std::string fixture(const char* ending) const {
    return std::string(CALIBATT_GOLDEN_DIR) + "/plan_v1_" + GetParam() + ending;
  }
};

TEST_P(PlanFixture, StillReadsAsWhatWasWritten) {
  const auto plan = load_plan(fixture(".safetensors"));
  EXPECT_TRUE(test::same_plan(*plan, Plan(test::fixture_parts(GetParam()))));
  EXPECT_EQ(test::dump(*plan), read_text_file(fixture(".txt")));
}

TEST_P(PlanFixture, IsStillWrittenByteForByte) {
  const TestFolder folder;
  save_plan(Plan(test::fixture_parts(GetParam())), folder / "plan");
  EXPECT_EQ(read_text_file(folder / "plan"), read_text_file(fixture(".safetensors")));
}

INSTANTIATE_TEST_SUITE_P(Version1, PlanFixture, ::testing::Values("example", "tiles"));

}  // namespace
}  // namespace calibatt
