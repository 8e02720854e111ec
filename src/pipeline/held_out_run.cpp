#include "pipeline/held_out_run.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <utility>

#include "attention/run_attention.h"
#include "base/error.h"
#include "calibatt/output.h"
#include "calibrate/compile/compile.h"
#include "calibrate/profile/held_out_latents.h"
#include "calibrate/record/step_recorder.h"
#include "sampling/scheduler.h"

namespace calibatt {
namespace {

// Shares of the steps. Steps before the first are hardly ever reused, and what they do is known without a run
// (growth_of_steps).
constexpr double kGrowthAt[] = {0.4, 0.7}, kComparedAt[] = {0, 0.05, 0.15, 0.4, 0.7, 1};
constexpr double kMaskDensity = 0.7;     // as plans have it that also reuse steps
constexpr double kVisibleChange = 0.02;  // of latents: such that frames of 8 bits show it as it is

double mean_square(const Tensor& tensor) {
  double sum = 0;
  const float* values = tensor.f32();
  for (int64_t i = 0; i < tensor.size(); ++i) sum += double{values[i]} * values[i];
  return sum / static_cast<double>(tensor.size());
}

double mean_square_change(const Tensor& a, const Tensor& b) {
  return mean_square(weighted_sum({{1, &a}, {-1, &b}}));
}

/// A step of about this share of the run.
int step_at(int num_steps, double share) {
  return std::clamp(static_cast<int>(std::lround(share * num_steps)), 0, num_steps - 1);
}

/// The first step from there that has one of its transformer before it.
int held_step_at(const ProfileHeader& header, double share) {
  const int steps = header.num_steps();
  int step = std::max(1, step_at(steps, share));
  const std::vector<int>& transformer = header.step_transformer;
  const auto of = [&](int at) { return transformer.empty() ? 0 : transformer[static_cast<size_t>(at)]; };
  while (step + 1 < steps && of(step) != of(step - 1)) ++step;
  return step;
}

/// The usual options, as far as the profile allows them, whatever the plan is compiled with: what is measured is kept
/// for every plan of the profile.
CompileOptions mask_options(const ProfileHeader& header) {
  CompileOptions masks;
  if (header.measured == Measured::kLevels) {
    masks.ranking = header.code_ranking;
    if (header.has_harm_codes()) masks.skipped = header.code_skipped;
  }
  if (header.anchor_rows.empty()) {
    masks.repetition = Repetition::kOff;
  } else {
    masks.anchor_rows_per_frame = header.anchor_rows.front();
  }
  masks.density = kMaskDensity;
  return masks;
}

/// A plan of that density, on disk while it is used: it may be larger than memory.
class MaskPlan {
 public:
  MaskPlan(const Profile& profile, std::string path) : path_(std::move(path)) {
    CompileOptions masks = mask_options(profile.header);
    while (!plan_) {
      try {
        summary_ = compile_to_file(profile, masks, path_);
        plan_ = load_plan(path_);
      } catch (const Error& error) {  // a video of few blocks: none so low
        if (error.kind() != ErrorKind::kUsage || *masks.density >= 1) throw;
        masks.density = std::min(1.0, *masks.density + 0.1);
      }
    }
  }
  ~MaskPlan() {
    plan_.reset();
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
  }
  MaskPlan(const MaskPlan&) = delete;
  MaskPlan& operator=(const MaskPlan&) = delete;
  const std::shared_ptr<const Plan>& plan() const { return plan_; }
  const CompileSummary& summary() const { return summary_; }

 private:
  std::string path_;
  CompileSummary summary_;
  std::shared_ptr<const Plan> plan_;
};

void require_enough_steps(const ProfileHeader& header) {
  if (header.num_steps() >= 3) return;
  throw Error(ErrorKind::kUsage,
              "--speedup and --psnr: a run of so few steps has none that could be reused; ask for --density");
}

}  // namespace

struct HeldOutRun::Parts {
  Parts(Runner& runner_of_model, const GenerateOptions& options, const ProgressCallback& callback)
      : runner(runner_of_model),
        run(options),
        progress(callback),
        conditioning(runner.encode(run, progress)),
        description(runner.describe_attention(run)) {}

