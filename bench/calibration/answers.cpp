// How soon a compilation answers Ctrl-C: the longest time between two tellings of its progress, in which alone it can
// be ended, in each of its parts, on made-up level codes of a model of 40 layers and 40 heads in 50 steps. What depends
// on the video's size is run at full size for a few layers and steps; what depends on their number at a small size.
#include <time.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "calibatt/output.h"
#include "calibrate/compile/compile.h"
#include "calibrate/compile/synthetic_steps.h"
#include "calibrate/profile/level_code.h"

namespace calibatt::bench {
namespace {

struct Case {
  std::string name;
  int frames = 21, layers = 2, steps = 3, prompts = 3;
  std::function<void(CompileOptions&)> change;
};

ProfileHeader header_of(const Case& each) {
  ProfileHeader header;
  AttentionGeometry& g = header.geometry;
  g.frames = each.frames, g.height = 45, g.width = 80, g.heads = 40, g.head_dim = 128, g.block_q = g.block_k = 128;
  header.num_layers = each.layers;
  header.measured = Measured::kLevels;
  header.anchor_rows.clear();
  for (int step = 0; step < each.steps; ++step) {
    header.sigmas.push_back(1.0 - double{1} * step / each.steps);
    header.recorded_steps.push_back(step);
  }
  header.provenance.num_prompts = each.prompts;
  return header;
}

/// Blocks near the diagonal of the token order matter.
void fill_codes(const ProfileHeader& header, PromptProfile& prompt) {
  const int columns = header.geometry.num_key_blocks(), row_bytes = packed_row_bytes(columns);
  auto* codes = prompt.levels.data<uint8_t>();
  uint32_t random = 1 + static_cast<uint32_t>(prompt.prompt);
  for (int64_t row = 0; row < prompt.levels.size() / row_bytes; ++row) {
    const int diagonal = static_cast<int>(row % columns);
    const auto code = [&](int c) {
      random = random * 1664525 + 1013904223;
      const int distance = std::abs(c - diagonal) * 24 / columns;
      return c >= columns ? 15 : c == diagonal ? 0 : std::min(15, distance + static_cast<int>(random >> 29));
    };
    for (int byte = 0; byte < row_bytes; ++byte) {
      codes[row * row_bytes + byte] = static_cast<uint8_t>(code(2 * byte) | code(2 * byte + 1) << 4);
    }
  }
}

Profile make_profile(const Case& each) {
  Profile profile;
  profile.header = header_of(each);
  for (int number = 0; number < each.prompts; ++number) {
    PromptProfile prompt = PromptProfile::allocate(profile.header, number);
    fill_codes(profile.header, prompt);
    for (int64_t i = 0; i < prompt.level_error.size(); ++i) {
      const double level = static_cast<double>(i % kNumCodeLevels) / kNumCodeLevels, head = 1 + i / kNumCodeLevels % 83;
      prompt.level_error.f32()[i] = static_cast<float>(1e-4 * head * (1 - level));
    }
    for (int step = 0; step < each.steps; ++step) {
      for (int layer = 0; layer < each.layers; ++layer) seal_site(profile.header, prompt, step, layer);
    }
    test::add_synthetic_steps(profile.header, prompt);
    profile.prompts.push_back(std::move(prompt));
  }
  return profile;
}

StepGrowth growth_of(int steps) {
  StepGrowth growth;
  growth.factors = {{1, 4}, {steps / 2, 2}};
  growth.mask_changes = {{0, 4}, {steps - 1, 2}};
  growth.latents_error = 0.03;
  growth.psnr_db = 30;
  return growth;
}

/// Of the calling thread, which takes part in all loops: what others on the machine take is left out.
double thread_seconds() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

nlohmann::json run(const Case& each, const std::string& folder) {
  const Profile profile = make_profile(each);
  CompileOptions options;
  options.ranking = Ranking::kEnergy;
  options.repetition = Repetition::kOff;
  each.change(options);
  if (options.may_reuse_steps()) options.growth = growth_of(each.steps);
  double last = thread_seconds(), longest = 0, at = 0, all = -last;
  int tellings = 0;
  const auto hear = [&](double overall) {
    const double now = thread_seconds();
    if (now - last > longest) longest = now - last, at = overall;
    last = now;
    ++tellings;
  };
  const CompileSummary summary = compile_to_file(profile, options, folder + "/plan.safetensors",
                                                 [&](const Progress& state) { hear(state.overall); });
  hear(1);
  all += thread_seconds();
  std::printf("%-10s %.2f s at %3.0f %% (%d tellings in %.1f s; density %.3f)\n", each.name.c_str(), longest, 100 * at,
              tellings, all, summary.density);
  return {{"longest_seconds", longest}, {"at", at}, {"tellings", tellings}, {"seconds", all}};
}

std::vector<Case> cases() {
  const auto density = [](CompileOptions& options) { options.density = 0.4; };
  const auto energy = [](CompileOptions& options) {
    options.budget = Budget::kEnergy;
    options.density = 0.4;
    options.schedule_k = 3;
  };
  const auto share = [](CompileOptions& options) {
    options.density = 0.4;
    options.share_steps_iou = 0.5;
  };
  return {{"masks", 21, 2, 3, 17, density},
          {"energy", 21, 2, 3, 3, energy},
          {"share", 21, 2, 3, 3, share},
          {"heads", 2, 40, 50, 3, density},
          {"share-50", 2, 40, 50, 3, share},
          {"speedup", 2, 40, 50, 3, [](CompileOptions& options) { options.speedup = 1.5; }},
          {"psnr", 2, 40, 50, 3, [](CompileOptions& options) { options.psnr = 30; }}};
}

}  // namespace
}  // namespace calibatt::bench

int main(int argc, char** argv) {
  using namespace calibatt::bench;
  std::string out = "out/bench_answers.json", only;
  CLI::App app("How soon the compilation of a large model's plan answers Ctrl-C");
  app.add_option("--only", only, "One case");
  app.add_option("--out", out, "Results (JSON)")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    const std::string folder = std::filesystem::path(out).parent_path().string();
    std::filesystem::create_directories(folder);
    nlohmann::json results = nlohmann::json::object();
    for (const Case& each : cases()) {
      if (only.empty() || only == each.name) results[each.name] = run(each, folder);
    }
    calibatt::write_text_file(out, results.dump(1) + "\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "calibatt_bench_answers: %s\n", error.what());
    return 1;
  }
  return 0;
}
