#include "pipeline/options.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <set>
#include <string>

#include "base/ceil_div.h"
#include "base/error.h"
#include "calibatt/counted.h"
#include "calibrate/eight_bit_flags.h"
#include "io/fingerprint.h"
#include "models/lora.h"
#include "pipeline/first_frame.h"
#include "pipeline/precision.h"

namespace calibatt {

namespace {

std::string short_number(double value) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%g", value);
  return text.data();
}

void require_multiple(const std::string& flag, int value, int factor) {
  if (value >= factor && value % factor == 0) return;
  const int below = std::max(1, value / factor) * factor;
  throw Error(ErrorKind::kUsage, flag + " " + std::to_string(value) + ": this model needs a multiple of " +
                                     std::to_string(factor) + ", e.g. " + std::to_string(below) + " or " +
                                     std::to_string(below + factor));
}

void require_finite(const char* flag, double value, double min, double max) {
  if (std::isfinite(value) && value >= min && value <= max) return;
  throw Error(ErrorKind::kUsage, std::string(flag) + " " + std::to_string(value) + ": must be between " +
                                     std::to_string(min) + " and " + std::to_string(max));
}

void check_frames(const std::string& flag, int frames, const ModelDescription& model) {
  const int group = model.frames_per_latent;
  if (frames < 1 || (frames - 1) % group != 0) {
    const int below = std::max(0, (frames - 1) / group) * group + 1;
    throw Error(ErrorKind::kUsage, flag + " " + std::to_string(frames) + ": must be " + std::to_string(group) +
                                       "k+1, e.g. " + std::to_string(below) + " or " + std::to_string(below + group));
  }
  const int latent_frames = (frames - 1) / group + 1;
  if (latent_frames % model.patch_size[0] != 0) {
    throw Error(ErrorKind::kUsage, flag + " " + std::to_string(frames) + ": its " + std::to_string(latent_frames) +
                                       " latent frames do not divide by the model's patch of " +
                                       std::to_string(model.patch_size[0]));
  }
}

void check_positions(const VideoSize& size, const ModelDescription& model) {
  constexpr std::array<const char*, 3> kAxis{"frames", "rows", "columns"};
  const std::array<int, 3> latent = model.latent_size(size);
  for (size_t axis = 0; axis < 3; ++axis) {
    const int tokens = latent[axis] / model.patch_size[axis];
    if (tokens <= model.max_positions) continue;
    throw Error(ErrorKind::kUsage, "video size: " + counted(tokens, "tokens") + " along its " + kAxis[axis] +
                                       "; this model knows " + std::to_string(model.max_positions) +
                                       " positions: choose a smaller one");
  }
}

}  // namespace

ModelParts parts_of(const LoadOptions& options) {
  return {options.transformer, options.text_encoder, options.vae, options.transformer_2};
}

std::map<std::string, std::string> names_of_parts(const LoadOptions& options) {
  std::map<std::string, std::string> names{{"transformer", options.transformer},
                                           {"transformer-2", options.transformer_2},
                                           {"text-encoder", options.text_encoder},
                                           {"vae", options.vae}};
  std::erase_if(names, [](const auto& each) { return each.second.empty(); });
  return names;
}

std::string hash_of_files(const std::vector<std::string>& weight_files, const std::vector<Lora>& loras) {
  std::vector<std::string> hashes;
  hashes.reserve(weight_files.size() + loras.size());
  for (const std::string& path : weight_files) hashes.push_back(sampled_file_hash(path));
  for (const Lora& lora : loras) hashes.push_back(lora_fingerprint(lora));
  std::ranges::sort(hashes);
  Hasher hasher;
  for (const std::string& hash : hashes) hasher.update(hash);
  return hasher.hex();
}

FileHashes hashes_of(const ModelDescription& model, const std::vector<Lora>& loras) {
  Hasher settings;
  settings.update(model.settings);
  for (const Expert& expert : model.experts) settings.update(std::to_string(expert.lowest_timestep));
  return {hash_of_files(model.weight_files, loras), hash_of_files(model.tokenizer_files), settings.hex()};
}

std::string weights_dtype_name(const LoadOptions& options) {
  return weights_dtype_name(options.weights, options.kept_layers);
}

void enter_hashes(const FileHashes& hashes, RunReport& report) {
  report.files_hash = hashes.files;
  report.tokenizer_hash = hashes.tokenizer;
  report.settings_hash = hashes.settings;
}

