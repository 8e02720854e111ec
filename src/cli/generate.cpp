#include <cstdio>
#include <memory>

#include "commands.h"
#include "interrupt.h"

namespace calibatt::cli {

namespace {

struct Flags {
  LoadOptions load;
  GenerateOptions run;
  std::string output, report, on_mismatch = "refuse";
};

void print_plan_use(const PlanUse& plan) {
  if (plan.expected_error) {
    const char* const basis = plan.error_basis == "measured"   ? "measured in runs with it"
                              : plan.error_basis == "held out" ? "predicted on prompts that chose no blocks"
                                                               : "predicted on the very prompts that chose its blocks";
    std::printf("plan: error %.4f of the attention's output at calibration, %s; weights: %s\n", *plan.expected_error,
                basis, plan.weights.c_str());
  } else {
    std::printf("plan: it does not say how far it is from dense; weights: %s\n", plan.weights.c_str());
  }
  for (const std::string& warning : plan.warnings) std::printf("WARNING: %s\n", warning.c_str());
}

void print_summary(const RunReport& report, const std::string& output) {
  const StageSeconds& seconds = report.seconds;
  std::printf("%s: %d×%d, %d frames, seed %llu, %d steps (%s, %s, %d threads)\n", output.c_str(), *report.options.width,
              *report.options.height, *report.options.video_frames,
              static_cast<unsigned long long>(report.options.seed), *report.options.steps, report.precision.c_str(),
              report.attention_kernel.c_str(), report.threads);
  if (!report.device.empty()) {
    std::printf("%s on %s, %.2f GB of its memory at most\n", report.backend.c_str(), report.device.c_str(),
                static_cast<double>(report.peak_device_bytes) * 1e-9);
  }
  std::printf("time: %.1f s = text %.1f + attention %.1f + other transformer work %.1f + VAE %.1f\n", seconds.total(),
              seconds.text, seconds.attention, seconds.transformer_other, seconds.vae);
  if (report.options.plan_path.empty()) {
    std::printf("self-attention: dense (no --plan)\n");
  } else {
    std::printf("self-attention: density %.3f; by layer:", report.density);
    for (int layer = 0; layer < report.num_layers; ++layer) {
      double sum = 0;
      for (const auto& step : report.density_map) sum += step[static_cast<size_t>(layer)];
      std::printf(" %.2f", sum / static_cast<double>(report.density_map.size()));
    }
    std::printf("\n");
  }
  if (report.plan) print_plan_use(*report.plan);
  if (!report.step_mapping.empty()) std::printf("plan steps: %s\n", report.step_mapping.c_str());
  if (report.dense_fallback_calls > 0) {
    std::printf("WARNING: %lld of %lld self-attention calls ran dense because the plan does not fit: %s\n",
                static_cast<long long>(report.dense_fallback_calls), static_cast<long long>(report.attention_calls),
                report.fallback_reason.c_str());
  }
}

void run(Flags& flags) {
  check_video_output(flags.output);
  if (!flags.report.empty()) check_output(flags.report);
  GenerateOptions options = flags.run;
  options.on_mismatch = flags.on_mismatch == "dense"  ? OnMismatch::kDense
                        : flags.on_mismatch == "warn" ? OnMismatch::kWarn
                                                      : OnMismatch::kRefuse;

  check_prompt({options.prompt, options.prompt_source});
  check_prompt({options.negative_prompt, "--negative-prompt"});
  watch_for_interrupts();
  ProgressBar bar("generate");
  const ProgressCallback progress = [&bar](const Progress& state) {
    stop_if_interrupted(state, "; nothing was written");
    bar.update(state.stage, state.overall);
  };
  flags.load.progress = progress;
  const auto pipeline = Pipeline::load(flags.load);
  const Pipeline::Result result = pipeline->generate(options, progress);
  bar.finish();
  write_video(result.video, *result.report.options.fps, flags.output);
  if (!flags.report.empty()) write_text_file(flags.report, to_json(result.report));
  print_summary(result.report, flags.output);
}

}  // namespace

void add_generate(CLI::App& app) {
  CLI::App* command = app.add_subcommand("generate", "Make a video from a prompt, dense or with a plan");
  const auto flags = std::make_shared<Flags>();
  add_model_flags(*command, flags->load);
  command->add_option("-p,--prompt", flags->run.prompt, "What the video should show; may be empty")->required();
  add_run_flags(*command, flags->run);
  command->add_option("--plan", flags->run.plan_path,
                      "Plan file made by `calibatt calibrate`; without it attention is dense");
  command
      ->add_option("--on-mismatch", flags->on_mismatch,
                   "When the plan was made for something else: refuse; run dense and say so; or warn: apply a plan of "
                   "the same size and shape to other weights (a fine-tune)")
      ->check(CLI::IsMember({"refuse", "dense", "warn"}))
      ->capture_default_str();
  command->add_option("-o,--output", flags->output, "Video file: .mp4, .webm, .webp, or .png for numbered frames")
      ->required();
  command->add_option("--report", flags->report, "Write everything about the run to this JSON file");
  command->callback([flags] { run(*flags); });
}

}  // namespace calibatt::cli
