#include "sampling/scheduler.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/error.h"
#include "base/thread_pool.h"
#include "io/json_config.h"
#include "io/mapped_tensors.h"
#include "sampling/flow_euler.h"
#include "sampling/unipc.h"

namespace calibatt {
namespace {

constexpr int kMaxSteps = 1000;
constexpr double kMinShift = 1e-3, kMaxShift = 1000;  // as --flow-shift

void refuse_if_true(const JsonConfig& json, const char* key) {
  if (json.boolean(key, false)) json.fail(key, "true is not supported; set it to false");
}

/// Of both classes' settings: those that do nothing without what is refused above, and in runs by noise levels.
constexpr std::array<std::string_view, 16> kWithoutEffect{
    "beta_start",       "beta_end",           "beta_schedule",
    "trained_betas",    "steps_offset",       "rescale_betas_zero_snr",
    "sample_max_value", "sigma_min",          "dynamic_thresholding_ratio",
    "sigma_max",        "base_shift",         "timestep_spacing",
    "max_shift",        "base_image_seq_len", "time_shift_type",
    "max_image_seq_len"};

std::string warning_of_unread(const JsonConfig& json) {
  std::string names;
  for (const std::string& key : json.unread()) {
    if (std::ranges::find(kWithoutEffect, key) == kWithoutEffect.end()) {
      names += (names.empty() ? "" : ", ") + quoted_name(key);
    }
  }
  if (names.empty()) return {};
  return json.where() + ": settings that this version does not know are passed over: " + names +
         "; if they change the steps of a run, its videos will differ";
}

}  // namespace

std::string_view scheduler_kind_name(SchedulerConfig::Kind kind) {
  return kind == SchedulerConfig::Kind::kUniPC ? "unipc" : "euler";
}

SchedulerConfig::Kind parse_scheduler_kind(const std::string& name) {
  for (const auto kind : {SchedulerConfig::Kind::kUniPC, SchedulerConfig::Kind::kEuler}) {
    if (scheduler_kind_name(kind) == name) return kind;
  }
  throw Error(ErrorKind::kUsage, "unknown scheduler \"" + name + "\"; choose unipc or euler");
}

std::string_view spacing_name(SchedulerConfig::Spacing spacing) {
  switch (spacing) {
    case SchedulerConfig::Spacing::kDiffusers:
      return "diffusers";
    case SchedulerConfig::Spacing::kOriginal:
      return "original";
    case SchedulerConfig::Spacing::kEven:
      return "even";
    case SchedulerConfig::Spacing::kLinearQuadratic:
      return "linear-quadratic";
  }
  internal::assertion_failed("known spacing", __FILE__, __LINE__);
}

SchedulerConfig::Spacing parse_spacing(const std::string& name) {
  using enum SchedulerConfig::Spacing;
  for (const auto spacing : {kDiffusers, kOriginal, kEven, kLinearQuadratic}) {
    if (spacing_name(spacing) == name) return spacing;
  }
  throw Error(
      ErrorKind::kUsage,
      "--sigmas \"" + name +
          "\": choose diffusers, original, even or linear-quadratic, or list the noise levels: 1,0.75,0.5,0.25");
}

SchedulerConfig::Spacing default_spacing(SchedulerConfig::Spacing of_layout, SchedulerConfig::Kind kind) {
  const bool twice_shifted = kind == SchedulerConfig::Kind::kEuler && of_layout == SchedulerConfig::Spacing::kDiffusers;
  return twice_shifted ? SchedulerConfig::Spacing::kEven : of_layout;
}

namespace {

SchedulerConfig config_of(const JsonConfig& json, bool inverted) {
  SchedulerConfig config;
  config.num_train_timesteps = json.integer_in("num_train_timesteps", 2, 1'000'000, 1000);
  for (const char* key :
       {"use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_dynamic_shifting", "thresholding"}) {
    refuse_if_true(json, key);
  }
  if (json.has("shift_terminal")) json.fail("shift_terminal", "is not supported; remove it");

  const std::string class_name = json.string("_class_name");
  if (class_name == "FlowMatchEulerDiscreteScheduler") {
    config.kind = SchedulerConfig::Kind::kEuler;
    config.flow_shift = json.number_in("shift", kMinShift, kMaxShift, 1.0);
    if (json.boolean("invert_sigmas", false) != inverted) {
      json.fail("invert_sigmas", std::string("expected ") + (inverted ? "true" : "false") + " for this model");
    }
    refuse_if_true(json, "stochastic_sampling");
  } else if (class_name == "UniPCMultistepScheduler") {
    config.kind = SchedulerConfig::Kind::kUniPC;
    config.flow_shift = json.number_in("flow_shift", kMinShift, kMaxShift, 1.0);
    if (json.string("prediction_type", "epsilon") != "flow_prediction") {
      json.fail("prediction_type", "only \"flow_prediction\" is supported");
    }
    if (!json.boolean("use_flow_sigmas", false)) json.fail("use_flow_sigmas", "only true is supported");
    if (!json.boolean("predict_x0", true)) json.fail("predict_x0", "only true is supported");
    if (json.has("solver_p")) json.fail("solver_p", "is not supported; remove it");
    config.solver_order = json.integer_in("solver_order", 1, 3, 2);
    const std::string basis = json.string("solver_type", "bh2");
    if (basis == "bh1") {
      config.basis = SchedulerConfig::Basis::kBh1;
    } else if (basis != "bh2" && basis != "midpoint" && basis != "heun" && basis != "logrho") {
      // The last three are names of other solvers' types, which diffusers reads as bh2.
      json.fail("solver_type", "expected \"bh1\" or \"bh2\", found \"" + basis + "\"");
    }
    config.lower_order_final = json.boolean("lower_order_final", true);
    const std::string final_sigma = json.string("final_sigmas_type", "zero");
    if (final_sigma != "zero" && final_sigma != "sigma_min") {
      json.fail("final_sigmas_type", "expected \"zero\" or \"sigma_min\", found \"" + final_sigma + "\"");
    }
    config.final_sigma_zero = final_sigma == "zero";
    for (const int64_t step : json.integers("disable_corrector", {})) {
      config.disable_corrector.push_back(static_cast<int>(std::clamp<int64_t>(step, -1, kMaxSteps)));
    }
  } else if (class_name == "LCMScheduler" || class_name == "FlowMatchLCMScheduler") {
    json.fail("_class_name", class_name +
                                 " adds fresh noise after each step, which this version does not do; few-step models "
                                 "of Wan run with --scheduler euler --flow-shift 5 --timesteps 1000,750,500,250 "
                                 "--cfg-scale 1");
  } else {
    json.fail("_class_name",
              "expected UniPCMultistepScheduler or FlowMatchEulerDiscreteScheduler, found " + quoted_name(class_name));
  }
  return config;
}

}  // namespace

SchedulerConfig load_scheduler_config(const std::string& path, bool inverted) {
  const JsonConfig json = JsonConfig::load(path);
  try {
    SchedulerConfig config = config_of(json, inverted);
    config.warning = warning_of_unread(json);
    return config;
  } catch (const Error& error) {
    SchedulerConfig config;
    config.refusal = error.what();
    return config;
  }
}

std::unique_ptr<Scheduler> Scheduler::make(SchedulerConfig config, std::optional<SchedulerConfig::Kind> kind) {
  if (kind) config.kind = *kind;
  if (config.kind == SchedulerConfig::Kind::kEuler) return std::make_unique<FlowEulerScheduler>(std::move(config));
  return std::make_unique<UniPCScheduler>(std::move(config));
}

namespace {

void require_steps(size_t num_steps) {
  if (num_steps >= 1 && num_steps <= kMaxSteps) return;
  throw Error(ErrorKind::kUsage,
              "steps: " + std::to_string(num_steps) + " is out of range; give 1 to " + std::to_string(kMaxSteps));
}

}  // namespace

void Scheduler::restart(double flow_shift) {
  if (!(flow_shift > 0) || !std::isfinite(flow_shift)) {
    throw Error(ErrorKind::kUsage, "flow shift: " + std::to_string(flow_shift) + " is not a positive number");
  }
  flow_shift_ = flow_shift;
  step_index_ = 0;
}

void Scheduler::set_timesteps(int num_steps, std::optional<double> flow_shift) {
  require_steps(static_cast<size_t>(std::max(num_steps, 0)));
  restart(flow_shift.value_or(config_.flow_shift));
  std::vector<double> sigmas;
  sigmas.reserve(static_cast<size_t>(num_steps));
  for (int step = 0; step < num_steps; ++step) sigmas.push_back(spaced_sigma(step, num_steps));
  begin(sigmas);
  CALIBATT_ASSERT(timesteps_.size() == sigmas.size() && sigmas_.size() == timesteps_.size() + 1);
}

void Scheduler::set_levels(const std::vector<double>& levels, double flow_shift) {
  require_steps(levels.size());
  restart(flow_shift);
  std::vector<double> sigmas;
  double above = 0;
  for (const double level : levels) {
    if (!(level > 0 && level <= 1) || (!sigmas.empty() && level >= above)) {
      throw Error(ErrorKind::kUsage,
                  "noise levels: " + std::to_string(level) + " is not above 0, at most 1 and below the one before it");
    }
    above = level;
    sigmas.push_back(shifted(level));
  }
  begin(sigmas);
  // What is told apart as given may not be once shifted and rounded, or moved by the solver from where it has no
  // answer.
  for (size_t step = 0; step + 1 < sigmas_.size(); ++step) {
    if (sigmas_[step] > sigmas_[step + 1]) continue;
    throw Error(ErrorKind::kUsage, "noise levels: " + std::to_string(levels[step]) +
                                       " is too near to what follows it (the two are one level in the sampler); "
                                       "leave one of them out, or give another");
  }
}

namespace {

/// The share of data before a step, from 0: of Genmo's sampler, linear_quadratic_schedule in its infer.py and in
/// diffusers.
double linear_quadratic(int step, int num_steps) {
  constexpr double kThreshold = 0.025;
  const int linear_steps = num_steps / 2, quadratic_steps = num_steps - linear_steps;
  if (linear_steps == 0) {
    throw Error(ErrorKind::kUsage, "--steps 1: linear-quadratic noise levels need 2 steps; choose --sigmas even");
  }
  if (step < linear_steps) return step * kThreshold / linear_steps;
  const double rest = linear_steps - kThreshold * num_steps,
               squared = static_cast<double>(quadratic_steps) * quadratic_steps;
  const double quadratic = rest / (linear_steps * squared), linear = kThreshold / linear_steps - 2 * rest / squared;
  return quadratic * step * step + linear * step + quadratic * linear_steps * linear_steps;
}

}  // namespace

double Scheduler::spaced_sigma(int step, int num_steps) const {
  switch (config_.spacing) {
    case SchedulerConfig::Spacing::kDiffusers:
      return diffusers_sigma(step, num_steps);
    case SchedulerConfig::Spacing::kOriginal: {
      // In float32 once, as that script keeps its training levels; and in this order of operations, since UniPC's
      // timesteps are cut to whole numbers.
      const double first = static_cast<float>(1 - 1.0 / config_.num_train_timesteps);
      const double stride = (0 - first) / num_steps;
      return shifted(step * stride + first);
    }
    case SchedulerConfig::Spacing::kEven:
      return shifted(1 - static_cast<double>(step) / num_steps);
    case SchedulerConfig::Spacing::kLinearQuadratic:
      return shifted(static_cast<float>(1 - linear_quadratic(step, num_steps)));  // in float32, as diffusers shifts it
  }
  internal::assertion_failed("known spacing", __FILE__, __LINE__);
}

Tensor Scheduler::step(const Tensor& model_output, const Tensor& sample) {
  CALIBATT_ASSERT(step_index_ < num_steps());
  CALIBATT_ASSERT(model_output.dtype() == DType::kF32 && sample.dtype() == DType::kF32);
  CALIBATT_ASSERT(model_output.shape() == sample.shape());
  Tensor next = advance(model_output, sample);
  ++step_index_;
  return next;
}

Tensor weighted_sum(const std::vector<Term>& terms) {
  CALIBATT_ASSERT(!terms.empty());
  Tensor sum(DType::kF32, terms.front().tensor->shape());
  constexpr int64_t kGrain = 16384;
  parallel_for(sum.size(), kGrain, [&](int64_t begin, int64_t end, int) {
    float* target = sum.f32();
    for (size_t t = 0; t < terms.size(); ++t) {
      const float* source = terms[t].tensor->f32();
      const auto weight = static_cast<float>(terms[t].weight);
      if (t == 0) {
        for (int64_t i = begin; i < end; ++i) target[i] = weight * source[i];
      } else {
        for (int64_t i = begin; i < end; ++i) target[i] += weight * source[i];
      }
    }
  });
  return sum;
}

}  // namespace calibatt
