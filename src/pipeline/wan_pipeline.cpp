#include "pipeline/wan_pipeline.h"

#include <chrono>
#include <cmath>
#include <utility>

#include "attention/run_attention.h"
#include "base/checked_copy.h"
#include "base/random.h"
#include "base/thread_pool.h"
#include "io/fingerprint.h"
#include "models/original_layout.h"
#include "pipeline/device_backends.h"
#include "plan/plan.h"
#include "text/text_clean.h"
#include "text/unicode.h"

namespace calibatt {

namespace {

constexpr int kMaxPromptTokens = 512;  // WanPipeline's max_sequence_length

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Denoising is nearly all of a generation.
double overall(const Progress& state) {
  if (state.stage == "text") return 0.01 * state.of_stage();
  if (state.stage == "denoise") return 0.01 + 0.87 * state.of_stage();
  if (state.stage == "decode") return 0.88 + 0.12 * state.of_stage();
  return 0;
}

void report(const ProgressCallback& progress, const char* stage, int done, int total, double within = 0) {
  if (!progress) return;
  Progress state{.stage = stage, .done = done, .total = total, .within = within};
  state.overall = overall(state);
  progress(state);
}

/// The progress of one stage's work; empty where nobody listens. `progress` must outlive it.
WorkProgress work_of(const ProgressCallback& progress, const char* stage) {
  if (!progress) return {};
  return [&progress, stage](int done, int total, double within) { report(progress, stage, done, total, within); };
}

DType choose_dtype(Precision precision, const Backend& backend) {
  switch (precision) {
    case Precision::kF32:
      return DType::kF32;
    case Precision::kBF16:
      return DType::kBF16;
    case Precision::kF16:
      if (backend.has_fp16()) return DType::kF16;
      throw Error(ErrorKind::kUsage, "--dtype fp16: the backend " + std::string(backend.name()) +
                                         " has no fp16 arithmetic; use bf16 or fp32, or --backend cuda");
    case Precision::kAuto:
      break;
  }
  return backend.has_fast_bf16() ? DType::kBF16 : DType::kF32;
}

/// Of the text encoder, whose activations exceed the largest half (T5 is known for it), and the autoencoder.
DType beside(DType dtype) {
  return dtype == DType::kF16 ? DType::kBF16 : dtype;
}

ModelLoadOptions component_options(const LoadOptions& options) {
  ModelLoadOptions result;
  result.offload = options.offload;
  result.warn = options.warn;
  result.progress = work_of(options.progress, "load");
  return result;
}

WanVae load_vae(const ModelFolder& folder, Backend& backend, DType dtype) {
  WanVae vae = WanVae::load(folder.vae, backend, dtype);
  const auto transformer = WanTransformerConfig::from(open_transformer(folder.transformer).config);
  if (vae.config().z_dim != transformer.in_channels) {
    throw Error(ErrorKind::kMismatch, folder.path + ": the VAE has " + std::to_string(vae.config().z_dim) +
                                          " latent channels and the transformer takes " +
                                          std::to_string(transformer.in_channels) + "; they are not of one model");
  }
  return vae;
}

/// Fit for a one-line message: the beginning, in quotes.
std::string shortened_quote(const std::string& clean_text) {
  constexpr size_t kMost = 80;
  const std::u32string text = to_code_points(clean_text);
  return "\"" + to_utf8(text.substr(0, kMost)) + (text.size() > kMost ? "…\"" : "\"");
}

bool guided(const GenerateOptions& options) {
  return *options.cfg_scale > 1;
}

}  // namespace

std::unique_ptr<Pipeline> Pipeline::load(const LoadOptions& options) {
  return WanPipeline::load(options);
}

std::unique_ptr<WanPipeline> WanPipeline::load(const LoadOptions& options) {
  set_num_threads(options.threads);
  ModelFolder folder = ModelFolder::open(options.model_dir);
  add_device_backends();
  std::unique_ptr<Backend> backend = make_backend(options.backend, options.device);
  if (options.offload && backend->in_host_memory()) {
    throw Error(ErrorKind::kUsage, "--offload: with the backend " + std::string(backend->name()) +
                                       " all weights are in host memory already; leave it out, or give --backend cuda");
  }
  const DType dtype = choose_dtype(options.precision, *backend);
  return std::unique_ptr<WanPipeline>(new WanPipeline(options, std::move(folder), std::move(backend), dtype));
}

WanPipeline::WanPipeline(const LoadOptions& options, ModelFolder folder, std::unique_ptr<Backend> backend, DType dtype)
    : folder_(std::move(folder)),
      backend_(std::move(backend)),
      dtype_(dtype),
      tokenizer_(Tokenizer::load(folder_.tokenizer)),
      text_encoder_(Umt5Encoder::open(*backend_, folder_.text_encoder, beside(dtype_), component_options(options))),
      vae_(load_vae(folder_, *backend_, beside(dtype_))),
      transformer_(WanTransformer::load(*backend_, folder_.transformer, dtype_, component_options(options))),
      warn_(options.warn) {
  backend_->trim_memory();
}

GenerateOptions WanPipeline::resolved(const GenerateOptions& options) const {
  return resolve_options(options, folder_, vae_.config(), transformer_.config());
}

AttentionGeometry WanPipeline::geometry(const GenerateOptions& options, const TokenOrder& order) const {
  const WanVaeConfig& vae = vae_.config();
  return transformer_.geometry((*options.video_frames - 1) / vae.frames_per_latent() + 1,
                               *options.height / vae.pixels_per_latent(), *options.width / vae.pixels_per_latent(),
                               order);
}

std::unique_ptr<Scheduler> WanPipeline::make_scheduler(const GenerateOptions& options) const {
  auto scheduler = Scheduler::make(folder_.scheduler, parse_scheduler_kind(*options.scheduler));
  scheduler->set_timesteps(*options.steps, *options.flow_shift);
  return scheduler;
}

std::vector<double> WanPipeline::sigmas(const GenerateOptions& options) const {
  const auto scheduler = make_scheduler(options);
  std::vector<double> sigmas(scheduler->sigmas().begin(), scheduler->sigmas().end());
  sigmas.resize(static_cast<size_t>(*options.steps));  // without the final zero
  return sigmas;
}

const std::string& WanPipeline::transformer_fingerprint(const std::string& like, const ProgressCallback& progress) {
  const bool of_values = fingerprint_scheme(like) == FingerprintScheme::kValues;
  std::string& fingerprint = of_values ? values_fingerprint_ : stored_fingerprint_;
  if (fingerprint.empty()) {
    const Component transformer = open_transformer(folder_.transformer);
    const auto tell = [&](int done, int total) { report(progress, "check", done, total); };
    fingerprint = of_values
                      ? values_fingerprint(transformer_.config().fingerprint_settings(), transformer.tensors, tell)
                      : stored_fingerprint(transformer.config, transformer.tensors, tell);
  }
  return fingerprint;
}

std::vector<int32_t> WanPipeline::tokenize(const Prompt& prompt) {
  check_prompt(prompt);
  const Tokenizer::Cut cut = tokenizer_.encode(clean_prompt(prompt.text), kMaxPromptTokens);
  text_encoder_.check_tokens(cut.ids);
  if (cut.num_tokens > kMaxPromptTokens) {
    const std::string message = prompt.source + ": is " + std::to_string(cut.num_tokens) +
                                " tokens long and the model reads " + std::to_string(kMaxPromptTokens) +
                                "; this is cut off: " + shortened_quote(cut.dropped);
    if (warn_ && warned_.insert(message).second) warn_(message);
  }
  return cut.ids;
}

void WanPipeline::check_prompts(const std::vector<Prompt>& prompts) {
  for (const Prompt& prompt : prompts) tokenize(prompt);
}

std::vector<std::vector<int32_t>> WanPipeline::tokenize_all(const GenerateOptions& options) {
  std::vector<std::vector<int32_t>> ids{tokenize({options.prompt, options.prompt_source})};
  if (guided(options)) ids.push_back(tokenize({options.negative_prompt, "--negative-prompt"}));
  return ids;
}

WanPipeline::Conditioning WanPipeline::encode(const GenerateOptions& options, const ProgressCallback& progress) {
  const std::vector<Tensor> embeddings = text_encoder_.encode_all(tokenize_all(options), work_of(progress, "text"));
  backend_->trim_memory();
  Conditioning result;
  const int blocks = text_encoder_.config().num_layers;
  const WorkProgress poll = [&](int, int, double) { report(progress, "text", blocks, blocks); };
  result.conditional = transformer_.prepare_prompt(embeddings[0], kMaxPromptTokens, poll);
  if (guided(options)) result.unconditional = transformer_.prepare_prompt(embeddings[1], kMaxPromptTokens, poll);
  return result;
}

Tensor WanPipeline::denoise(const GenerateOptions& options, const Conditioning& conditioning, SelfAttention& attention,
                            TransformerTimes& times, const ProgressCallback& progress) {
  const WanVaeConfig& vae = vae_.config();
  const auto scheduler = make_scheduler(options);

  TorchGenerator generator(options.seed);
  Tensor latents =
      generator.randn({vae.z_dim, (*options.video_frames - 1) / vae.frames_per_latent() + 1,
                       *options.height / vae.pixels_per_latent(), *options.width / vae.pixels_per_latent()});

  const auto scale = static_cast<float>(*options.cfg_scale);
  for (int step = 0; step < *options.steps; ++step) {
    report(progress, "denoise", step, *options.steps);
    const int forwards = conditioning.unconditional ? 2 : 1;
    const auto layers_of = [&](int forward) -> WorkProgress {
      if (!progress) return {};
      return [&, forward](int layer, int num_layers, double within) {
        report(progress, "denoise", step, *options.steps, (forward + (layer + within) / num_layers) / forwards);
      };
    };
    const double timestep = scheduler->timesteps()[static_cast<size_t>(step)];
    attention.begin_forward(step, GuidanceBranch::kConditional);
    Tensor prediction =
        transformer_.forward(latents, timestep, conditioning.conditional, attention, &times, {}, layers_of(0));
    if (conditioning.unconditional) {
      attention.begin_forward(step, GuidanceBranch::kUnconditional);
      const Tensor unconditional =
          transformer_.forward(latents, timestep, *conditioning.unconditional, attention, &times, {}, layers_of(1));
      float* guided = prediction.f32();
      const float* base = unconditional.f32();
      for (int64_t i = 0; i < prediction.size(); ++i) guided[i] = base[i] + scale * (guided[i] - base[i]);
    }
    if (!all_finite(prediction)) {
      throw Error(ErrorKind::kNumeric, "the transformer's prediction at step " + std::to_string(step) +
                                           " is not finite: an activation exceeded the arithmetic's range, or the "
                                           "weights are damaged; " +
                                           (dtype_ == DType::kF16 ? "use --dtype bf16" : "try --dtype fp32"));
    }
    latents = scheduler->step(prediction, latents);
  }
  report(progress, "denoise", *options.steps, *options.steps);
  return latents;
}

RunDescription WanPipeline::describe_attention(const GenerateOptions& options, bool with_fingerprint,
                                               const ProgressCallback& progress) {
  RunDescription run;
  run.model_name = folder_.name;
  run.geometry = geometry(options);
  run.num_layers = transformer_.config().num_layers;
  run.video_frames = *options.video_frames;
  run.video_height = *options.height;
  run.video_width = *options.width;
  run.sigmas = sigmas(options);
  run.flow_shift = *options.flow_shift;
  if (with_fingerprint) run.model_fingerprint = transformer_fingerprint("stored", progress);
  return run;
}

RunReport WanPipeline::describe_run(const GenerateOptions& options) const {
  RunReport report;
  report.options = options;
  report.model_name = folder_.name;
  report.precision = dtype_ == DType::kF32       ? "f32"
                     : dtype_ == DType::kF16     ? "fp16"
                     : backend_->has_fast_bf16() ? "bf16"
                                                 : "bf16 weights, f32 arithmetic";
  report.backend = backend_->name();
  report.device = backend_->device_name();
  report.attention_kernel = backend_->attention_kernel(dtype_, transformer_.config().attention_head_dim);
  report.threads = num_threads();
  report.num_layers = transformer_.config().num_layers;
  report.num_tokens = geometry(options).num_tokens();
  return report;
}

Pipeline::Result WanPipeline::generate(const GenerateOptions& unresolved, const ProgressCallback& progress) {
  const GenerateOptions options = resolved(unresolved);
  Result result{{}, describe_run(options)};
  RunReport& run = result.report;
  backend_->reset_peak_memory();
  const MaskStreaming streamed_before = backend_->mask_streaming();

  // Prompts and plan are checked before anything slow starts.
  tokenize_all(options);
  const auto attention =
      make_run_attention(*backend_, options.plan_path.empty() ? nullptr : load_plan(options.plan_path),
                         describe_attention(options, !options.plan_path.empty(), progress), options.on_mismatch);

  double start = now_seconds();
  const auto lap = [&start] {
    const double previous = std::exchange(start, now_seconds());
    return start - previous;
  };
  const Conditioning conditioning = encode(options, progress);
  run.seconds.text = lap();

  TransformerTimes times;
  const Tensor latents = denoise(options, conditioning, *attention, times, progress);
  run.seconds.attention = times.self_attention;
  run.seconds.transformer_other = lap() - times.self_attention;  // scheduler and guidance included

  transformer_.release_buffers();
  backend_->trim_memory();  // what libraries allocate by themselves cannot come from what a pool keeps
  result.video = vae_.decode(latents, work_of(progress, "decode"));
  run.seconds.vae = lap();
  run.peak_device_bytes = backend_->peak_memory_bytes();

  const AttentionReport accounts = attention->report();
  run.density = accounts.density;
  run.density_map = accounts.density_map;
  run.attention_calls = accounts.calls;
  run.dense_fallback_calls = accounts.dense_fallback_calls;
  run.fallback_reason = accounts.fallback_reason;
  run.step_mapping = accounts.step_mapping;
  run.mask_streaming = backend_->mask_streaming().since(streamed_before);
  return result;
}

}  // namespace calibatt
