#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "calibatt/error.h"
#include "calibatt/fit.h"
#include "calibatt/output.h"
#include "calibatt/pipeline.h"
#include "commands.h"
#include "interrupt.h"
#include "options.h"
#include "page.h"
#include "progress_bar.h"

namespace calibatt::cli {

namespace {

using nlohmann::json;

struct BenchFlags {
  LoadOptions load;
  GenerateOptions run;
  std::string plan, prompts, output_dir, calibration_report, html;
  ReportInputs page;
  std::optional<int> max_prompts;
  json calibration;  // what the calibration report holds
};

constexpr const char *kDense = "_dense.mp4", *kCalibrated = "_calibrated.mp4", *kSideBySide = "_side_by_side.mp4";

std::string stem(int prompt) {
  return "prompt_" + std::to_string(prompt);
}

std::string stem(const BenchFlags& flags, int prompt) {
  return flags.output_dir + "/" + stem(prompt);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

struct PromptResult {
  RunReport dense, calibrated;
  VideoComparison comparison;
  double speedup_transformer() const { return dense.seconds.transformer() / calibrated.seconds.transformer(); }
  double speedup_attention() const { return dense.seconds.attention / calibrated.seconds.attention; }
  double speedup_total() const { return dense.seconds.total() / calibrated.seconds.total(); }
};

// The pair of one prompt. The order alternates from prompt to prompt, so that a drift of the machine's speed favours
// neither.
PromptResult run_prompt(Pipeline& pipeline, const BenchFlags& flags, const Prompt& prompt, int index, ProgressBar& bar,
                        int count) {
  GenerateOptions options = flags.run;
  options.prompt = prompt.text;
  options.prompt_source = prompt.source;
  Pipeline::Result results[2];  // [0] dense, [1] calibrated
  for (int turn = 0; turn < 2; ++turn) {
    const int which = (turn + index + 1) % 2;  // calibrated first: a plan that does not fit is found at once
    options.plan_path = which == 0 ? "" : flags.plan;
    // The dense run is the reference of what the plan, and 8 bits, change.
    options.attention_dtype = which == 0 ? AttentionDtype::kModel : flags.run.attention_dtype;
    results[which] = pipeline.generate(options, [&](const Progress& state) {
      stop_if_interrupted(
          state, format(" of prompt %d of %d; finished videos are in %s", index + 1, count, flags.output_dir.c_str()));
      bar.update(state, (index * 2 + turn + state.overall) / (count * 2),
                 format("prompt %d of %d, %s", index + 1, count, which == 0 ? "dense" : "calibrated"));
    });
    write_video(results[which].video, *results[which].report.options.fps,
                stem(flags, index) + (which == 0 ? kDense : kCalibrated));
  }
  write_video(side_by_side(results[0].video, results[1].video), *results[0].report.options.fps,
              stem(flags, index) + kSideBySide);
  return {results[0].report, results[1].report, compare_videos(results[0].video, results[1].video)};
}

/// What of the dense runs is in 8 bits itself: --weights-dtype is of the whole model.
std::string dense_eight_bits(const RunReport& dense) {
  const int steps = eight_bit_steps(dense, "layers");
  if (steps == 0) return "";
  return format("linear layers in %s in %d of ", dense.weights_dtype.c_str(), steps) +
         counted(*dense.options.steps, "steps");
}

json report_json(const BenchFlags& flags, const std::vector<Prompt>& prompts,
                 const std::vector<PromptResult>& results) {
  std::vector<double> transformer, attention, total, psnr, ssim, flicker;
  std::vector<std::string> texts;
  json each = json::array();
  for (size_t i = 0; i < results.size(); ++i) {
    const PromptResult& result = results[i];
    texts.push_back(prompts[i].text);
    transformer.push_back(result.speedup_transformer());
    attention.push_back(result.speedup_attention());
    total.push_back(result.speedup_total());
    psnr.push_back(result.comparison.psnr_db);
    ssim.push_back(result.comparison.ssim);
    flicker.push_back(result.comparison.flicker_difference);
    each.push_back(
        {{"prompt", prompts[i].text},
         {"speedup_transformer", transformer.back()},
         {"speedup_attention", attention.back()},
         {"speedup_total", total.back()},
         {"psnr_db", psnr.back()},
         {"ssim", ssim.back()},
         {"flicker_difference", flicker.back()},
         {"psnr_db_per_frame", result.comparison.psnr_db_per_frame},
         {"videos",
          {{"dense", stem(static_cast<int>(i)) + kDense}, {"calibrated", stem(static_cast<int>(i)) + kCalibrated}}},
         {"dense", json::parse(to_json(result.dense))},
         {"calibrated", json::parse(to_json(result.calibrated))}});
  }
  const auto spread = [](const std::vector<double>& values) {
    return json{{"min", *std::min_element(values.begin(), values.end())},
                {"max", *std::max_element(values.begin(), values.end())}};
  };
  json report = {{"speedup_transformer", median(transformer)},
                 {"speedup_attention", median(attention)},
                 {"speedup_total", median(total)},
                 {"spread_speedup_transformer", spread(transformer)},
                 {"density", results[0].calibrated.density},
                 {"psnr_db", median(psnr)},
                 {"ssim", median(ssim)},
                 {"flicker_difference", median(flicker)},
                 {"dense_eight_bits", dense_eight_bits(results[0].dense)},
                 {"prompts", texts},
                 {"seed", flags.run.seed},
                 {"calibration_seconds", nullptr},
                 {"runs", each}};
  if (flags.calibration.is_object()) {
    report["calibration_seconds"] = flags.calibration["calibration_seconds"];
    report["calibration"] = flags.calibration;
  }
  return report;
}

void print_table(const std::vector<PromptResult>& results, const json& report) {
  std::printf("%-8s %22s %22s %9s %9s %8s %8s %8s\n", "prompt", "dense s (attention)", "calibrated (attention)",
              "transf. ×", "total ×", "PSNR dB", "SSIM", "flicker");
  for (size_t i = 0; i < results.size(); ++i) {
    const PromptResult& result = results[i];
    const double psnr = result.comparison.psnr_db;
    std::printf("%-8zu %12.1f (%7.1f) %12.1f (%7.1f) %9.2f %9.2f %8s %8.4f %+8.3f\n", i, result.dense.seconds.total(),
                result.dense.seconds.attention, result.calibrated.seconds.total(), result.calibrated.seconds.attention,
                result.speedup_transformer(), result.speedup_total(),
                (std::isinf(psnr) ? "same" : format("%.2f", psnr)).c_str(), result.comparison.ssim,
                result.comparison.flicker_difference);
  }
  const std::string eight_bits = report["dense_eight_bits"];
  std::printf(
      "median: transformer %.2f times as fast as dense%s, %.2f times in all, at density %.3f; PSNR %s, SSIM %.4f\n",
      report["speedup_transformer"].get<double>(),
      (eight_bits.empty() ? "" : " (which has " + eight_bits + ")").c_str(), report["speedup_total"].get<double>(),
      report["density"].get<double>(), psnr_text(report["psnr_db"].get<double>(), 2).c_str(),
      report["ssim"].get<double>());
}

json read_calibration_report(const std::string& path) {
  json calibration = json::parse(read_text_file(path), nullptr, false);
  if (!calibration.is_object() || !calibration.contains("calibration_seconds")) {
    throw Error(ErrorKind::kFormat, path + ": not a report of `calibatt calibrate --report`");
  }
  return calibration;
}

/// What can be known before the first video: prompts, and all that is read and written.
std::vector<Prompt> check(BenchFlags& flags) {
  std::vector<Prompt> prompts = read_prompts(flags.prompts);
  check_prompt({flags.run.negative_prompt, "--negative-prompt"});
  if (!flags.calibration_report.empty()) flags.calibration = read_calibration_report(flags.calibration_report);
  if (const size_t found = prompts.size(); flags.max_prompts && found > static_cast<size_t>(*flags.max_prompts)) {
    prompts.resize(static_cast<size_t>(*flags.max_prompts));
    std::fprintf(stderr, "calibatt: running %zu of %s (--max-prompts)\n", prompts.size(),
                 counted(static_cast<int64_t>(found), "prompts").c_str());
  }
  check_outputs({{OutputKind::kFolder, "-o", flags.output_dir}}, {});
  std::error_code error;
  std::filesystem::create_directories(flags.output_dir, error);
  std::vector<Output> outputs{{OutputKind::kReport, "-o", flags.output_dir + "/report.json"},
                              {OutputKind::kPage, "--html", flags.html}};
  for (size_t i = 0; i < prompts.size(); ++i) {
    for (const char* name : {kDense, kCalibrated, kSideBySide}) {
      outputs.push_back({OutputKind::kVideo, "-o", stem(flags, static_cast<int>(i)) + name});
    }
  }
  std::vector<Input> inputs = inputs_of(flags.load);
  inputs.push_back({"--plan", flags.plan});
  inputs.push_back({"--prompts", flags.prompts});
  if (flags.run.image) inputs.push_back({"--image", flags.run.image->source});
  inputs.push_back({"--calibration-report", flags.calibration_report});
  check_outputs(outputs, inputs);
  return prompts;
}

void run(BenchFlags& flags) {
  const KeptWarnings once;  // all prompts have the same plan
  std::vector<Prompt> prompts = check(flags);
  const ModelOnDisk model = ModelOnDisk::open(flags.load);
  check_before_loading(model, flags.run);
  check_attention_here(flags.load, flags.run);
  GenerateOptions planned = model.resolved(flags.run);
  planned.plan_path = flags.plan;
  check_plan(flags.load, planned);
  flags.load.video_bytes = model.memory(flags.run, flags.load.precision, flags.load.weights).beside_weights();
  watch_for_interrupts();
  flags.load.progress = [](const Progress& state) { stop_if_interrupted(state, "; nothing was written"); };
  const auto pipeline = Pipeline::load(flags.load);
  pipeline->expect_prompts(prompts);
  ProgressBar bar("bench");
  std::vector<PromptResult> results;
  std::optional<Error> failure;
  for (size_t i = 0; i < prompts.size() && !failure; ++i) {
    try {
      results.push_back(
          run_prompt(*pipeline, flags, prompts[i], static_cast<int>(i), bar, static_cast<int>(prompts.size())));
    } catch (const Error& error) {
      if (results.empty()) throw;
      failure = error;  // what was measured before is worth a table
    }
  }
  bar.finish();
  const json report = report_json(flags, prompts, results);
  print_table(results, report);
  std::fflush(stdout);
  const std::string path = flags.output_dir + "/report.json";
  write_text_file(path, report.dump(2) + "\n");
  if (!flags.html.empty()) {
    flags.page.files = {path, flags.plan};
    write_page(flags.page, flags.html);
  }
  if (failure) {
    throw Error(failure->kind(), format("prompt %zu of %zu: %s; table and report are of the prompts before it",
                                        results.size() + 1, prompts.size(), failure->what()));
  }
}

}  // namespace

void add_bench(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("bench", "Make the same videos dense and with a plan; compare time and pictures");
  command->footer(
      "Prints for each prompt seconds, speedups (of the transformer and in all) and how close the calibrated video is "
      "to\n"
      "the dense one (see calibatt compare --help), then the medians.");
  const auto flags = std::make_shared<BenchFlags>();
  add_model_flags(*command, flags->load);
  command->add_option("--plan", flags->plan, "Plan to judge; made for this model, size and number of frames")
      ->type_name("FILE")
      ->required();
  command
      ->add_option("--prompts", flags->prompts,
                   "Text file with one prompt a line (lines that begin with # are passed over); better others than it "
                   "was calibrated on")
      ->type_name("FILE")
      ->required();
  add_whole_number(*command, "--max-prompts", flags->max_prompts, 1, 1'000'000, "Use only the first so many [all]");
  add_run_flags(*command, flags->run);
  add_eight_bit_flags(*command, flags->run);
  add_mismatch_flag(*command, flags->run, {"refuse", "warn"});
  command
      ->add_option("--calibration-report", flags->calibration_report,
                   "What `calibatt calibrate --report` wrote; goes into report.json")
      ->type_name("FILE");
  command
      ->add_option(
          "-o,--output", flags->output_dir,
          "Folder for report.json and prompt_N_dense.mp4, …_calibrated.mp4, …_side_by_side.mp4 (made when missing)")
      ->type_name("FOLDER")
      ->required();
  CLI::Option* html =
      command->add_option("--html", flags->html, "Also write a page to look at (see calibatt report --help)")
          ->type_name("FILE");
  add_max_video_flag(*command, flags->page)->needs(html);
  command->callback([flags] { run(*flags); });
}

}  // namespace calibatt::cli
