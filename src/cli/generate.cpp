#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <utility>

#include "calibatt/error.h"
#include "calibatt/fit.h"
#include "calibatt/output.h"
#include "calibatt/pipeline.h"
#include "calibatt/plan.h"
#include "calibatt/prompts.h"
#include "commands.h"
#include "interrupt.h"
#include "options.h"
#include "progress_bar.h"
#include "resume.h"
#include "video_files.h"

namespace calibatt::cli {

namespace {

struct GenerateFlags {
  LoadOptions load;
  GenerateOptions run;
  std::string prompts, output, report;
  bool any_seed = false;
};

/// One video to make.
struct Job {
  Prompt prompt;
  std::string output, report;
};

void print_plan_use(const PlanUse& plan, bool reuses_steps) {
  std::string text;  // attention without an error says nothing of a run that reuses steps
  if (!reuses_steps || plan.expected_error != 0) {
    text = "expected error " + expected_error_text(plan.expected_error, plan.error_basis) + "; ";
  }
  std::printf("plan: %sweights: %s\n", text.c_str(), plan.weights.c_str());
  if (const std::string end = end_of_run_text(plan.end); !end.empty()) {
    std::printf("plan: %s%s\n", end.c_str(), plan.end_is_with.empty() ? "" : ("; with " + plan.end_is_with).c_str());
  }
}

void print_reuse(const RunReport& report) {
  std::string ways;
  int reused = 0;
  for (const auto& [way, steps] : reused_steps(report)) {
    ways += (ways.empty() ? "" : ", ") + std::to_string(steps) + " by " + way;
    reused += steps;
  }
  if (reused == 0) return;
  std::printf("steps: %d of %d without a forward (%s), %s\n", reused, *report.options.steps, ways.c_str(),
              counted(report.forwards, "forwards").c_str());
}

/// A plan may mean more in 8 bits than the run allows.
void print_planned_eight_bits(const RunReport& report) {
  if (!report.plan) return;
  const auto steps = [&](const char* part) {
    const std::vector<std::string>& parts = report.plan->eight_bits;
    std::ptrdiff_t count = 0;
    for (size_t step = 0; step < parts.size(); ++step) {
      const bool runs = report.step_reuse.empty() || report.step_reuse[step] == "forward";
      count += runs && parts[step].find(part) != std::string::npos;
    }
    return count;
  };
  const bool attention = report.options.attention_dtype == AttentionDtype::kFP8, layers = !report.weights_dtype.empty();
  if (const auto planned = steps("attention"); planned > 0 && !attention) {
    std::printf("the plan would have self-attention in 8 bits in %d of the steps: --attention-dtype fp8 allows it\n",
                static_cast<int>(planned));
  }
  if (const auto planned = steps("layers"); planned > 0 && !layers) {
    std::printf(
        "the plan would have linear layers in 8 bits in %d of the steps: --weights-dtype int8 or fp8 allows it\n",
        static_cast<int>(planned));
  }
}

/// Of a part that was asked for in 8 bits and is so in no step.
void print_why_none(const RunReport& report, const char* part) {
  const std::optional<int>& kept = report.options.kept_steps;
  if (report.plan && !report.plan->eight_bits.empty() && !kept) {
    std::printf("  %s in no step: the plan has none in 8 bits there; --keep-steps N takes the plan's place\n", part);
    return;
  }
  const std::string keeps = kept ? "--keep-steps " + std::to_string(*kept) : "keeping the first quarter of the steps";
  std::printf("  %s in no step: %s leaves no other step with a forward; give a smaller --keep-steps\n", part,
              keeps.c_str());
}

void print_eight_bits(const RunReport& report) {
  print_planned_eight_bits(report);
  if (report.eight_bit_parts.empty()) return;
  const bool attention = report.options.attention_dtype == AttentionDtype::kFP8, layers = !report.weights_dtype.empty();
  const int with_attention = eight_bit_steps(report, "attention"), with_layers = eight_bit_steps(report, "layers");
  std::string parts;
  if (attention) parts = "self-attention in " + std::to_string(with_attention);
  if (layers) parts += (parts.empty() ? "" : ", ") + format("linear layers in %d", with_layers);
  int reused = 0;
  for (const auto& [way, steps] : reused_steps(report)) reused += steps;
  std::printf("in 8 bits: %s of %s%s; the others in the run's precision\n", parts.c_str(),
              counted(*report.options.steps - reused, "steps").c_str(), reused > 0 ? " with a forward" : "");
  if (attention && with_attention == 0) print_why_none(report, "self-attention");
  if (layers && with_layers == 0) print_why_none(report, "linear layers");
}

/// How several devices shared the run.
void print_sharing(const RunReport& report) {
  if (report.devices.size() < 2) return;
  std::string devices, groups;
  for (const int device : report.devices) devices += (devices.empty() ? "" : ", ") + std::to_string(device);
  if (report.guidance_groups > 1) groups = "; each half computed one branch of guidance";
  if (report.deal_imbalance) {
    groups += format("; the busiest had %.3f times the mean work of self-attention", *report.deal_imbalance);
  }
  if (report.decoding_devices == 1) groups += "; the first decoded the video";
  if (report.weight_placement == "shards") groups += format("; each keeps 1/%zu of the weights", report.devices.size());
  if (report.weight_placement == "host") groups += "; the weights are once in host memory";
  std::printf("devices %s%s\n", devices.c_str(), groups.c_str());
}

void print_summary(const RunReport& report, const std::string& output) {
  const StageSeconds& seconds = report.seconds;
  std::printf("%s: %d×%d, %s, seed %llu, %s (%s, %s, %s)\n",
              printable(written_names(output, *report.options.video_frames)).c_str(), *report.options.width,
              *report.options.height, counted(*report.options.video_frames, "frames").c_str(),
              static_cast<unsigned long long>(report.options.seed), counted(*report.options.steps, "steps").c_str(),
              (report.precision + (report.weights_dtype.empty() ? "" : ", weights " + report.weights_dtype)).c_str(),
              report.attention_kernel.c_str(), counted(report.threads, "threads").c_str());
  if (!report.device.empty()) {
    std::printf("%s on %s%s, %.2f GB of its memory at most\n", report.backend.c_str(),
                report.devices.size() > 1 ? format("%zu × ", report.devices.size()).c_str() : "", report.device.c_str(),
                static_cast<double>(report.peak_device_bytes) * 1e-9);
  }
  print_sharing(report);
  std::printf("time: %.1f s = text %.1f + attention %.1f + other transformer work %.1f + VAE %.1f\n", seconds.total(),
              seconds.text, seconds.attention, seconds.transformer_other, seconds.vae);
  print_eight_bits(report);
  if (report.options.plan_path.empty()) {
    std::printf("self-attention: dense (no --plan)\n");
  } else {
    int reused = 0;
    for (const auto& [way, steps] : reused_steps(report)) reused += steps;
    std::printf("self-attention: density %.3f; by layer:", report.density);
    for (int layer = 0; layer < report.num_layers; ++layer) {
      double sum = 0;
      for (const auto& step : report.density_map) sum += step[static_cast<size_t>(layer)];
      std::printf(" %.2f", sum / (static_cast<double>(report.density_map.size()) - reused));
    }
    std::printf("\n");
  }
  print_reuse(report);
  if (report.plan) print_plan_use(*report.plan, !report.step_reuse.empty());
  if (!report.step_mapping.empty()) std::printf("plan steps: %s\n", printable(report.step_mapping).c_str());
  if (report.dense_fallback_calls > 0) {
    std::printf("WARNING: %lld of %s ran dense because the plan does not fit: %s\n",
                static_cast<long long>(report.dense_fallback_calls),
                counted(report.attention_calls, "self-attention calls").c_str(),
                printable(report.fallback_reason).c_str());
  }
}

/// A report beside each of many videos, so that the same command knows them again: "v.mp4" → "v.json".
std::string reports_of(const GenerateFlags& flags) {
  return flags.report.empty() ? std::filesystem::path(flags.output).replace_extension(".json").string() : flags.report;
}

bool is_finished(const GenerateFlags& flags, const ModelOnDisk& model, const Job& job) {
  GenerateOptions options = flags.run;
  options.prompt = job.prompt.text;
  RunReport wanted = model.expected_report(options);
  const Precision precision = flags.load.precision;
  wanted.precision = precision == Precision::kF32 ? "fp32" : precision == Precision::kF16 ? "fp16" : "bf16";
  return is_made({job.output, job.report, flags.any_seed, precision == Precision::kAuto}, wanted);
}

/// What is to be done. Of many videos those that are there already are passed over, so that a command that was ended
/// goes on where it was.
std::vector<Job> jobs_of(const GenerateFlags& flags, const ModelOnDisk& model) {
  if (flags.prompts.empty()) {
    check_prompt({flags.run.prompt, flags.run.prompt_source});
    return {{{flags.run.prompt, flags.run.prompt_source}, flags.output, flags.report}};
  }
  std::vector<Job> jobs;
  int number = 0, finished = 0;
  for (Prompt& prompt : read_prompts(flags.prompts)) {
    Job job{std::move(prompt), numbered(flags.output, number), numbered(reports_of(flags), number)};
    ++number;
    if (is_finished(flags, model, job)) {
      ++finished;
    } else {
      jobs.push_back(std::move(job));
    }
  }
  if (finished > 0) {
    std::fprintf(stderr, "calibatt: passing over %d of %s, made by an earlier run (remove one to make it anew)\n",
                 finished, counted(number, "videos").c_str());
  }
  return jobs;
}

void check(const GenerateFlags& flags, const std::vector<Job>& jobs) {
  check_prompt({flags.run.negative_prompt, "--negative-prompt"});
  std::vector<Output> outputs;
  for (const Job& job : jobs) {
    outputs.push_back({OutputKind::kVideo, "-o", job.output});
    outputs.push_back({OutputKind::kReport, "--report", job.report});
  }
  std::vector<Input> inputs = inputs_of(flags.load);
  inputs.push_back({"--plan", flags.run.plan_path});
  inputs.push_back({"--prompts", flags.prompts});
  if (flags.run.image) inputs.push_back({"--image", flags.run.image->source});
  check_outputs(outputs, inputs);
}

void run_job(Pipeline& pipeline, const GenerateOptions& run, const Job& job, bool many,
             const ProgressCallback& progress) {
  GenerateOptions options = run;
  options.prompt = job.prompt.text;
  options.prompt_source = job.prompt.source;
  const Pipeline::Result result = pipeline.generate(options, progress);
  // Of many videos the report comes first, so that there is none of which nobody knows what it was made from.
  if (many) write_text_file(job.report, to_json(result.report));
  write_or_keep(result.video, *result.report.options.fps, job.output);
  if (many) {
    write_text_file(job.report, report_of_written(result.report, job.output));
  } else if (!job.report.empty()) {
    write_text_file(job.report, to_json(result.report));
  }
  print_summary(result.report, job.output);
}

/// One video after another; one that fails does not stop the others.
void run_jobs(Pipeline& pipeline, const GenerateOptions& options, const std::vector<Job>& jobs, ProgressBar& bar) {
  const size_t count = jobs.size();
  const GenerateOptions resolved = pipeline.resolved(options);  // what no prompt could run with is said once
  std::vector<Prompt> prompts;
  prompts.reserve(count);
  for (const Job& job : jobs) prompts.push_back(job.prompt);
  pipeline.expect_prompts(prompts);
  std::optional<ErrorKind> failed_with;
  size_t failed = 0;
  for (size_t i = 0; i < count; ++i) {
    try {
      run_job(pipeline, resolved, jobs[i], true, [&](const Progress& state) {
        stop_if_interrupted(state, format(" of video %zu of %zu; the finished ones are kept, and the same command goes "
                                          "on from there",
                                          i + 1, count));
        bar.update(state, (static_cast<double>(i) + state.overall) / static_cast<double>(count),
                   format("video %zu of %zu", i + 1, count));
      });
      bar.finish();
      std::fflush(stdout);
    } catch (const Error& error) {
      bar.finish();
      if (error.kind() == ErrorKind::kMismatch) throw;  // of the plan, which is every video's
      std::fprintf(stderr, "calibatt: %s: %s\n", printable(jobs[i].output).c_str(), printable(error.what()).c_str());
      ++failed;
      if (!failed_with) failed_with = error.kind();
    }
  }
  if (failed_with) {
    throw Error(*failed_with, format("could not make %zu of %s, for the reasons above; the same command tries again",
                                     failed, counted(static_cast<int64_t>(count), "videos").c_str()));
  }
}

void warn_of_unread(const GenerateFlags& flags) {
  warn_of_unread_fps(flags.run.fps.has_value(), flags.output);
  if (flags.run.on_mismatch != OnMismatch::kRefuse && flags.run.plan_path.empty()) {
    warn("--on-mismatch is not read: no --plan is given");
  }
}

void run(GenerateFlags& flags) {
  const KeptWarnings once;  // many videos have the same plan
  const ModelOnDisk model = ModelOnDisk::open(flags.load);
  check_before_loading(model, flags.run);
  check_attention_here(flags.load, flags.run);
  flags.load.video_bytes = model.memory(flags.run, flags.load.precision, flags.load.weights).beside_weights();
  warn_of_unread(flags);
  const std::vector<Job> jobs = jobs_of(flags, model);
  check(flags, jobs);
  if (jobs.empty()) return;
  check_plan(flags.load, model.resolved(flags.run));
  watch_for_interrupts();
  ProgressBar bar("generate");
  const ProgressCallback progress = [&bar](const Progress& state) {
    stop_if_interrupted(state, "; nothing was written");
    bar.update(state);
  };
  flags.load.progress = progress;
  const auto pipeline = Pipeline::load(flags.load);
  if (!flags.prompts.empty()) return run_jobs(*pipeline, flags.run, jobs, bar);
  run_job(*pipeline, flags.run, jobs[0], false, progress);
}

}  // namespace

void add_generate(CLI::App& app) {
  CLI::App* command = app.add_subcommand("generate", "Make a video from a prompt, dense or with a plan");
  const auto flags = std::make_shared<GenerateFlags>();
  add_model_flags(*command, flags->load);
  CLI::Option* prompt =
      command->add_option("-p,--prompt", flags->run.prompt, "What the video should show; may be empty")
          ->type_name("TEXT");
  CLI::Option* prompts = command
                             ->add_option("--prompts", flags->prompts,
                                          "Text file with one prompt a line (lines that begin with # are passed over): "
                                          "a video of each, by names with numbers "
                                          "(-o v.mp4: v_0000.mp4, …), with a report beside each; those that this "
                                          "command made before are passed over")
                             ->type_name("FILE")
                             ->excludes(prompt);
  add_run_flags(*command, flags->run, true, &flags->any_seed);
  add_eight_bit_flags(*command, flags->run);
  command->add_option("--plan", flags->run.plan_path,
                      "Plan file made by `calibatt calibrate`; without it attention is dense");
  add_mismatch_flag(*command, flags->run, {"refuse", "warn", "dense"});
  command->add_option("-o,--output", flags->output, "Video file: .mp4, .webm, .webp, or .png for numbered frames")
      ->required();
  command->add_option("--report", flags->report, "Write everything about the run to this JSON file");
  command->callback([flags, prompt, prompts] {
    if (prompt->empty() && prompts->empty()) {
      throw Error(ErrorKind::kUsage,
                  "say what the video should show: --prompt TEXT, or --prompts FILE for many videos");
    }
    run(*flags);
  });
}

}  // namespace calibatt::cli
