#include "pipeline/options.h"

#include <array>
#include <cmath>
#include <string>

#include "base/error.h"

namespace calibatt {

namespace {

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
    throw Error(ErrorKind::kUsage, "video size: " + std::to_string(tokens) + " tokens along its " + kAxis[axis] +
                                       "; this model knows " + std::to_string(model.max_positions) +
                                       " positions: choose a smaller one");
  }
}

}  // namespace

VideoSize video_size(const GenerateOptions& options) {
  return {*options.video_frames, *options.height, *options.width};
}

GenerateOptions with_defaults(const GenerateOptions& options, const ModelDescription& model) {
  const ModelDefaults& defaults = model.defaults;
  GenerateOptions result = options;
  result.steps = options.steps.value_or(defaults.steps);
  result.cfg_scale = options.cfg_scale.value_or(defaults.cfg_scale);
  result.flow_shift = options.flow_shift.value_or(model.scheduler.flow_shift);
  result.width = options.width.value_or(defaults.width);
  result.height = options.height.value_or(defaults.height);
  result.video_frames = options.video_frames.value_or(defaults.video_frames);
  result.fps = options.fps.value_or(defaults.fps);
  result.scheduler = options.scheduler.value_or(std::string(scheduler_kind_name(model.scheduler.kind)));
  result.sigmas = options.sigmas.value_or(std::string(spacing_name(model.scheduler.spacing)));
  return result;
}

GenerateOptions resolve_options(const GenerateOptions& options, const ModelDescription& model) {
  GenerateOptions result = with_defaults(options, model);
  if (!model.scheduler.refusal.empty() && (!options.scheduler || !options.flow_shift)) {
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
  require_finite("--flow-shift", *result.flow_shift, 1e-3, 1000);
  require_finite("--fps", *result.fps, 0.1, 1000);
  parse_scheduler_kind(*result.scheduler);  // throws
  parse_spacing(*result.sigmas);            // throws
  return result;
}

std::string memory_warning(const GenerateOptions& options, const MemoryEstimate& needed, bool on_host,
                           uint64_t available) {
  constexpr uint64_t kMegabyte = 1'000'000;
  const uint64_t bytes = needed.video + (on_host ? needed.peak() - needed.weights : 0);
  if (bytes <= available) return "";
  return "a video of " + std::to_string(*options.width) + "×" + std::to_string(*options.height) + " with " +
         std::to_string(*options.video_frames) + " frames takes about " + std::to_string(bytes / kMegabyte) +
         " MB of memory beside the weights, and " + std::to_string(available / kMegabyte) +
         " MB are available; choose a smaller size";
}

std::unique_ptr<Scheduler> make_scheduler(const GenerateOptions& options, const ModelDescription& model) {
  SchedulerConfig config = model.scheduler;
  config.spacing = parse_spacing(*options.sigmas);
  auto scheduler = Scheduler::make(config, parse_scheduler_kind(*options.scheduler));
  scheduler->set_timesteps(*options.steps, *options.flow_shift);
  return scheduler;
}

}  // namespace calibatt
