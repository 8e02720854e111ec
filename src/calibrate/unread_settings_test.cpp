#include "calibrate/unread_settings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "calibatt/calibration_settings.h"

namespace calibatt {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using Setting = std::pair<const char*, const char*>;

CalibrateOptions with(const std::vector<Setting>& settings) {
  CalibrateOptions options;
  for (const auto& [name, value] : settings) set(options, name, value);
  return options;
}

ProfileHeader header_of(Measured measured, Ranking code_ranking = Ranking::kEnergy) {
  ProfileHeader header;
  header.measured = measured;
  header.code_ranking = code_ranking;
  return header;
}

std::vector<std::string> unread(const std::vector<Setting>& settings,
                                const ProfileHeader& header = header_of(Measured::kMaps)) {
  return unread_settings(with(settings), header);
}

TEST(UnreadSettings, NamesThoseOfTheOtherBudget) {
  EXPECT_THAT(unread({{"rho", ".7"}, {"schedule-a", ".8"}, {"schedule-c", ".9"}, {"schedule-k", "3"}}),
              ElementsAre("--rho changes nothing here: only --agreement vote of --budget energy has a threshold",
                          "--schedule-a, --schedule-c, --schedule-k change nothing here: only --budget energy keeps "
                          "energy by a schedule"));
  EXPECT_THAT(unread({{"budget", "energy"}, {"step-weight", "4"}, {"schedule-a", ".8"}}),
              ElementsAre("--step-weight changes nothing here: only --budget error weighs steps"));
  EXPECT_THAT(unread({{"budget", "energy"}, {"density", ".5"}, {"schedule-a", ".8"}, {"schedule-c", ".9"}}),
              ElementsAre("--schedule-a changes nothing here: --density is met by choosing it"));
}

TEST(UnreadSettings, NamesThoseOfARuleThatIsNotInForce) {
  EXPECT_THAT(unread({{"gamma", ".9"}, {"repetition", "error"}}),
              ElementsAre("--gamma changes nothing here: only --repetition similarity compares with it"));
  EXPECT_THAT(unread({{"psnr", "40"}, {"step-weight", "4"}}),
              ElementsAre("--step-weight changes nothing here: --speedup and --psnr weigh steps by what was measured"));
  EXPECT_THAT(unread({{"anchors", "3"}}, header_of(Measured::kLevels)),
              ElementsAre("--anchors changes nothing here: level codes by energy know no repetition"));
}

TEST(UnreadSettings, ARangeOfPromptsIsNotCompiled) {
  CalibrateOptions options = with({{"density", ".4"}, {"gamma", ".9"}, {"budget", "energy"}, {"block-q", "32"}});
  options.prompt_range = {0, 1};
  EXPECT_THAT(unread_settings(options, header_of(Measured::kLevels)),
              ElementsAre("--density, --gamma change nothing here: --prompt-range records, and compiles no plan"));
  options = with({{"skipped", "drop"}});
  options.prompt_range = {0, 1};
  EXPECT_THAT(unread_settings(options, header_of(Measured::kLevels, Ranking::kHarm)), IsEmpty())
      << "codes by harm are measured with it";
  EXPECT_THAT(unread_settings(options, header_of(Measured::kMaps)),
              ElementsAre("--skipped changes nothing here: --prompt-range records, and compiles no plan"));
}

TEST(UnreadSettings, SaysNothingOfThoseThatAreRead) {
  EXPECT_THAT(unread({}), IsEmpty());
  EXPECT_THAT(unread({}, header_of(Measured::kLevels)), IsEmpty());
  EXPECT_THAT(unread({{"anchors", "3"}, {"skipped", "drop"}}, header_of(Measured::kLevels, Ranking::kHarm)), IsEmpty());
  EXPECT_THAT(unread({{"budget", "energy"}, {"agreement", "vote"}, {"rho", ".7"}, {"schedule-k", "3"}}), IsEmpty());
  EXPECT_THAT(unread({{"repetition", "similarity"}, {"gamma", ".9"}, {"anchors", "3"}}), IsEmpty());
  EXPECT_THAT(unread({{"density", ".5"}, {"step-weight", "4"}, {"merge-gap", "1"}, {"share-steps", ".9"}}), IsEmpty());
  EXPECT_THAT(unread({{"rho", "0.5"}}), IsEmpty()) << "a default, said aloud";
}

}  // namespace
}  // namespace calibatt