VideoSize video_size(const GenerateOptions& options) {
  return {*options.video_frames, *options.height, *options.width};
}

namespace {

constexpr const char* kList = "list";  // options.sigmas where the levels themselves are given

/// The levels that were given, before they are shifted; empty: they follow from the number of steps.
std::vector<double> given_levels(const GenerateOptions& options, const ModelDescription& model) {
  std::vector<double> levels = options.noise_levels;
  for (const double timestep : options.timesteps) levels.push_back(timestep / model.scheduler.num_train_timesteps);
  return levels;
}

/// Checks a list of steps, and what else says how many there are and where.
void check_given_levels(const GenerateOptions& options, const ModelDescription& model) {
  const bool by_timestep = !options.timesteps.empty(), by_level = !options.noise_levels.empty();
  if (!by_timestep && !by_level) {
    if (options.sigmas == kList)
      throw Error(ErrorKind::kUsage, "--sigmas list: give the levels, as in 1,0.75,0.5,0.25");
    return;
  }
  const std::string flag = by_timestep ? "--timesteps" : "--sigmas";
  const auto usage = [&](const std::string& what) { return Error(ErrorKind::kUsage, flag + ": " + what); };
  if (by_timestep && (by_level || (options.sigmas && options.sigmas != kList))) {
    throw usage("says where each step is, and so does --sigmas; leave one of them out");
  }
  const std::vector<double>& values = by_timestep ? options.timesteps : options.noise_levels;
  const double most = by_timestep ? model.scheduler.num_train_timesteps : 1;
  if (by_timestep && values.front() <= 1) {
    throw usage(short_number(values.front()) + " is no first step, of which noise has " + short_number(most) +
                "; noise levels from 1 to 0 are given with --sigmas");
  }
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i] > 0 && values[i] <= most && (i == 0 || values[i] < values[i - 1])) continue;
    throw usage(short_number(values[i]) + " cannot be step " + std::to_string(i + 1) +
                ": give numbers that fall from " + short_number(most) + " at most, all above 0");
  }
  if (options.steps && *options.steps != static_cast<int>(values.size())) {
    throw usage("lists " + std::to_string(values.size()) + " steps, and --steps says " +
                std::to_string(*options.steps) + "; leave --steps out");
  }
  if (by_level && options.flow_shift && *options.flow_shift != 1) {
    throw usage("gives the noise levels as the model sees them, and --flow-shift " + short_number(*options.flow_shift) +
                " would shift them; leave it out, or give --timesteps, which are shifted");
  }
}

}  // namespace

GenerateOptions with_defaults(const GenerateOptions& options, const ModelDescription& model) {
  const ModelDefaults& defaults = model.defaults;
  GenerateOptions result = options;
  const std::vector<double> levels = given_levels(options, model);
  result.steps = levels.empty() ? options.steps.value_or(defaults.steps) : static_cast<int>(levels.size());
  result.cfg_scale = options.cfg_scale.value_or(defaults.cfg_scale);
  if (model.experts.size() > 1 && !options.cfg_scale_2) {
    result.cfg_scale_2 = options.cfg_scale ? *options.cfg_scale : defaults.cfg_scale_2.value_or(*result.cfg_scale);
  }
  result.flow_shift = options.flow_shift.value_or(options.noise_levels.empty() ? model.scheduler.flow_shift : 1);
  result.width = options.width.value_or(defaults.width);
  result.height = options.height.value_or(defaults.height);
  if (model.takes_image && options.image && options.image->width > 0 && options.image->height > 0) {
    const auto [height, width] = size_of_picture(*options.image, model, options.height, options.width);
    result.height = height;
    result.width = width;
  }
  result.video_frames = options.video_frames.value_or(defaults.video_frames);
  result.fps = options.fps.value_or(defaults.fps);
  result.scheduler = options.scheduler.value_or(std::string(scheduler_kind_name(model.scheduler.kind)));
  const SchedulerConfig::Kind kind = parse_scheduler_kind(*result.scheduler);
  result.sigmas =
      levels.empty()
          ? options.sigmas.value_or(std::string(spacing_name(default_spacing(model.scheduler.spacing, kind))))
          : kList;
  return result;
}

