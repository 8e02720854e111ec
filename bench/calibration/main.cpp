// What calibration by level codes costs the host at a model's real size, on synthetic block energies: folding one
// layer's maps, recording a few sites of every prompt, and compiling a plan from them; then how far the codes' plans
// are from those of the full maps. Times are processor time (the machine may be shared), memory is the process's peak.
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "base/thread_pool.h"
#include "bench/calibration/synthetic_energy.h"
#include "bench/clock.h"
#include "calibrate/compile/compile.h"
#include "calibrate/profile/level_agreement.h"
#include "calibrate/profile/level_code.h"
#include "calibrate/record/calibrator.h"
#include "calibrate/record/measure.h"

namespace calibatt::bench {
namespace {

struct Options {
  int frames = 21, height = 45, width = 80, heads = 40, block = 128;  // Wan 2.1 14B, 720p × 81 frames
  int model_layers = 40, model_steps = 50, prompts = 17;
  int layers = 2, steps = 2;  // of which energies are made
  int threads = 0;
  std::string folder = "out/bench_calibration", out = "out/bench_calibration.json";
};

double core_seconds(const std::function<void()>& body) {
  const double start = now(Clock::kCpu);
  body();
  return (now(Clock::kCpu) - start) * num_threads();
}

double peak_gigabytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) * 1024 / 1e9;
}

AttentionGeometry geometry_of(const Options& options) {
  AttentionGeometry g;
  g.frames = options.frames, g.height = options.height, g.width = options.width;
  g.heads = options.heads, g.head_dim = 128;
  g.block_q = g.block_k = options.block;
  return g;
}

ProfileHeader header_of(const Options& options, int layers, int steps) {
  ProfileHeader header;
  header.geometry = geometry_of(options);
  header.num_layers = layers;
  for (int step = 0; step < steps; ++step) header.sigmas.push_back(1.0 - double{1} * step / steps);
  header.measured = Measured::kLevels;
  header.output_errors = false;
  header.anchor_rows.clear();
  header.provenance.num_prompts = options.prompts;
  header.recorded_steps = spread_steps(steps, default_recorded_steps(header));
  return header;
}

CompileOptions energy_options(Agreement agreement) {
  CompileOptions options;
  options.budget = Budget::kEnergy;
  options.repetition = Repetition::kOff;
  options.agreement = agreement;
  options.density = 0.375;
  options.schedule_k = 3;  // few steps are run
  return options;
}

/// Median of five, per layer.
double fold_seconds(const AttentionGeometry& g) {
  Tensor energy(DType::kF32, {g.heads, g.num_query_blocks(), g.num_key_blocks()});
  synthetic_energy(g, 0, 0, energy.f32());
  Tensor codes(DType::kU8, {g.heads, g.num_query_blocks(), packed_row_bytes(g.num_key_blocks())});
  std::vector<double> seconds;
  for (int i = 0; i < 5; ++i) seconds.push_back(core_seconds([&] { encode_levels(energy, codes.data<uint8_t>()); }));
  std::nth_element(seconds.begin(), seconds.begin() + 2, seconds.end());
  return seconds[2];
}