  std::unique_ptr<RunAttention> attention(std::shared_ptr<const Plan> plan = nullptr) const {
    return make_run_attention(runner.backend(), std::move(plan), description);
  }
  /// In 8 bits what of each step is told; nothing: none.
  Tensor denoise(RunAttention& attention, StepControl control, std::vector<EightBitParts> eight_bits = {}) {
    eight_bits.resize(description.sigmas.size());
    std::vector<bool> of_attention;
    of_attention.reserve(eight_bits.size());
    for (const EightBitParts step : eight_bits) of_attention.push_back(step.attention);
    attention.use_eight_bits(std::move(of_attention));
    TransformerTimes times;
    if (control.reuse.empty()) control.reuse = attention.step_reuse();
    return runner.denoise(run, *conditioning, attention, times, progress, control, eight_bits);
  }

  Runner& runner;
  const GenerateOptions& run;
  const ProgressCallback& progress;
  std::unique_ptr<Conditioning> conditioning;
  RunDescription description;
  StepRecorder dense;  // empty until a dense run was made
};

HeldOutRun::HeldOutRun(Runner& runner, const Profile& profile, std::string folder, const GenerateOptions& run,
                       EightBits measured)
    : runner_(runner), profile_(profile), folder_(std::move(folder)), run_(run), measured_(std::move(measured)) {}

HeldOutRun::~HeldOutRun() = default;

HeldOutRun::Parts& HeldOutRun::parts() {
  if (!parts_) parts_ = std::make_unique<Parts>(runner_, run_, progress_);
  return *parts_;
}

Tensor HeldOutRun::dense_latents() {
  if (!dense_latents_.empty()) return dense_latents_;
  if (std::optional<Tensor> kept = load_held_out_latents(folder_, {profile_.header, run_.prompt, run_.seed})) {
    return dense_latents_ = *std::move(kept);
  }
  run_dense();
  return dense_latents_;
}

void HeldOutRun::run_dense() {
  StepRecorder& dense = parts().dense;
  dense = {};
  const auto observe = [&](int step, const Tensor& latents, const Tensor& prediction) {
    dense.observe(step, latents, prediction);
  };
  dense_latents_ = parts().denoise(*parts().attention(), {.observe = observe});
  save_held_out_latents(folder_, {profile_.header, run_.prompt, run_.seed}, dense_latents_);
}

/// What a prediction that is held at `step` does to the end, over what the solver alone would make of it.
double HeldOutRun::factor_at(int step, Tensor& latents_at_end) {
  const int num_steps = profile_.header.num_steps();
  const StepRecorder& dense = parts().dense;
  std::vector<StepReuse> reuse(static_cast<size_t>(num_steps), StepReuse::kNone);
  reuse[static_cast<size_t>(step)] = StepReuse::kHold;
  latents_at_end = parts().denoise(*parts().attention(), {.reuse = reuse, .first_step = step, .known = [&](int known) {
                                                            return dense.prediction(known);
                                                          }});
  const Tensor solver = runner_.solver_weights_of(run_);
  const double weight = solver.data<double>()[int64_t{num_steps} * (num_steps + 1) + step + 1];
  const double at_once = weight * weight * mean_square_change(dense.prediction(step - 1), dense.prediction(step));
  const double at_end = mean_square_change(latents_at_end, dense_latents_);
  return at_once > 0 && at_end > 0 ? std::sqrt(at_end / at_once) : 1.0;
}

std::vector<int> HeldOutRun::compared_steps() const {
  const int num_steps = profile_.header.num_steps();
  std::vector<int> steps;
  for (const double share : kComparedAt) {
    if (const int step = step_at(num_steps, share); steps.empty() || step > steps.back()) steps.push_back(step);
  }
  return steps;
}

std::vector<StepGrowth::MaskChange> HeldOutRun::mask_changes() {
  const MaskPlan masks(profile_, (std::filesystem::path(folder_) / "step_growth_plan.safetensors").string());
  const double latents = mean_square(dense_latents_);
  const StepRecorder& dense = parts().dense;
  std::vector<StepGrowth::MaskChange> changes;
  const auto compare = [&](int step, const Tensor& prediction) {
    const double change = mean_square_change(prediction, dense.prediction(step)) / latents,
                 error = masks.summary().step_error[static_cast<size_t>(step)];
    // Masks that keep all of a step say nothing of it.
    if (change > 0 && error > 0) changes.push_back({step, std::sqrt(change) / error});
  };
  parts().denoise(*parts().attention(masks.plan()), {.first_step = profile_.header.num_steps(),
                                                     .known = [&](int known) { return dense.prediction(known); },
                                                     .compared_steps = compared_steps(),
                                                     .compare = compare});
  if (changes.empty()) changes.push_back({0, 1});
  return changes;
}

/// In every compared step, with everything else as in the dense run.
std::vector<StepGrowth::EightBitChange> HeldOutRun::eight_bit_changes(EightBitParts part) {
  constexpr double kLeast = 1e-9;  // where nothing was changed that a float shows
  const auto num_steps = static_cast<size_t>(profile_.header.num_steps());
  const double latents = mean_square(dense_latents_);
  const StepRecorder& dense = parts().dense;
  std::vector<StepGrowth::EightBitChange> changes;
  const auto compare = [&](int step, const Tensor& prediction) {
    const double change = mean_square_change(prediction, dense.prediction(step)) / latents;
    changes.push_back({step, std::max(std::sqrt(change), kLeast)});
  };
  parts().denoise(*parts().attention(),
                  {.first_step = profile_.header.num_steps(),
                   .known = [&](int known) { return dense.prediction(known); },
                   .compared_steps = compared_steps(),
                   .compare = compare},
                  std::vector<EightBitParts>(num_steps, part));
  return changes;
}

double HeldOutRun::psnr(const Tensor& latents) {
  return compare_videos(runner_.decode(dense_latents_, progress_), runner_.decode(latents, progress_)).psnr_db;
}

bool HeldOutRun::look_first(const ProfileHeader& header, const std::string& folder, const GenerateOptions& run,
                            const EightBits& measured) {
  require_enough_steps(header);
  const std::optional<StepGrowth> known = load_growth(folder, header);
  if (!known || !known->knows(measured.parts, measured.layers)) return false;
  load_held_out_latents(folder, {header, run.prompt, run.seed});
  return true;
}

/// Behind a dense run.
StepGrowth HeldOutRun::grown() {
  StepGrowth growth;
  Tensor changed;
  for (const double share : kGrowthAt) {
    const int step = held_step_at(profile_.header, share);
    if (!growth.factors.empty() && step <= growth.factors.back().step) continue;
    growth.factors.push_back({step, factor_at(step, changed)});
  }
  growth.mask_changes = mask_changes();
  // The last change, made as large as is seen.
  const double error = std::sqrt(mean_square_change(changed, dense_latents_) / mean_square(dense_latents_));
  const double scale = error > 0 ? kVisibleChange / error : 0;
  growth.latents_error = kVisibleChange;
  growth.psnr_db = psnr(weighted_sum({{1 - scale, &dense_latents_}, {scale, &changed}}));
  return growth;
}

StepGrowth HeldOutRun::growth(const ProgressCallback& progress) {
  progress_ = progress;
  const auto& [asked, layers] = measured_;
  std::optional<StepGrowth> growth = load_growth(folder_, profile_.header);
  if (growth && growth->knows(asked, layers)) return *std::move(growth);
  require_enough_steps(profile_.header);
  run_dense();  // whatever is kept of it: that is its end alone
  if (!growth) growth = grown();
  if (asked.layers && !growth->knows({.layers = true}, layers)) {
    growth->layer_changes = eight_bit_changes({.layers = true});
    growth->layers = layers;
  }
  if (asked.attention && !growth->knows({.attention = true}, layers)) {
    growth->attention_changes = eight_bit_changes({.attention = true});
  }
  save_growth(folder_, profile_.header, *growth);
  return *std::move(growth);
}

HeldOutRun::Check HeldOutRun::check(const std::string& plan_path, const ProgressCallback& progress) {
  progress_ = progress;
  dense_latents();
  const std::unique_ptr<RunAttention> attention = parts().attention(load_plan(plan_path));
  std::vector<EightBitParts> eight_bits = attention->planned_eight_bits();
  const EightBitParts allowed = runner_.allowed_eight_bits(run_);
  for (EightBitParts& step : eight_bits) {
    step = {.attention = step.attention && allowed.attention, .layers = step.layers && allowed.layers};
  }
  const Tensor latents = parts().denoise(*attention, {}, std::move(eight_bits));
  return {std::sqrt(mean_square_change(latents, dense_latents_) / mean_square(dense_latents_)), psnr(latents)};
}

}  // namespace calibatt
