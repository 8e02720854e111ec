#include "pipeline/measure_growth.h"

#include <cmath>
#include <filesystem>
#include <utility>

#include "attention/run_attention.h"
#include "base/error.h"
#include "calibatt/output.h"
#include "calibrate/compile/compile.h"
#include "sampling/scheduler.h"

namespace calibatt {
namespace {

/// Shares of the steps at which growth is measured. Steps before the first are hardly ever reused: there a wrong
/// prediction makes another video.
constexpr double kMeasuredAt[] = {0.25, 0.5};
constexpr double kUsualDensity = kDefaultErrorDensity;

double mean_square(const Tensor& tensor) {
  double sum = 0;
  const float* values = tensor.f32();
  for (int64_t i = 0; i < tensor.size(); ++i) sum += double{values[i]} * values[i];
  return sum / static_cast<double>(tensor.size());
}

double mean_square_change(const Tensor& a, const Tensor& b) {
  return mean_square(weighted_sum({{1, &a}, {-1, &b}}));
}

/// The runs of one prompt, and what it takes to make them.
class GrowthRuns {
 public:
  GrowthRuns(Runner& runner, const GenerateOptions& run, StepRecorder dense, const ProgressCallback& progress)
      : runner_(runner),
        run_(run),
        progress_(progress),
        conditioning_(runner.encode(run, progress)),
        description_(runner.describe_attention(run)),
        solver_(runner.solver_weights_of(run)),
        num_steps_(static_cast<int>(description_.sigmas.size())),
        dense_(std::move(dense)) {
    if (dense_.num_steps() == 0) {
      const auto observe = [this](int step, const Tensor& latents, const Tensor& prediction) {
        dense_.observe(step, latents, prediction);
      };
      denoise(nullptr, {.observe = observe});
    }
    latents_ = continued({}, num_steps_);
  }

  int num_steps() const { return num_steps_; }

  /// What a prediction that is held at `step` does to the end, over what the solver alone would make of it.
  StepGrowth::Factor factor_at(int step) {
    std::vector<StepReuse> reuse(static_cast<size_t>(num_steps_), StepReuse::kNone);
    reuse[static_cast<size_t>(step)] = StepReuse::kHold;
    const double weight = solver_.data<double>()[int64_t{num_steps_} * (num_steps_ + 1) + step + 1];
    const double at_once = weight * weight * mean_square_change(dense_.prediction(step - 1), dense_.prediction(step));
    const double at_end = mean_square_change(continued(reuse, step), latents_);
    return {step, at_once > 0 && at_end > 0 ? std::sqrt(at_end / at_once) : 1.0};
  }

  void add_masks(std::shared_ptr<const Plan> plan, StepGrowth& growth) {
    const Tensor latents = denoise(std::move(plan), {});
    growth.mask_latents_error = std::sqrt(mean_square_change(latents, latents_) / mean_square(latents_));
    const VideoFrames masked = runner_.decode(latents, progress_), whole = runner_.decode(latents_, progress_);
    growth.mask_psnr_db = compare_videos(whole, masked).psnr_db;
  }

 private:
  Tensor denoise(std::shared_ptr<const Plan> plan, const StepControl& control) {
    const auto attention = make_run_attention(runner_.backend(), std::move(plan), description_);
    TransformerTimes times;
    return runner_.denoise(run_, *conditioning_, *attention, times, progress_, control);
  }
  /// The dense run's steps before `step`, then forwards.
  Tensor continued(std::vector<StepReuse> reuse, int step) {
    return denoise(nullptr, {.reuse = std::move(reuse), .first_step = step, .known = [this](int known) {
                               return dense_.prediction(known);
                             }});
  }

  Runner& runner_;
  const GenerateOptions& run_;
  const ProgressCallback& progress_;
  std::unique_ptr<Conditioning> conditioning_;
  RunDescription description_;
  Tensor solver_;
  int num_steps_;
  StepRecorder dense_;
  Tensor latents_;  // where the dense run ends
};

/// A step of about this share of the run that has one of its transformer before it.
int step_at(const Profile& profile, double share) {
  const int steps = profile.header.num_steps();
  int step = std::clamp(static_cast<int>(std::lround(share * steps)), 1, steps - 1);
  const std::vector<int>& transformer = profile.header.step_transformer;
  const auto of = [&](int at) { return transformer.empty() ? 0 : transformer[static_cast<size_t>(at)]; };
  while (step + 1 < steps && of(step) != of(step - 1)) ++step;
  return step;
}

/// The plan of the usual density, on disk while it is used: it may be larger than memory.
class MaskPlan {
 public:
  MaskPlan(const Profile& profile, const CompileOptions& compile, const std::string& folder)
      : path_((std::filesystem::path(folder) / "step_growth_plan.safetensors").string()) {
    CompileOptions usual = compile;
    usual.speedup = usual.psnr = std::nullopt;
    usual.density = kUsualDensity;
    summary_ = compile_to_file(profile, usual, path_);
    plan_ = load_plan(path_);
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

}  // namespace

StepGrowth growth_of_profile(Runner& runner, const Profile& profile, const std::string& folder,
                             const CompileOptions& compile, const GenerateOptions& run, StepRecorder dense,
                             const ProgressCallback& progress) {
  if (std::optional<StepGrowth> known = load_growth(folder, profile.header)) return *std::move(known);
  if (profile.header.num_steps() < 3) {
    throw Error(ErrorKind::kUsage,
                "--speedup and --psnr: a run of so few steps has none that could be reused; ask for "
                "--density");
  }
  StepGrowth growth;
  GrowthRuns runs(runner, run, std::move(dense), progress);
  for (const double share : kMeasuredAt) {
    const int step = step_at(profile, share);
    if (!growth.factors.empty() && step <= growth.factors.back().step) continue;
    growth.factors.push_back(runs.factor_at(step));
  }
  const MaskPlan masks(profile, compile, folder);
  growth.mask_step_error = masks.summary().step_error;
  runs.add_masks(masks.plan(), growth);
  save_growth(folder, profile.header, growth);
  return growth;
}

}  // namespace calibatt