/// Largest difference of densities between the plans of full maps and of codes, over levels from .68 to .99, on every
/// 20th row of every 5th head.
double density_difference(const AttentionGeometry& g, int prompts, Agreement agreement) {
  const int rows = g.num_query_blocks(), columns = g.num_key_blocks();
  Tensor energy(DType::kF32, {g.heads, rows, columns});
  std::vector<std::vector<float>> maps;  // [prompt]: the chosen rows
  for (int prompt = 0; prompt < prompts; ++prompt) {
    synthetic_energy(g, prompt, 0, energy.f32());
    auto& map = maps.emplace_back();
    for (int head = 0; head < g.heads; head += 5) {
      for (int r = 0; r < rows; r += 20) {
        const float* row = energy.f32() + (int64_t{head} * rows + r) * columns;
        map.insert(map.end(), row, row + columns);
      }
    }
  }
  const int chosen = static_cast<int>(maps[0].size()) / columns;
  std::vector<InclusionLevels> each;
  std::vector<float> mean(maps[0].size(), 0.0f);
  for (const auto& map : maps) {
    each.push_back(energy_inclusion(map, chosen, columns));
    for (size_t i = 0; i < map.size(); ++i) mean[i] += map[i] / static_cast<float>(prompts);
  }
  const InclusionLevels expected =
      agreement == Agreement::kVote ? agreed_inclusion(each, 0.5) : energy_inclusion(mean, chosen, columns);
  LevelAgreement agreed(columns, agreement, 0.5, maps.size());
  std::vector<uint16_t> levels(expected.all().size());
  for (int r = 0; r < chosen; ++r) {
    std::vector<std::vector<uint8_t>> packed(maps.size());
    std::vector<const uint8_t*> pointers;
    for (size_t p = 0; p < maps.size(); ++p) {
      packed[p].resize(static_cast<size_t>(packed_row_bytes(columns)));
      encode_row(std::span(maps[p]).subspan(static_cast<size_t>(r) * columns, columns), packed[p].data());
      pointers.push_back(packed[p].data());
    }
    agreed.agree(pointers, std::span(levels).subspan(static_cast<size_t>(r) * columns, columns));
  }
  double largest = 0;
  for (int level = 700; level <= 1014; level += 3) {
    const auto kept = std::count_if(levels.begin(), levels.end(), [&](int of_block) { return of_block < level; });
    const double density = static_cast<double>(kept) / static_cast<double>(levels.size());
    largest = std::max(largest, std::abs(density - expected.density(static_cast<double>(level) / kLevelUnits)));
  }
  return largest;
}

struct Recorded {
  Profile profile;
  double core_seconds = 0;
};

/// One prompt on its own device memory: each recorder takes two energy maps of it.
Recorded record(const Options& options, const ProfileHeader& part) {
  Recorded result;
  result.profile.header = part;
  for (int prompt = 0; prompt < options.prompts; ++prompt) {
    SyntheticDevice each(part.geometry, size_t{1} << 28);
    const auto run_one = [&](int index, SelfAttention& attention) {
      for (int step = 0; step < part.num_steps(); ++step) {
        attention.begin_forward(step, GuidanceBranch::kConditional);
        for (int layer = 0; layer < part.num_layers; ++layer) {
          each.next(index, step * part.num_layers + layer);
          attention.attend(layer, part.geometry, {}, {}, {}, {}, {});
        }
      }
      return 0.0;
    };
    result.core_seconds += core_seconds([&] {
      RecordedProfile one = record_profile(each, part, options.folder, run_one, {}, {prompt, prompt + 1});
      result.profile.prompts.push_back(std::move(one.profile.prompts[0]));
    });
    result.core_seconds -= each.seconds_making_energies;
  }
  return result;
}

/// Both agreements. sites: that the profile holds; all_sites: of the whole model.
nlohmann::json compile(const Options& options, const Profile& profile, double sites, double all_sites) {
  nlohmann::json compiled = nlohmann::json::object();
  for (const Agreement agreement : {Agreement::kVote, Agreement::kMean}) {
    const char* name = agreement == Agreement::kVote ? "vote" : "mean";
    CompiledPlan plan;
    const double start = now(Clock::kWall);
    const double seconds = core_seconds([&] { plan = compile_plan(profile, energy_options(agreement)); });
    double intervals = 0;
    for (const HeadPlan& head : plan.parts.heads) {
      if (head.intervals) intervals += static_cast<double>(head.intervals->intervals().size());
    }
    compiled[name] = {
        {"core_seconds_per_site", seconds / sites},
        {"wall_seconds", now(Clock::kWall) - start},
        {"extrapolated_core_seconds", seconds / sites * all_sites},
        {"density", plan.summary.density},
        {"extrapolated_intervals_gb", intervals / sites * all_sites * sizeof(BlockInterval) / 1e9},
        {"largest_density_difference", density_difference(profile.header.geometry, options.prompts, agreement)}};
    std::printf("compile, %s: %.2f core seconds a site, density %.4f; largest density difference from full maps %.5f\n",
                name, seconds / sites, plan.summary.density,
                compiled[name]["largest_density_difference"].get<double>());
  }
  return compiled;
}

