#include "calibatt/calibrate.h"

#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <variant>

#include "calibatt/calibration_settings.h"
#include "calibatt/error.h"
#include "calibatt/output.h"
#include "calibatt/plan.h"
#include "commands.h"
#include "interrupt.h"
#include "options.h"
#include "progress_bar.h"

namespace calibatt::cli {

namespace {

constexpr double kAny = 1e300;  // bounds of knobs that the library judges

struct CalibrateFlags {
  LoadOptions load;
  CalibrateOptions calibration;
  std::string prompts, output, report, prompt_range;
};

void print_reuse(const CalibrationSummary& summary) {
  if (summary.latents_error) {
    std::printf("expected change of the final latents %.3g %%", 100 * *summary.latents_error);
    if (summary.psnr_db) std::printf(", %s", expected_psnr_text(*summary.psnr_db).c_str());
    if (summary.latents_measured && summary.psnr_measured) {
      std::printf("\nmeasured in a held-out run (the last prompt, another seed): %.3g %%, %s",
                  100 * *summary.latents_measured, psnr_text(*summary.psnr_measured, 1).c_str());
    }
    std::printf("\n");
  }
  for (const std::string& warning : summary.warnings) std::printf("WARNING: %s\n", printable(warning).c_str());
  if (summary.step_reuse.empty()) return;
  std::printf("steps without a forward:");
  for (size_t step = 0; step < summary.step_reuse.size(); ++step) {
    if (summary.step_reuse[step] != "forward") std::printf(" %zu (%s)", step, summary.step_reuse[step].c_str());
  }
  std::printf("\n");
}

void print_eight_bits(const CalibrationSummary& summary) {
  for (const std::string name : {"attention", "layers"}) {
    std::string steps;
    for (size_t step = 0; step < summary.eight_bits.size(); ++step) {
      if (summary.eight_bits[step].find(name) != std::string::npos) steps += " " + std::to_string(step);
    }
    if (steps.empty()) continue;
    std::printf("%s in 8 bits, where a run allows it: steps%s\n", name == "layers" ? "linear layers" : "self-attention",
                steps.c_str());
  }
}

void print_summary(const CalibrationSummary& summary, const std::string& output) {
  if (!summary.measured.empty()) std::printf("measured: %s\n", printable(summary.measured).c_str());
  std::printf("%s: density %.3f", printable(output).c_str(), summary.density);
  if (summary.density_asked) std::printf(" (asked for: %.3g)", *summary.density_asked);
  std::printf(", %d of %d heads repetitive, predicted speedup of the transformer %.2f×", summary.repetitive_heads,
              summary.total_heads, summary.predicted_speedup);
  if (summary.step_reuse.empty() || summary.expected_error != 0) {  // else it is the reused steps that change anything
    std::printf(", expected error %s", expected_error_text(summary.expected_error, summary.error_basis).c_str());
  }
  std::printf("\n");
  print_reuse(summary);
  print_eight_bits(summary);
  std::printf("%s (%d from the saved profile), %.1f s",
              counted(summary.prompts_recorded + summary.prompts_resumed, "prompts").c_str(), summary.prompts_resumed,
              summary.calibration_seconds);
  if (summary.prompts_recorded > 0) std::printf(", %.1f s of them in the prompts' runs", summary.prompt_seconds);
  const double held_out = summary.growth_seconds + summary.check_seconds;
  if (held_out > 0) std::printf(", %.1f s for held-out runs", held_out);
  std::printf("\n\ndensity  layer");
  const size_t layers = summary.density_map.empty() ? 0 : summary.density_map[0].size();
  for (size_t layer = 0; layer < layers; ++layer) std::printf("%5zu", layer);
  std::printf("   mean\n");
  for (size_t step = 0; step < summary.density_map.size(); ++step) {
    std::printf("  step %-7zu", step);
    if (!summary.step_reuse.empty() && summary.step_reuse[step] != "forward") {
      std::printf(" reused: no forward (%s)\n", summary.step_reuse[step].c_str());
      continue;
    }
    double sum = 0;
    for (const double density : summary.density_map[step]) {
      std::printf(" %.2f", density);
      sum += density;
    }
    std::printf("   %.2f\n", sum / static_cast<double>(layers));
  }
}

nlohmann::json or_null(const std::optional<double>& value) {
  return value ? nlohmann::json(*value) : nlohmann::json();
}

/// JSON has no infinity: the PSNR of equal videos is null there, and this says so.
bool is_infinite(const std::optional<double>& value) {
  return value && std::isinf(*value);
}

nlohmann::json report_of(const CalibrationSummary& summary, const std::vector<std::string>& warnings) {
  return {{"calibration_seconds", summary.calibration_seconds},
          {"prompt_seconds", summary.prompt_seconds},
          {"transformer_seconds", summary.transformer_seconds},
          {"density", summary.density},
          {"density_asked", or_null(summary.density_asked)},
          {"density_map", summary.density_map},
          {"error_map", summary.error_map},
          {"energy_map", summary.energy_map},
          {"repetitive_heads", summary.repetitive_heads},
          {"total_heads", summary.total_heads},
          {"predicted_speedup", summary.predicted_speedup},
          {"expected_error", or_null(summary.expected_error)},
          {"error_basis", summary.error_basis},
          {"step_reuse", summary.step_reuse},
          {"eight_bits", summary.eight_bits},
          {"latents_error", or_null(summary.latents_error)},
          {"psnr_db", or_null(summary.psnr_db)},
          {"latents_measured", or_null(summary.latents_measured)},
          {"psnr_measured", or_null(summary.psnr_measured)},
          {"identical_measured", is_infinite(summary.psnr_measured)},
          {"warnings", warnings},
          {"growth_seconds", summary.growth_seconds},
          {"check_seconds", summary.check_seconds},
          {"plan_written", summary.plan_written},
          {"measured", summary.measured},
          {"attention_share", summary.attention_share},
          {"prompts_recorded", summary.prompts_recorded},
          {"prompts_resumed", summary.prompts_resumed}};
}

/// The text of a prompt itself may have been given.
std::vector<Prompt> prompts_of_file(const std::string& path) {
  try {
    return read_prompts(path);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kNotFound) throw;
    throw Error(error.kind(), std::string("--prompts ") + error.what() + " of a text file with a prompt a line");
  }
}

std::pair<int, int> parse_range(const std::string& text) {
  int begin = 0, end = 0, length = 0;
  if (std::sscanf(text.c_str(), "%d:%d%n", &begin, &end, &length) != 2 || static_cast<size_t>(length) != text.size()) {
    throw Error(ErrorKind::kUsage,
                "--prompt-range " + text + ": give two numbers, such as 0:4 for the first four prompts");
  }
  return {begin, end};
}

void check(CalibrateFlags& flags) {
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
  calibration.prompts = prompts_of_file(flags.prompts);
  check_prompt({calibration.run.negative_prompt, "--negative-prompt"});
  validate(calibration);
  std::vector<Input> inputs = inputs_of(flags.load);
  inputs.push_back({"--prompts", flags.prompts});
  if (calibration.run.image) inputs.push_back({"--image", calibration.run.image->source});
  inputs.push_back({"--profile", calibration.profile_dir});
  check_outputs({{OutputKind::kPlan, "-o", flags.output},
                 {OutputKind::kReport, "--report", flags.report},
                 {OutputKind::kFolder, "--profile", calibration.profile_dir}},
                inputs);
}

/// A GPU that finds no prompt to measure need not load the model.
void leave_idle_devices_out(const CalibrateOptions& calibration, std::vector<int>& devices) {
  const size_t prompts = calibration.prompt_range
                             ? static_cast<size_t>(calibration.prompt_range->second - calibration.prompt_range->first)
                             : calibration.prompts.size();
  if (devices.size() <= prompts) return;
  warn("a prompt is measured on one GPU: " + counted(static_cast<int64_t>(prompts), "prompts") +
       (prompts == 1 ? " keeps " : " keep ") + std::to_string(prompts) + " of the " + std::to_string(devices.size()) +
       " busy, and no more are used");
  devices.resize(prompts);
}

/// GPUs that measure prompts of their own are at different steps.
void hold_whole_weights(LoadOptions& load) {
  if (load.offload || load.shard_weights == ShardWeights::kOn) {
    throw Error(ErrorKind::kUsage, std::string(load.offload ? "--offload" : "--shard-weights on") +
                                       ": a calibration on several GPUs holds all weights on each; leave it out, or "
                                       "calibrate on one GPU, which can take --offload");
  }
  load.shard_weights = ShardWeights::kOff;
}

void run(CalibrateFlags& flags) {
  const KeptWarnings warnings;
  check(flags);
  if (flags.load.devices.size() > 1) hold_whole_weights(flags.load);
  leave_idle_devices_out(flags.calibration, flags.load.devices);
  LoadOptions of_one_rank = flags.load;  // no forward is shared
  of_one_rank.devices.resize(1);
  check_before_loading(ModelOnDisk::open(of_one_rank), flags.calibration.run);
  GenerateOptions prompts_run = flags.calibration.run;  // 8 bits are the plan's, which may be for another machine
  if (prompts_run.attention_dtype == AttentionDtype::kFP8) prompts_run.attention_dtype = AttentionDtype::kModel;
  check_attention_here(of_one_rank, prompts_run);
  if (flags.calibration.run.fps) warn("--fps is not read: a calibration writes no video");
  watch_for_interrupts();
  ProgressBar bar("calibrate");
  flags.load.progress = [](const Progress& state) { stop_if_interrupted(state, "; nothing was measured yet"); };
  const auto pipeline = Pipeline::load(flags.load);
  const CalibrationSummary summary = calibrate(*pipeline, flags.calibration, flags.output, [&](const Progress& state) {
    const std::string which = state.prompt < state.num_prompts
                                  ? format("prompt %d of %d", state.prompt + 1, state.num_prompts)
                                  : "a held-out run";
    const bool compiling = state.stage == "compile", before = state.stage == "check" || state.stage == "read";
    const bool of_prompt = !before && !compiling;
    const bool repeats_dense = of_prompt && state.prompt >= state.num_prompts && !state.plan_is_written &&
                               state.stage != "decode";  // when all is measured
    const std::string plan =
        state.plan_is_written ? "; " + flags.output + " is written, complete but for the error that was to be measured"
                              : "";
    stop_if_interrupted(state, (of_prompt ? " of " + which : "") + plan + "; what was measured " +
                                   (of_prompt && state.prompt < state.num_prompts ? "on the prompts before " : "") +
                                   "is kept in " + flags.calibration.profile_dir +
                                   ": the same command goes on from there" +
                                   (repeats_dense ? ", behind the dense held-out run, which it makes again" : ""));
    bar.update(state, state.overall, of_prompt ? which : "");
  });
  bar.finish();
  if (!flags.report.empty()) {
    write_text_file(flags.report, report_of(summary, warnings.with(summary.warnings)).dump(2) + "\n");
  }
  if (summary.plan_written) {
    print_summary(summary, flags.output);
  } else {
    std::printf("%s: prompts %s (%d recorded, %d there already), %.1f s\n", flags.calibration.profile_dir.c_str(),
                flags.prompt_range.c_str(), summary.prompts_recorded, summary.prompts_resumed,
                summary.calibration_seconds);
  }
}

std::string default_text(double value) {
  return format("%g", value);
}

/// The flag of one setting, whatever its field is.
struct FlagAdder {
  CLI::App& command;
  CalibrateOptions& knobs;
  const CalibrationSetting& setting;