namespace {

/// A run begins with noise and nothing else, whatever level its first step is told to have.
void check_first_level(const GenerateOptions& resolved, const ModelDescription& model) {
  constexpr float kLowest = 0.9f;
  const float first = make_scheduler(resolved, model)->sigmas().front();
  if (first >= kLowest) return;
  const char* flag = !resolved.noise_levels.empty() ? "--sigmas"
                     : !resolved.timesteps.empty()  ? "--timesteps"
                                                    : "--flow-shift";
  throw Error(ErrorKind::kUsage,
              std::string(flag) + ": begins at noise level " + short_number(first) +
                  ", but a run always begins with pure noise, level 1, and would make a wrong video; begin at " +
                  short_number(kLowest) +
                  " or above (to go on from a picture or video with noise added is not supported)");
}

}  // namespace

GenerateOptions resolve_options(const GenerateOptions& options, const ModelDescription& model) {
  check_given_levels(options, model);
  GenerateOptions result = with_defaults(options, model);
  const bool shift_is_known = options.flow_shift || !options.noise_levels.empty();
  if (!model.scheduler.refusal.empty() && !(options.scheduler && shift_is_known)) {
    throw Error(ErrorKind::kFormat,
                model.scheduler.refusal +
                    "; or choose another one with --scheduler and --flow-shift, which the model was "
                    "made for");
  }

  // A default is no user's fault: its file is named in place of the flag.
  const auto blamed = [&](bool given, const char* flag, const char* key) {
    return given || model.defaults.path.empty() ? std::string(flag) : model.defaults.path + ": \"" + key + "\"";
  };
  require_multiple(blamed(options.width.has_value(), "--width", "width"), *result.width,
                   model.pixels_per_latent * model.patch_size[2]);
  require_multiple(blamed(options.height.has_value(), "--height", "height"), *result.height,
                   model.pixels_per_latent * model.patch_size[1]);
  check_frames(blamed(options.video_frames.has_value(), "--video-frames", "num_frames"), *result.video_frames, model);
  check_positions(video_size(result), model);
  if (*result.steps < 1 || *result.steps > 1000) {
    throw Error(ErrorKind::kUsage, "--steps " + std::to_string(*result.steps) + ": must be between 1 and 1000");
  }
  require_finite("--cfg-scale", *result.cfg_scale, 0, 1000);
  if (result.cfg_scale_2) require_finite("--cfg-scale-2", *result.cfg_scale_2, 0, 1000);
  if (result.cfg_scale_2 && model.experts.size() == 1) {
    throw Error(ErrorKind::kUsage, "--cfg-scale-2: this model has one transformer; leave it out");
  }
  if (result.kept_steps && (*result.kept_steps < 0 || *result.kept_steps > *result.steps)) {
    throw Error(ErrorKind::kUsage, "--keep-steps " + std::to_string(*result.kept_steps) + ": the run has " +
                                       counted(*result.steps, "steps") + "; give 0 to " +
                                       std::to_string(*result.steps));
  }
  require_finite("--flow-shift", *result.flow_shift, 1e-3, 1000);
  require_finite("--fps", *result.fps, 0.1, 1000);
  if (*result.sigmas != kList) parse_spacing(*result.sigmas);  // throws
  check_first_level(result, model);
  return result;
}

EightBitParts allowed_eight_bits(const GenerateOptions& options, bool eight_bit_layers) {
  return {options.attention_dtype == AttentionDtype::kFP8, eight_bit_layers};
}

GenerateOptions resolve_options(const GenerateOptions& options, const ModelDescription& model, EightBitParts allowed) {
  if (options.kept_steps && !allowed.any()) {
    throw Error(ErrorKind::kUsage,
                "--keep-steps says how many first steps --weights-dtype fp8 (or int8) and --attention-dtype fp8 leave "
                "as they are; add one of these (--keep-layers of every layer leaves --weights-dtype nothing)");
  }
  return resolve_options(options, model);
}

