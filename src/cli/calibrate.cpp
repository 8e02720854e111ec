#include "calibatt/calibrate.h"

#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "calibatt/error.h"
#include "calibatt/output.h"
#include "commands.h"
#include "interrupt.h"
#include "options.h"
#include "progress_bar.h"

namespace calibatt::cli {

namespace {

constexpr double kAny = 1e300;  // bounds of knobs that the library judges

struct Flags {
  LoadOptions load;
  CalibrateOptions calibration;
  std::string prompts, output, report, prompt_range;
};

void print_summary(const CalibrationSummary& summary, const std::string& output) {
  if (!summary.measured.empty()) std::printf("measured: %s\n", printable(summary.measured).c_str());
  std::printf("%s: density %.3f", printable(output).c_str(), summary.density);
  if (summary.density_asked) std::printf(" (asked for: %.3g)", *summary.density_asked);
  std::printf(", %d of %d heads repetitive, predicted speedup of the transformer %.2f×, ", summary.repetitive_heads,
              summary.total_heads, summary.predicted_speedup);
  if (std::isnan(summary.held_out_error)) {
    std::printf("output errors not measured\n");
  } else if (summary.error_is_held_out) {
    std::printf("held-out error %.4f\n", summary.held_out_error);
  } else {
    std::printf("error %.4f on the prompts that chose the blocks (others were not measured)\n", summary.held_out_error);
  }
  std::printf("%s (%d from the saved profile), %.1f s, of it %.1f s of the model\n\ndensity  layer",
              counted(summary.prompts_recorded + summary.prompts_resumed, "prompts").c_str(), summary.prompts_resumed,
              summary.calibration_seconds, summary.prompt_seconds);
  const size_t layers = summary.density_map.empty() ? 0 : summary.density_map[0].size();
  for (size_t layer = 0; layer < layers; ++layer) std::printf("%5zu", layer);
  std::printf("   mean\n");
  for (size_t step = 0; step < summary.density_map.size(); ++step) {
    std::printf("  step %-7zu", step);
    double sum = 0;
    for (const double density : summary.density_map[step]) {
      std::printf(" %.2f", density);
      sum += density;
    }
    std::printf("   %.2f\n", sum / static_cast<double>(layers));
  }
}

nlohmann::json report_of(const CalibrationSummary& summary) {
  return {{"calibration_seconds", summary.calibration_seconds},
          {"prompt_seconds", summary.prompt_seconds},
          {"transformer_seconds", summary.transformer_seconds},
          {"density", summary.density},
          {"density_asked", summary.density_asked ? nlohmann::json(*summary.density_asked) : nlohmann::json()},
          {"density_map", summary.density_map},
          {"repetitive_heads", summary.repetitive_heads},
          {"total_heads", summary.total_heads},
          {"predicted_speedup", summary.predicted_speedup},
          {"held_out_error", summary.held_out_error},
          {"error_is_held_out", summary.error_is_held_out},
          {"plan_written", summary.plan_written},
          {"measured", summary.measured},
          {"attention_share", summary.attention_share},
          {"prompts_recorded", summary.prompts_recorded},
          {"prompts_resumed", summary.prompts_resumed}};
}

std::pair<int, int> parse_range(const std::string& text) {
  int begin = 0, end = 0, length = 0;
  if (std::sscanf(text.c_str(), "%d:%d%n", &begin, &end, &length) != 2 || static_cast<size_t>(length) != text.size()) {
    throw Error(ErrorKind::kUsage,
                "--prompt-range " + text + ": give two numbers, such as 0:4 for the first four prompts");
  }
  return {begin, end};
}

void check(Flags& flags) {
  CalibrateOptions& calibration = flags.calibration;
  if (!flags.prompt_range.empty()) {
    calibration.prompt_range = parse_range(flags.prompt_range);
    if (!flags.output.empty() || calibration.profile_dir.empty()) {
      throw Error(
          ErrorKind::kUsage,
          "--prompt-range records into the folder given with --profile and writes no plan: leave out -o, merge the "
          "folders (calibatt merge), then calibrate with --profile MERGED -o PLAN");
    }
  } else if (flags.output.empty()) {
    throw Error(ErrorKind::kUsage, "name the plan that is to be written: -o plan.safetensors");
  }
  if (calibration.profile_dir.empty()) calibration.profile_dir = flags.output + ".profile";
  calibration.prompts = read_prompts(flags.prompts);
  check_prompt({calibration.run.negative_prompt, "--negative-prompt"});
  validate(calibration);
  std::vector<Input> inputs = inputs_of(flags.load);
  inputs.push_back({"--prompts", flags.prompts});
  inputs.push_back({"--profile", calibration.profile_dir});
  check_outputs({{OutputKind::kPlan, "-o", flags.output},
                 {OutputKind::kReport, "--report", flags.report},
                 {OutputKind::kFolder, "--profile", calibration.profile_dir}},
                inputs);
}

void run(Flags& flags) {
  check(flags);
  ModelOnDisk::open(flags.load).resolved(flags.calibration.run);  // before the loading
  watch_for_interrupts();
  ProgressBar bar("calibrate");
  flags.load.progress = [](const Progress& state) { stop_if_interrupted(state, "; nothing was measured yet"); };
  const auto pipeline = Pipeline::load(flags.load);
  const CalibrationSummary summary = calibrate(*pipeline, flags.calibration, flags.output, [&](const Progress& state) {
    const std::string which = format("prompt %d of %d", state.prompt + 1, state.num_prompts);
    const bool compiling = state.stage == "compile", of_prompt = state.stage != "check" && !compiling;
    stop_if_interrupted(state, (of_prompt ? " of " + which : "") + "; what was measured " +
                                   (compiling ? "" : "on the prompts before ") + "is kept in " +
                                   flags.calibration.profile_dir + ": the same command goes on from there");
    bar.update(state, state.overall, of_prompt ? which : "");
  });
  bar.finish();
  if (!flags.report.empty()) {
    write_text_file(flags.report, report_of(summary).dump(2) + "\n");
  }
  if (summary.plan_written) {
    print_summary(summary, flags.output);
  } else {
    std::printf("%s: prompts %s (%d recorded, %d there already), %.1f s\n", flags.calibration.profile_dir.c_str(),
                flags.prompt_range.c_str(), summary.prompts_recorded, summary.prompts_resumed,
                summary.calibration_seconds);
  }
}

void add_measured_flags(CLI::App& command, CalibrateOptions& knobs) {
  const std::string group = "What is measured";
  command
      .add_option("--token-order", knobs.token_order,
                  "raster, or tiles:FxHxW (frames × height × width of a tile) [tiles]")
      ->group(group);
  add_whole_number(command, "--block-q", knobs.block_q, 8, 1024, "Tokens per query block, 8 to 1024")
      ->default_str("64")
      ->group(group);
  add_whole_number(command, "--block-k", knobs.block_k, 8, 1024, "Tokens per key block, 8 to 1024")
      ->default_str("64")
      ->group(group);
  add_whole_number(command, "--anchors", knobs.anchor_rows_per_frame, 1, 65536,
                   "Anchor rows per frame of repetitive heads (k) [what the profile folder holds, else 5, or all rows "
                   "of a lower frame]")
      ->group(group);
  command
      .add_option(
          "--measure", knobs.measure,
          "maps: energies, harm and output errors of blocks, for everything; levels: 4 bits a block and output errors "
          "of heads, at any size, no repetition; auto: what the profile folder holds, else maps for --budget error "
          "where they are not out of proportion, else levels")
      ->check(CLI::IsMember({"auto", "maps", "levels"}))
      ->capture_default_str()
      ->group(group);
  add_whole_number(command, "--steps-recorded", knobs.steps_recorded, 1, 1000,
                   "Levels: record so many of the steps, evenly spread; the others share the plan of the nearest noise "
                   "level [all, or every k-th so that a prompt takes at most 8 GB]")
      ->group(group);
}

void add_compiled_flags(CLI::App& command, CalibrateOptions& knobs) {
  const std::string group = "How the plan is compiled (cheap to change afterwards)";
  command
      .add_option("--budget", knobs.budget, "error: least output error under one global density; energy: the paper's")
      ->check(CLI::IsMember({"error", "energy"}))
      ->capture_default_str()
      ->group(group);
  add_real_number(
      command, "--density", knobs.density, -kAny, kAny,
      "Share of attention that is computed, 0–1: begin with .3 to .4, and look at compare or bench before going lower "
      "[0.3 for --budget error]")
      ->group(group);
  command.add_option("--skipped", knobs.skipped, "Skipped blocks: drop, or summary (one mean token each)")
      ->check(CLI::IsMember({"drop", "summary"}))
      ->capture_default_str()
      ->group(group);
  command.add_option("--agreement", knobs.agreement, "Energy budget over prompts: vote, or mean energy")
      ->check(CLI::IsMember({"vote", "mean"}))
      ->capture_default_str()
      ->group(group);
  add_real_number(command, "--rho", knobs.agreement_threshold, -kAny, kAny, "Vote threshold")
      ->default_str("0.5")
      ->group(group);
  add_real_number(command, "--schedule-a", knobs.schedule_a, -kAny, kAny, "Energy kept in late steps (A)")
      ->default_str("0.84")
      ->group(group);
  add_real_number(command, "--schedule-c", knobs.schedule_c, -kAny, kAny, "Energy kept in the first step (C)")
      ->default_str("0.99")
      ->group(group);
  add_real_number(command, "--schedule-k", knobs.schedule_k, -kAny, kAny, "Decay of the energy schedule (k)")
      ->default_str("16")
      ->group(group);
  command
      .add_option("--ranking", knobs.ranking,
                  "Error budget: rank blocks by measured harm to the output, or by energy [harm with maps, energy with "
                  "level codes]")
      ->check(CLI::IsMember({"harm", "energy"}))
      ->group(group);
  add_real_number(command, "--step-weight", knobs.step_weight_decay, -kAny, kAny,
                  "Error budget: w of a step's weight 0.1 + 0.9 exp(-w t/T)")
      ->default_str("8")
      ->group(group);
  command
      .add_option("--repetition", knobs.repetition,
                  "Copy rows in repetitive heads: off, error (accepted by output error), similarity (the paper's) "
                  "[error where output errors were measured, else off]")
      ->check(CLI::IsMember({"off", "error", "similarity"}))
      ->group(group);
  add_real_number(command, "--gamma", knobs.similarity_threshold, -kAny, kAny,
                  "Similarity from which a head is repetitive")
      ->default_str("0.87")
      ->group(group);
  add_whole_number(command, "--merge-gap", knobs.merge_gap, 0, 1'000'000, "Fill gaps of up to so many skipped blocks")
      ->default_str("0")
      ->group(group);
  add_real_number(command, "--share-steps", knobs.share_steps_iou, -kAny, kAny,
                  "Share masks of adjacent steps that agree at least so much (0: off)")
      ->default_str("0")
      ->group(group);
}

}  // namespace

void add_calibrate(CLI::App& app) {
  CLI::App* command = app.add_subcommand("calibrate", "Measure which attention blocks matter, and write the plan");
  const auto flags = std::make_shared<Flags>();
  CalibrateOptions& knobs = flags->calibration;
  add_model_flags(*command, flags->load);
  command
      ->add_option("--prompts", flags->prompts,
                   "Text file with one calibration prompt a line (4 are enough, of the kind that will be used); lines "
                   "that begin with # are passed over")
      ->required();
  command->add_option("-o,--output", flags->output, "Plan file to write (.safetensors); not with --prompt-range");
  command->add_option(
      "--profile", knobs.profile_dir,
      "Folder of the measurements [OUTPUT.profile]; a killed run goes on from it, and other plans are compiled "
      "from it without running the model again");
  command->add_option("--prompt-range", flags->prompt_range,
                      "A:B: only record prompts A … B−1 (from 0) of the file into the --profile folder; several "
                      "processes can do their part, calibatt merge joins them");
  command->add_option("--report", flags->report, "Write the summary to this JSON file");
  add_run_flags(*command, knobs.run, false);

  add_measured_flags(*command, knobs);
  add_compiled_flags(*command, knobs);
  command->callback([flags] { run(*flags); });
}

}  // namespace calibatt::cli