  CLI::Option* operator()(std::string CalibrateOptions::*field) const {
    CLI::Option* option = command.add_option("--" + setting.name, knobs.*field, setting.description);
    if (!setting.choices.empty()) option->check(CLI::IsMember(setting.choices));
    if (!(knobs.*field).empty()) option->capture_default_str();
    return option;
  }
  CLI::Option* operator()(int CalibrateOptions::*field) const {
    return whole(knobs.*field)->default_str(std::to_string(knobs.*field));
  }
  CLI::Option* operator()(std::optional<int> CalibrateOptions::*field) const { return whole(knobs.*field); }
  CLI::Option* operator()(double CalibrateOptions::*field) const {
    return real(knobs.*field)->default_str(default_text(knobs.*field));
  }
  CLI::Option* operator()(std::optional<double> CalibrateOptions::*field) const { return real(knobs.*field); }

 private:
  template <class Value>
  CLI::Option* whole(Value& value) const {
    return add_whole_number(command, "--" + setting.name, value, setting.lowest, setting.highest, setting.description);
  }
  template <class Value>
  CLI::Option* real(Value& value) const {
    return add_real_number(command, "--" + setting.name, value, -kAny, kAny, setting.description);
  }
};

void add_setting_flags(CLI::App& command, CalibrateOptions& knobs) {
  for (const CalibrationSetting& setting : calibration_settings()) {
    std::visit(FlagAdder{command, knobs, setting}, setting.field)
        ->group(setting.group == CalibrationSetting::Group::kMeasured
                    ? "What is measured"
                    : "How the plan is compiled (cheap to change afterwards)");
  }
}

}  // namespace

void add_calibrate(CLI::App& app) {
  CLI::App* command = app.add_subcommand("calibrate", "Measure which attention blocks matter, and write the plan");
  const auto flags = std::make_shared<CalibrateFlags>();
  CalibrateOptions& knobs = flags->calibration;
  add_model_flags(*command, flags->load);
  command->get_option("--shard-weights")
      ->description("Not for a calibration, in which each GPU holds all weights: off");
  command->get_option("--offload")
      ->description("On one GPU: keep the transformer's blocks in host memory and stream them: 14B at 720p in 11 GB");
  command->get_option("--gpus")->description(
      "Measure so many prompts at a time, each on a GPU of its own, the first ones of this machine [1]");
  command->get_option("--device")
      ->description("Index of the GPU, as CUDA counts them; of several that measure a prompt each, such as 0,2");
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
  add_attention_dtype_flag(*command, knobs.run,
                           "fp8: a plan with --speedup or --psnr may have self-attention in 8 bits, and what that does "
                           "is measured; on Hopper GPUs");

  add_setting_flags(*command, knobs);
  command->callback([flags] { run(*flags); });
}

}  // namespace calibatt::cli
