#include "calibrate/record/measure.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace calibatt {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ProfileHeader wan_14b_720p() {
  ProfileHeader header;
  header.geometry.frames = 21, header.geometry.height = 45, header.geometry.width = 80;
  header.geometry.heads = 40, header.geometry.head_dim = 128;
  header.geometry.block_q = header.geometry.block_k = 128;
  header.num_layers = 40;
  for (int step = 0; step < 50; ++step) header.sigmas.push_back(1.0 - step / 50.0);
  header.provenance.num_prompts = 17;
  return header;
}

TEST(Measure, APromptOfTheLargestModelTakesAtMostEightGigabytes) {
  ProfileHeader header = wan_14b_720p();
  EXPECT_EQ(header.geometry.num_query_blocks(), 591);
  EXPECT_EQ(default_recorded_steps(header), 25);
  header.recorded_steps = spread_steps(50, 25);
  EXPECT_EQ(header.recorded_steps.front(), 0);
  EXPECT_EQ(header.recorded_steps.back(), 49);
  EXPECT_EQ(bytes_of_levels(header), 25.0 * 40 * 40 * 591 * 296);
  EXPECT_LE(bytes_of_levels(header), 8e9);
}

TEST(Measure, SmallModelsRecordEveryStep) {
  ProfileHeader header = wan_14b_720p();
  header.geometry.heads = 4;
  header.num_layers = 8;
  EXPECT_EQ(default_recorded_steps(header), 50);
  EXPECT_THAT(spread_steps(4, 4), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(spread_steps(5, 3), ElementsAre(0, 2, 4));
  EXPECT_THAT(spread_steps(5, 1), ElementsAre(0));
}

TEST(Measure, MapsOfTheLargestModelAreRefusedWithFigures) {
  ProfileHeader header = wan_14b_720p();
  EXPECT_THAT(maps_refusal(header, 16, true), HasSubstr("GB of host memory"));
  header.geometry.heads = 6, header.geometry.frames = 5, header.geometry.height = 16, header.geometry.width = 16;
  header.num_layers = 8;
  EXPECT_EQ(maps_refusal(header, 16, true), "");
  EXPECT_EQ(maps_refusal(header, 16, false), "");
}

TEST(Measure, MeansOverEarlierPromptsLieInMemoryToo) {
  ProfileHeader header = wan_14b_720p();
  const auto prompts_held = [&](int num_prompts) {
    header.provenance.num_prompts = num_prompts;
    const MapsCost cost = cost_of_maps(header, 1);
    return cost.host_bytes / cost.profile_bytes;
  };
  EXPECT_EQ(prompts_held(1), 1);
  EXPECT_EQ(prompts_held(2), 4);
  EXPECT_EQ(prompts_held(17), 19);
}

TEST(Measure, OnADeviceTheHostMustNotTakeHours) {
  ProfileHeader header = wan_14b_720p();  // one prompt and large blocks: little memory, as much arithmetic
  header.provenance.num_prompts = 1;
  header.geometry.block_q = header.geometry.block_k = 1024;
  header.samples_per_block = 64;
  EXPECT_EQ(maps_refusal(header, 16, false), "");
  EXPECT_THAT(maps_refusal(header, 16, true), HasSubstr("hours of 16 host threads"));
}

// What a GPU's kernels do not take is measured on the host; of a large model it must not be without a word.
TEST(Measure, TheHostIsTooSlowForALargeModelAlone) {
  ProfileHeader header = wan_14b_720p();
  EXPECT_TRUE(too_slow_on_host(header, 16));
  header.geometry.heads = 6, header.geometry.frames = 5, header.geometry.height = 16, header.geometry.width = 16;
  header.num_layers = 8;
  EXPECT_FALSE(too_slow_on_host(header, 16));
}

}  // namespace
}  // namespace calibatt
