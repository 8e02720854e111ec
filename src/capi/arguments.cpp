#include "capi/arguments.h"

#include <cmath>

#include "calibatt/calibration_settings.h"
#include "capi/guarded.h"
#include "io/fingerprint.h"

namespace calibatt::capi {
namespace {

constexpr int kMany = INT32_MAX;
constexpr int kMostSteps = 1 << 16, kMostLayers = 1 << 16, kMostTransformers = 2;

void require_finite(const char* name, double value) {
  if (std::isfinite(value) && value >= 0) return;
  refuse(std::string(name) + ": is " + std::to_string(value) + ", and must be a number from 0");
}

std::string member(const char* name, int index) {
  return std::string(name) + "[" + std::to_string(index) + "]";
}

/// Absent: not known.
std::optional<double> guidance_of(const char* name, double scale) {
  if (scale == CALIBATT_UNGUIDED) return 1;
  require_finite(name, scale);
  return scale > 0 ? std::optional(scale) : std::nullopt;
}

std::vector<double> noise_levels_of(const calibatt_run& run) {
  require_in("run.num_steps", run.num_steps, 1, kMostSteps);
  required(run.sigmas, "run.sigmas");
  std::vector<double> sigmas(run.sigmas, run.sigmas + run.num_steps);
  for (int step = 0; step < run.num_steps; ++step) {
    const double sigma = sigmas[static_cast<size_t>(step)];
    const double before = step > 0 ? sigmas[static_cast<size_t>(step) - 1] : 1.0;
    if (std::isfinite(sigma) && sigma >= 0 && sigma <= before) continue;
    refuse(member("run.sigmas", step) + ": is " + std::to_string(sigma) +
           ", and must be from 0 to the noise level of the step before, at most 1");
  }
  return sigmas;
}

void take_transformers(const calibatt_run& run, RunDescription& description) {
  const int count = run.num_transformers == 0 ? 1 : run.num_transformers;
  require_in("run.num_transformers", count, 1, kMostTransformers);
  description.transformers.assign(static_cast<size_t>(count), {});
  for (int i = 0; i < count; ++i) {
    RunTransformer& transformer = description.transformers[static_cast<size_t>(i)];
    if (run.transformer_names != nullptr && run.transformer_names[i] != nullptr) {
      transformer.name = run.transformer_names[i];
    }
    if (run.fingerprints == nullptr || run.fingerprints[i] == nullptr) continue;
    const std::string fingerprint = run.fingerprints[i];
    if (fingerprint.empty()) refuse(member("run.fingerprints", i) + ": is empty; give NULL where it is not known");
    transformer.fingerprint = [fingerprint](const std::string& like) {
      const bool same = !like.empty() && fingerprint_scheme(like) == fingerprint_scheme(fingerprint) &&
                        same_weights(like, fingerprint);
      return same ? like : fingerprint;
    };
  }
  if (count == 1) return;
  required(run.step_transformer, "run.step_transformer");
  for (int step = 0; step < run.num_steps; ++step) {
    require_in(member("run.step_transformer", step).c_str(), run.step_transformer[step], 0, count - 1);
    description.step_transformer.push_back(run.step_transformer[step]);
  }
}

}  // namespace

RunDescription description_of(const calibatt_run& run) {
  RunDescription description;
  AttentionGeometry& geometry = description.geometry;
  require_in("run.frames", run.frames, 1, kMany);
  require_in("run.height", run.height, 1, kMany);
  require_in("run.width", run.width, 1, kMany);
  require_in("run.num_heads", run.num_heads, 1, kMany);
  require_in("run.head_dim", run.head_dim, 1, kMany);
  require_in("run.num_layers", run.num_layers, 1, kMostLayers);
  geometry.frames = run.frames;
  geometry.height = run.height;
  geometry.width = run.width;
  geometry.heads = run.num_heads;
  geometry.head_dim = run.head_dim;
  geometry.validate();
  description.num_layers = run.num_layers;
  description.sigmas = noise_levels_of(run);
  take_transformers(run, description);
  require_in("run.video_frames", run.video_frames, 0, kMany);
  require_in("run.video_height", run.video_height, 0, kMany);
  require_in("run.video_width", run.video_width, 0, kMany);
  description.video_frames = run.video_frames;
  description.video_height = run.video_height;
  description.video_width = run.video_width;
  require_finite("run.flow_shift", run.flow_shift);
  description.flow_shift = run.flow_shift;
  description.guidance_scale = guidance_of("run.guidance_scale", run.guidance_scale);
  description.guidance_scale_2 = guidance_of("run.second_guidance_scale", run.second_guidance_scale);
  if (run.scheduler != nullptr) description.scheduler = run.scheduler;
  return description;
}

void compare_like(RunDescription& run, const Plan& plan) {
  const std::vector<PlanTransformer>& made_for = plan.info().provenance.transformers;
  for (size_t i = 0; i < run.transformers.size() && i < made_for.size(); ++i) {
    auto& ours = run.transformers[i].fingerprint;
    const std::string& theirs = made_for[i].fingerprint;
    if (ours && fingerprint_scheme(ours(theirs)) != fingerprint_scheme(theirs)) ours = nullptr;
  }
}

DType dtype_of(calibatt_dtype dtype, const char* name) {
  switch (dtype) {
    case CALIBATT_F32:
      return DType::kF32;
    case CALIBATT_F16:
      return DType::kF16;
    case CALIBATT_BF16:
      return DType::kBF16;
  }
  refuse(std::string(name) + ": is " + std::to_string(static_cast<int>(dtype)) + ", and no calibatt_dtype");
}

GuidanceBranch branch_of(calibatt_branch branch) {
  require_in("branch", branch, CALIBATT_CONDITIONAL, CALIBATT_UNCONDITIONAL);
  return branch == CALIBATT_UNCONDITIONAL ? GuidanceBranch::kUnconditional : GuidanceBranch::kConditional;
}

OnMismatch on_mismatch_of(calibatt_on_mismatch on_mismatch) {
  require_in("on_mismatch", on_mismatch, CALIBATT_REFUSE, CALIBATT_DENSE);
  return on_mismatch == CALIBATT_REFUSE ? OnMismatch::kRefuse
         : on_mismatch == CALIBATT_WARN ? OnMismatch::kWarn
                                        : OnMismatch::kDense;
}

template <class View>
View view_of(const calibatt_heads& heads, const char* name, DType dtype, int64_t num_tokens, int64_t sample) {
  required(static_cast<char*>(heads.data), (std::string(name) + ".data").c_str());
  const int64_t offset = sample * heads.batch_stride * static_cast<int64_t>(dtype_size(dtype));
  return {static_cast<char*>(heads.data) + offset, dtype, num_tokens, heads.token_stride, heads.head_stride};
}
template HeadsView view_of(const calibatt_heads&, const char*, DType, int64_t, int64_t);
template ConstHeadsView view_of(const calibatt_heads&, const char*, DType, int64_t, int64_t);

std::pair<const char*, const char*> setting_of(const calibatt_setting* settings, int index) {
  const std::string name = member("settings", index);
  return {&required(settings[index].name, (name + ".name").c_str()),
          &required(settings[index].value, (name + ".value").c_str())};
}

CalibrateOptions options_of(const calibatt_setting* settings, int32_t num_settings) {
  require_in("num_settings", num_settings, 0, 1000);
  if (num_settings > 0) required(settings, "settings");
  CalibrateOptions options;
  for (int i = 0; i < num_settings; ++i) {
    const auto [name, value] = setting_of(settings, i);
    set(options, name, value);
  }
  return options;
}

}  // namespace calibatt::capi