nlohmann::json run(const Options& options) {
  set_num_threads(options.threads);
  const ProfileHeader whole = header_of(options, options.model_layers, options.model_steps);
  const ProfileHeader part = header_of(options, options.layers, options.steps);
  const AttentionGeometry& g = part.geometry;
  const double sites = double{1} * options.layers * part.num_recorded_steps();
  const double all_sites = double{1} * options.model_layers * whole.num_recorded_steps();

  const double fold = fold_seconds(g);
  std::printf("fold: %.3f core seconds a layer (%d × %d × %d)\n", fold, g.heads, g.num_query_blocks(),
              g.num_key_blocks());

  std::filesystem::remove_all(options.folder);
  const Recorded recorded = record(options, part);
  const double record_seconds = recorded.core_seconds;
  const double record_peak = peak_gigabytes();
  std::printf("record: %.3f core seconds a site (copy, fold, checksum, file), peak memory %.2f GB\n",
              record_seconds / (sites * options.prompts), record_peak);

  double file_bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(options.folder)) {
    file_bytes += static_cast<double>(entry.file_size());
  }
  const nlohmann::json compiled = compile(options, recorded.profile, sites, all_sites);
  return {{"geometry", g.to_string()},
          {"prompts", options.prompts},
          {"sites_run", sites},
          {"sites_of_the_model", all_sites},
          {"recorded_steps_of_the_model", whole.num_recorded_steps()},
          {"threads", num_threads()},
          {"clock", "process CPU time summed over threads"},
          {"fold_core_seconds_per_layer", fold},
          {"record_core_seconds_per_site", record_seconds / (sites * options.prompts)},
          {"record_extrapolated_core_seconds_per_prompt", record_seconds / (sites * options.prompts) * all_sites},
          {"record_peak_gb_of_this_run", record_peak},
          {"file_gb_per_prompt", file_bytes / options.prompts / sites * all_sites / 1e9},
          {"file_gb_all_prompts", file_bytes / sites * all_sites / 1e9},
          {"host_gb_while_recording", record_peak + bytes_of_levels(whole) / 1e9 - bytes_of_levels(part) / 1e9},
          {"peak_gb_of_this_run", peak_gigabytes()},
          {"compile", compiled}};
}

}  // namespace
}  // namespace calibatt::bench

int main(int argc, char** argv) {
  using namespace calibatt::bench;
  Options options;
  CLI::App app("Host cost of calibration at a model's real size, on synthetic block energies");
  app.add_option("--prompts", options.prompts, "Prompts")->capture_default_str();
  app.add_option("--layers", options.layers, "Layers to run (of 40)")->capture_default_str();
  app.add_option("--steps", options.steps, "Steps to run (of 50)")->capture_default_str();
  app.add_option("--heads", options.heads, "Heads")->capture_default_str();
  app.add_option("--frames", options.frames, "Latent frames of 45 × 80 tokens")->capture_default_str();
  app.add_option("--threads", options.threads, "0: all processors")->capture_default_str();
  app.add_option("--folder", options.folder, "Where profiles are written")->capture_default_str();
  app.add_option("--out", options.out, "Results (JSON)")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  try {
    const nlohmann::json result = run(options);
    std::filesystem::create_directories(std::filesystem::path(options.out).parent_path());
    std::ofstream(options.out) << result.dump(1) << "\n";
  } catch (const std::exception& error) {
    std::fprintf(stderr, "calibatt_bench_calibration: %s\n", error.what());
    return 1;
  }
  return 0;
}