std::string memory_warning(const GenerateOptions& options, const MemoryEstimate& needed,
                           const AvailableMemory& available, const std::string& more_room) {
  constexpr uint64_t kMegabyte = 1'000'000;
  const uint64_t run = needed.peak() - needed.weights;
  const uint64_t on_host = needed.video + (available.device ? 0 : run);
  const bool device_is_short = available.device && run > *available.device;
  if (!device_is_short && on_host <= available.host) return "";
  const uint64_t bytes = device_is_short ? run : on_host, there = device_is_short ? *available.device : available.host;
  return "a video of " + std::to_string(*options.width) + "×" + std::to_string(*options.height) + " with " +
         counted(*options.video_frames, "frames") + " takes about " + std::to_string(bytes / kMegabyte) + " MB of " +
         (device_is_short ? "the GPU's" : "host") + " memory beside the weights, and " +
         std::to_string(there / kMegabyte) + " MB are available; choose a smaller size" +
         (device_is_short ? more_room : "");
}

std::unique_ptr<Scheduler> make_scheduler(const GenerateOptions& options, const ModelDescription& model) {
  SchedulerConfig config = model.scheduler;
  const std::vector<double> levels = given_levels(options, model);
  if (levels.empty()) config.spacing = parse_spacing(*options.sigmas);
  auto scheduler = Scheduler::make(config, parse_scheduler_kind(*options.scheduler));
  if (levels.empty()) {
    scheduler->set_timesteps(*options.steps, *options.flow_shift);
  } else {
    scheduler->set_levels(levels, *options.flow_shift);
  }
  return scheduler;
}

std::vector<double> guidance_scales(const GenerateOptions& options) {
  std::vector<double> scales{*options.cfg_scale};
  if (options.cfg_scale_2) scales.push_back(*options.cfg_scale_2);
  return scales;
}

namespace {

/// Of resolved options.
std::vector<StepSettings> steps_of_run(const GenerateOptions& options, const ModelDescription& model) {
  return make_steps(*make_scheduler(options, model), model.experts, guidance_scales(options));
}

}  // namespace

std::vector<EightBitParts> eight_bit_parts(const GenerateOptions& options, EightBitParts allowed,
                                           const std::vector<EightBitParts>& planned) {
  std::vector<EightBitParts> steps(static_cast<size_t>(*options.steps), allowed);
  if (planned.empty() || options.kept_steps) {
    const int kept = options.kept_steps.value_or(ceil_div(*options.steps, 4));
    std::fill_n(steps.begin(), kept, EightBitParts{});
    return steps;
  }
  for (size_t step = 0; step < steps.size(); ++step) {
    steps[step].attention = allowed.attention && planned[step].attention;
    steps[step].layers = allowed.layers && planned[step].layers;
  }
  return steps;
}

int transformers_without_8_bits(const GenerateOptions& options, const ModelDescription& model) {
  const std::vector<StepSettings> steps = steps_of_run(options, model);
  const std::vector<EightBitParts> parts = eight_bit_parts(options, {true, true});
  std::set<int> transformers;
  for (size_t step = 0; step < steps.size(); ++step) {
    if (!parts[step].layers) transformers.insert(steps[step].expert);
  }
  return static_cast<int>(transformers.size());
}

std::vector<double> noise_levels(const GenerateOptions& options, const ModelDescription& model) {
  std::vector<double> levels;
  for (const StepSettings& step : steps_of_run(options, model)) levels.push_back(step.sigma);
  return levels;
}

std::vector<std::string> unread_options(const GenerateOptions& options, const ModelDescription& model) {
  const GenerateOptions resolved = resolve_options(options, model);
  const std::vector<StepSettings> steps = steps_of_run(resolved, model);
  const auto none = [&](const auto& of_step) { return std::ranges::none_of(steps, of_step); };
  std::vector<std::string> lines;
  if (!options.negative_prompt.empty() && none([](const StepSettings& step) { return step.guided(); })) {
    lines.push_back("--negative-prompt is not read: guidance is off (--cfg-scale " + short_number(*resolved.cfg_scale) +
                    (resolved.cfg_scale_2 ? " --cfg-scale-2 " + short_number(*resolved.cfg_scale_2) : "") +
                    "); only a scale above 1 compares with it");
  }
  if (model.experts.size() < 2) return lines;
  if (options.cfg_scale && options.cfg_scale_2 && none([](const StepSettings& step) { return step.expert == 0; })) {
    lines.emplace_back(
        "--cfg-scale is not read: no step is one of the first transformer's, that of the high noise levels");
  }
  if (options.cfg_scale_2 && none([](const StepSettings& step) { return step.expert == 1; })) {
    lines.emplace_back(
        "--cfg-scale-2 is not read: no step is one of the second transformer's, that of the low noise levels");
  }
  return lines;
}

}  // namespace calibatt
