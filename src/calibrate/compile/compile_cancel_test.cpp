// Ctrl-C: every part of a compilation tells of itself often enough to be ended.
#include <gtest/gtest.h>

#include <stdexcept>

#include "calibrate/compile/compile.h"
#include "calibrate/compile/step_errors.h"
#include "calibrate/compile/synthetic_steps.h"
#include "calibrate/profile/test_level_profile.h"

namespace calibatt {
namespace {

struct Ended : std::runtime_error {
  Ended() : std::runtime_error("ended") {}
};

Profile profile_of_steps(int num_steps) {
  Profile profile;
  for (int step = 0; step < num_steps; ++step) profile.header.sigmas.push_back(1 - 0.9 * step / num_steps);
  test::add_synthetic_steps(profile.header, profile.prompts.emplace_back());
  return profile;
}

TEST(CompileCancel, TheSearchForReusedStepsPollsForEachSetThatItTries) {
  const Profile profile = profile_of_steps(9);
  StepGrowth growth;
  growth.factors = {{0, 1}};
  const StepErrors errors(profile, growth);
  int polls = 0;
  const auto best = best_reuse(errors, 6, [&] { ++polls; });
  EXPECT_EQ(best, best_reuse(errors, 6));
  // Of each number of steps at least one set was widened, and each of its steps left out once.
  EXPECT_GE(polls, 6 + (1 + 2 + 3 + 4 + 5 + 6));
  polls = 0;
  EXPECT_THROW(best_reuse(errors, 6,
                          [&] {
                            if (++polls == 20) throw Ended();
                          }),
               Ended);
  EXPECT_EQ(polls, 20);
}

TEST(CompileCancel, SharingOfStepsAndWritingAreToldLayerByLayer) {
  const TestFolder folder;
  CompileOptions options = constant_energy(Agreement::kMean, 0.7);
  options.share_steps_iou = 1;
  const std::string path = folder / "plan.safetensors";
  int tellings = 0;
  const auto ended_at = [&](int last) {
    tellings = 0;
    return compile_to_file(maps(), options, path, [&, last](const Progress& state) {
      if (state.done == state.total && ++tellings == last) throw Ended();
    });
  };
  const CompileSummary summary = ended_at(0);
  // Behind the masks of all layers: read as masks, made intervals of again, written.
  const int at_least = kSteps * kLayers + 2 * summary.num_entries * kLayers;
  EXPECT_GE(tellings, at_least);
  std::filesystem::remove(path);
  for (const int last : {1, at_least / 2, at_least}) {
    EXPECT_THROW(ended_at(last), Ended);
    EXPECT_TRUE(folder.list().empty()) << "nothing half-written, ended at " << last;
  }
}

TEST(CompileCancel, ReadingOfMapsPolls) {
  const TestFolder folder;
  ProfileHeader header = maps_header();
  header.provenance.num_prompts = 1;
  record_profile(*make_backend("cpu"), header, folder.path(), runner(header));
  int polls = 0;
  ASSERT_TRUE(load_prompt(folder.path(), header, 0, [&] { ++polls; }));
  EXPECT_GE(polls, 2) << "once for the checksum, once for the values";
  const auto end = [&] { throw Ended(); };
  EXPECT_THROW(load_prompt(folder.path(), header, 0, end), Ended);
}

}  // namespace
}  // namespace calibatt
