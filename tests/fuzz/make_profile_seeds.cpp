// Writes what calibatt_profile_fuzzer begins with.
//   make_profile_seeds FOLDER
#include <cstdio>

#include "backend/cpu/make_backend.h"
#include "calibrate/compile/synthetic_steps.h"
#include "calibrate/record/calibrator.h"
#include "calibrate/record/synthetic_attention.h"
#include "profile_seed.h"

int main(int argc, char** argv) {
  using namespace calibatt;
  if (argc != 2) {
    std::fputs("usage: make_profile_seeds FOLDER\n", stderr);
    return 2;
  }
  const std::pair<ProfileHeader, const char*> kinds[] = {
      {fuzz::seed_header(Measured::kMaps), "/maps"},
      {fuzz::seed_header(Measured::kLevels), "/levels"},
      {fuzz::seed_header(Measured::kLevels, Ranking::kHarm), "/harm_levels"}};
  for (const auto& [seed, name] : kinds) {
    const ProfileHeader& header = seed;  // lambdas do not capture structured bindings
    const auto run = [&](int prompt, SelfAttention& attention) {
      run_synthetic(header.geometry, header.num_steps(), header.num_layers, prompt, attention);
      return 0.0;
    };
    const auto complete = [&](PromptProfile& profile) { test::add_synthetic_steps(header, profile); };
    const std::string folder = std::string(argv[1]) + name;
    record_profile(*make_backend("cpu"), header, folder, run, {}, {}, complete);
    save_growth(folder, header, fuzz::seed_growth());
  }
  return 0;
}
