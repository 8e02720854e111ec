#include "pipeline/runner.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>

#include "backend/cpu/make_backend.h"
#include "base/host_memory.h"
#include "base/random.h"
#include "base/thread_pool.h"
#include "calibatt/plan.h"
#include "models/lora.h"
#include "models/registry.h"
#include "pipeline/device_backends.h"
#include "pipeline/first_frame.h"
#include "pipeline/options.h"
#include "pipeline/precision.h"
#include "pipeline/rank_layout.h"
#include "pipeline/run_memory.h"
#include "pipeline/stage_progress.h"
#include "pipeline/weight_placement.h"
#include "sampling/solver_weights.h"

namespace calibatt {

namespace {

/// Throws Error(kUsage) for what this run cannot do.
void enter_weights(const LoadOptions& options, DType dtype, Backend& backend, ModelLoadOptions& load) {
  if (load.eight_bit_layers) {
    load.kept_layers = options.kept_layers;
    load.eight_bit_type = eight_bit_type(options.weights, backend.eight_bit_ops());
    return;
  }
  check_weights_dtype(options.weights, dtype);
}

/// What to do about values that are not finite.
const char* advice_on_range(DType dtype) {
  if (dtype == DType::kF16) return "use --dtype bf16";
  return dtype == DType::kBF16 ? "try --dtype fp32" : "copy the model anew, with its settings";
}

std::string precision_name(DType dtype, const Backend& backend) {
  if (dtype == DType::kF32) return "fp32";
  if (dtype == DType::kF16) return "fp16";
  return backend.has_fast_bf16() ? "bf16" : "bf16 weights, fp32 arithmetic";
}

}  // namespace

Runner::Runner(const LoadOptions& options, std::unique_ptr<Backend> backend, const RankShards& shards)
    : threads_(options.threads),
      loras_(options.loras),
      parts_(names_of_parts(options)),
      warn_(options.warn),
      backend_(std::move(backend)) {
  begin_job();
  files_ = open_model(options.model_dir, parts_of(options));  // what is wrong with it is said first
  check_precision(options, *files_);
  warn(files_->description().scheduler.warning);
  for (const std::string& warning : files_->description().warnings) warn(warning);
  if (backend_ == nullptr) {
    add_device_backends();
    backend_ = make_backend(options.backend, options.devices.at(0), devices_flag(options));
  }
  if (options.offload && backend_->in_host_memory()) {
    warn("--offload changes nothing with the backend " + std::string(backend_->name()) +
         ": all weights are in host memory already");
  }
  ModelLoadOptions load;
  load.offload = options.offload && !backend_->in_host_memory();
  load.shards = shards;
  offload_ = load.offload;
  if (!load.offload) weight_ranks_ = shards.num_ranks();
  load.warn = options.warn;
  load.loras = options.loras;
  load.progress = stage_work(options.progress, "load");
  const DType dtype = choose_dtype(options.precision, *backend_);
  load.eight_bit_layers = has_eight_bit_layers(options, *files_);
  enter_weights(options, dtype, *backend_, load);
  kept_layers_ = load.kept_layers;
  if (load.eight_bit_layers) {
    weights_dtype_ = weights_dtype_name(options);
    eight_bit_type_ = load.eight_bit_type;
  } else if (is_eight_bits(options.weights)) {
    warn("--keep-layers leaves every layer as it is: none is in 8 bits");
  }
  hashes_ = hashes_of(files_->description(), loras_);
  model_ = files_->load(*backend_, dtype, load);
}

void Runner::begin_job() const {
  set_num_threads(threads_);
  if (backend_ != nullptr) backend_->make_current();
}

AvailableMemory Runner::available_memory() const {
  AvailableMemory available{available_host_memory(), {}};
  if (!backend_->in_host_memory()) available.device = backend_->available_memory_bytes();
  return available;
}

void Runner::warn_of_memory(const GenerateOptions& options, const RankLayout& layout,
                            const AvailableMemory& available) const {
  if (files_ == nullptr || !warn_) return;
  Arithmetic loaded{model_->dtype(), !weights_dtype_.empty()};
  loaded.weight_ranks = weight_ranks_;
  loaded.on_host = backend_->in_host_memory();
  loaded.offload = offload_;
  loaded.kept_layers = kept_layers_;
  const std::string warning = run_memory_warning(*files_, options, layout, loaded, available);
  if (!warning.empty()) warn_(warning);
}

GenerateOptions Runner::resolved(const GenerateOptions& options) const {
  check_attention_dtype(options.attention_dtype, model_->dtype());
  return resolve_options(options, model(), allowed_eight_bits(options));
}

/// The conditional one and, in guided runs, the unconditional one.
std::vector<Prompt> Runner::prompts_of(const GenerateOptions& options) const {
  std::vector<Prompt> prompts{{options.prompt, options.prompt_source}};
  const std::vector<StepSettings> steps = steps_of(options, *make_scheduler(options, model()));
  if (std::any_of(steps.begin(), steps.end(), [](const StepSettings& step) { return step.guided(); })) {
    prompts.push_back({options.negative_prompt, "--negative-prompt"});
  }
  return prompts;
}

void Runner::check_prompts(const std::vector<Prompt>& prompts) {
  for (const Prompt& prompt : prompts) model_->check_prompt(prompt);
}

void Runner::check_prompts(const GenerateOptions& options) {
  check_picture(options, model());
  check_prompts(prompts_of(options));
}

std::vector<StepSettings> Runner::steps_of(const GenerateOptions& options, const Scheduler& scheduler,
                                           std::vector<EightBitParts> eight_bits) const {
  std::vector<StepSettings> steps = make_steps(scheduler, model().experts, guidance_scales(options));
  if (eight_bits.empty()) eight_bits = eight_bit_parts(options, allowed_eight_bits(options));
  for (size_t step = 0; step < steps.size(); ++step) steps[step].eight_bit_layers = eight_bits[step].layers;
  return steps;
}

void Runner::expect_steps(const GenerateOptions& options, const ProgressCallback& progress,
                          const std::vector<EightBitParts>& eight_bits) {
  const std::vector<StepSettings> steps = steps_of(options, *make_scheduler(options, model()), eight_bits);
  model_->expect_steps(steps, stage_work(progress, "load"));
}

std::string Runner::transformer_name(int expert) const {
  std::string name = model().name;
  for (const Lora& lora : loras_) {
    if (!concerns(lora, expert, static_cast<int>(model().experts.size()))) continue;
    std::array<char, 32> scale{};
    std::snprintf(scale.data(), scale.size(), ":%g", lora.scale);
    name += " with the LoRA " + std::filesystem::path(lora.path).filename().string() + scale.data();
  }
  return name;
}

RunDescription Runner::describe_attention(const GenerateOptions& options, const ProgressCallback& progress) {
  RunDescription run;
  run.transformers.clear();
  for (int expert = 0; expert < static_cast<int>(model().experts.size()); ++expert) {
    run.transformers.push_back({transformer_name(expert), [this, expert, progress](const std::string& like) {
                                  return model_->fingerprint(expert, like, stage_work(progress, "check"));
                                }});
  }
  run.geometry = model().geometry(video_size(options));
  run.num_layers = model().num_layers;
  run.video_frames = *options.video_frames;
  run.video_height = *options.height;
  run.video_width = *options.width;
  for (const StepSettings& step : steps_of(options, *make_scheduler(options, model()))) {
    run.sigmas.push_back(step.sigma);
    if (run.transformers.size() > 1) run.step_transformer.push_back(step.expert);
  }
  run.flow_shift = *options.flow_shift;
  run.guidance_scale = *options.cfg_scale;
  run.guidance_scale_2 = options.cfg_scale_2;
  run.scheduler = *options.scheduler;
  return run;
}

RunReport Runner::describe_run(const GenerateOptions& options) const {
  RunReport report;
  report.options = options;
  report.model_name = model().name;
  report.loras = loras_;
  report.parts = parts_;
  enter_hashes(hashes_, report);
  report.image_hash = picture_hash(options.image);
  report.precision = precision_name(model_->dtype(), *backend_);
  report.weights_dtype = weights_dtype_;
  report.backend = backend_->name();
  report.device = backend_->device_name();
  report.attention_kernel =
      backend_->attention_kernel(model_->dtype(), model().head_dim, options.attention_dtype == AttentionDtype::kFP8);
  report.threads = num_threads();
  report.num_layers = model().num_layers;
  report.noise_levels = noise_levels(options, model());
  if (!options.plan_path.empty()) report.plan_checksum = plan_checksum_of(options.plan_path);
  report.num_tokens = model().geometry(video_size(options)).num_tokens();
  return report;
}

std::unique_ptr<Conditioning> Runner::encode(const GenerateOptions& options, const ProgressCallback& progress) {
  const std::vector<Prompt> prompts = prompts_of(options);
  auto conditioning =
      model_->encode(prompts[0], prompts.size() > 1 ? &prompts[1] : nullptr, stage_work(progress, "text"));
  if (model().takes_image) model_->begin_with(picture_of(options, progress), *conditioning);
  return conditioning;
}

std::shared_ptr<const EncodedPicture> Runner::picture_of(const GenerateOptions& options,
                                                         const ProgressCallback& progress) {
  const VideoSize size = video_size(options);
  std::string key = picture_hash(options.image);
  for (const int extent : {size.frames, size.height, size.width}) key += " " + std::to_string(extent);
  if (picture_ == nullptr || key != picture_key_) {
    std::string warning;
    const FirstFrame first{*options.image, first_frame(*options.image, size, warning), size.frames};
    warn(options.image->warning);
    warn(warning);
    picture_ = model_->encode_picture(first, stage_work(progress, "image"));
    picture_key_ = std::move(key);
  }
  return picture_;
}

Tensor Runner::denoise(const GenerateOptions& options, const Conditioning& conditioning, SelfAttention& attention,
                       TransformerTimes& times, const ProgressCallback& progress, const StepControl& control,
                       const std::vector<EightBitParts>& eight_bits, GuidanceGroups* groups) {
  const std::unique_ptr<Scheduler> scheduler = make_scheduler(options, model());
  const std::vector<StepSettings> steps = steps_of(options, *scheduler, eight_bits);
  const auto num_steps = static_cast<int>(steps.size());
  const auto run_forward = [&](const Tensor& latents, int step, GuidanceBranch branch, int forward, int forwards) {
    const StepSettings& settings = steps[static_cast<size_t>(step)];
    WorkProgress layers;
    if (progress) {
      layers = [&, step, forward, forwards](int layer, int num_layers, double within) {
        report_stage(progress, "denoise", step, num_steps, (forward + (layer + within) / num_layers) / forwards);
      };
    }
    if (forward == 0) report_stage(progress, "denoise", step, num_steps);
    attention.begin_forward(step, branch);
    return model_->forward(latents, settings, branch, conditioning, attention, times, layers);
  };
  Tensor unconditional;  // of the present step, where another group computes one of its branches
  const auto predict = [&](const Tensor& latents, int step, GuidanceBranch branch) {
    const bool first = branch == GuidanceBranch::kConditional;
    if (groups == nullptr) {
      return run_forward(latents, step, branch, first ? 0 : 1, steps[static_cast<size_t>(step)].guided() ? 2 : 1);
    }
    CALIBATT_ASSERT(steps[static_cast<size_t>(step)].guided());
    if (!first) return std::exchange(unconditional, {});
    Tensor own = run_forward(latents, step, groups->own(), 0, 1), other = groups->exchange(own);
    if (groups->own() != branch) std::swap(own, other);
    unconditional = std::move(other);
    return own;
  };

  const std::array<int, 3> latent = model().latent_size(video_size(options));
  TorchGenerator generator(options.seed);
  Tensor noise = generator.randn({model().latent_channels, latent[0], latent[1], latent[2]});
  Tensor latents =
      calibatt::denoise(*scheduler, steps, std::move(noise), predict, advice_on_range(model_->dtype()), control);
  report_stage(progress, "denoise", num_steps, num_steps);
  return latents;
}

Tensor Runner::solver_weights_of(const GenerateOptions& options) const {
  const std::unique_ptr<Scheduler> scheduler = make_scheduler(options, model());
  return solver_weights(*scheduler);
}

VideoFrames Runner::decode(const Tensor& latents, const ProgressCallback& progress, Communicator* ranks) {
  return model_->decode(latents, stage_work(progress, "decode"), ranks);
}

}  // namespace calibatt
