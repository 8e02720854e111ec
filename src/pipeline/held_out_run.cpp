#include "pipeline/held_out_run.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <utility>

#include "attention/run_attention.h"
#include "base/error.h"
#include "calibatt/output.h"
#include "calibrate/compile/compile.h"
#include "calibrate/compile/step_errors.h"
#include "calibrate/profile/held_out_latents.h"
#include "sampling/scheduler.h"

namespace calibatt {
namespace {

constexpr double kComparedAt[] = {0, 0.05, 0.15, 0.4, 0.7, 1};  // shares of the steps
constexpr double kMaskDensity = 0.7;                            // as plans have it that also reuse steps
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

std::vector<int> compared_steps(int num_steps) {
  std::vector<int> steps;
  for (const double share : kComparedAt) {
    const int step = std::min(static_cast<int>(std::lround(share * num_steps)), num_steps - 1);
    if (steps.empty() || step > steps.back()) steps.push_back(step);
  }
  return steps;
}

/// With one step reused: in few steps by the way that errs least there, else held.
std::vector<StepReuse> reuse_of_one(const StepErrors& errors, int step) {
  std::vector<StepReuse> best(static_cast<size_t>(errors.num_steps()), StepReuse::kNone);
  best[static_cast<size_t>(step)] = StepReuse::kHold;
  if (errors.num_steps() > kFewSteps) return best;
  for (const StepReuse way : {StepReuse::kResidual, StepReuse::kLinear}) {
    std::vector<StepReuse> other = best;
    other[static_cast<size_t>(step)] = way;
    if (errors.is_possible(other) && errors.of(other) < errors.of(best)) best = std::move(other);
  }
  return best;
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
  MaskPlan(const Profile& profile, std::string path, const ProgressCallback& tell) : path_(std::move(path)) {
    CompileOptions masks = mask_options(profile.header);
    while (!plan_) {
      try {
        summary_ = compile_to_file(profile, masks, path_, tell);
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

/// What a rank keeps from run to run, in its device's memory.
struct HeldOutRun::RankParts {
  std::unique_ptr<Conditioning> conditioning;
};

HeldOutRun::HeldOutRun(RunnerGroup& runners, const ProfileHeader& header, std::string folder,
                       const GenerateOptions& run, RunDescription description, EightBits measured,
                       CalibrationProgress& told)
    : runners_(runners),
      header_(header),
      folder_(std::move(folder)),
      run_(run),
      description_(std::move(description)),
      measured_(std::move(measured)),
      told_(told) {}

HeldOutRun::~HeldOutRun() {
  for (auto& each : rank_parts_) RunnerGroup::on_its_device(*each.first, [&] { each.second.reset(); });
  RunnerGroup::on_its_device(runners_.first(), [] {});
}

HeldOutRun::RankParts& HeldOutRun::parts_of(Runner& runner, const ProgressCallback& tell) {
  std::unique_lock lock(mutex_);
  std::unique_ptr<RankParts>& parts = rank_parts_[&runner];
  lock.unlock();
  if (parts == nullptr) {
    runner.expect_steps(run_, tell, std::vector<EightBitParts>(header_.sigmas.size()));
    parts = std::make_unique<RankParts>(RankParts{runner.encode(run_, tell)});
  }
  return *parts;
}

std::unique_ptr<RunAttention> HeldOutRun::attention_of(Runner& runner, std::shared_ptr<const Plan> plan) {
  return make_run_attention(runner.backend(), std::move(plan), description_);
}

Tensor HeldOutRun::denoise(Runner& runner, RunAttention& attention, StepControl control, const ProgressCallback& tell,
                           std::vector<EightBitParts> eight_bits) {
  eight_bits.resize(header_.sigmas.size());
  std::vector<bool> of_attention;
  of_attention.reserve(eight_bits.size());
  for (const EightBitParts step : eight_bits) of_attention.push_back(step.attention);
  attention.use_eight_bits(std::move(of_attention));
  TransformerTimes times;
  if (control.reuse.empty()) control.reuse = attention.step_reuse();
  return runner.denoise(run_, *parts_of(runner, tell).conditioning, attention, times, tell, control, eight_bits);
}

bool HeldOutRun::has_dense_latents() {
  if (dense_latents_.empty()) {
    if (std::optional<Tensor> kept = load_held_out_latents(folder_, key())) {
      dense_latents_ = *std::move(kept);
    }
  }
  return !dense_latents_.empty();
}

void HeldOutRun::run_dense(Runner& runner, const ProgressCallback& tell) {
  StepRecorder dense;
  const auto observe = [&](int step, const Tensor& latents, const Tensor& prediction) {
    dense.observe(step, latents, prediction);
  };
  dense_latents_ = denoise(runner, *attention_of(runner), {.observe = observe}, tell);
  dense_ = std::move(dense);
  save_held_out_latents(folder_, key(), dense_latents_);
}

double HeldOutRun::factor_at(int step, Tensor& latents_at_end, Runner& runner, const ProgressCallback& tell) {
  Profile dense{header_, std::vector<PromptProfile>(1)};
  dense_.store(runner.solver_weights_of(run_), dense.prompts[0]);
  StepGrowth none;
  for (int each = 0; each < header_.num_steps(); ++each) none.factors.push_back({each, 1});
  const StepErrors at_once(dense, none);  // by the solver alone
  const std::vector<StepReuse> reuse = reuse_of_one(at_once, step);
  latents_at_end =
      denoise(runner, *attention_of(runner),
              {.reuse = reuse, .first_step = step, .known = [&](int known) { return dense_.prediction(known); }}, tell);
  const double error = at_once.of(reuse);
  const double at_end = mean_square_change(latents_at_end, dense_latents_) / mean_square(dense_latents_);
  return error > 0 && at_end > 0 ? std::sqrt(at_end / error) : 1.0;
}

std::vector<StepGrowth::MaskChange> HeldOutRun::mask_changes(const Profile& profile, Runner& runner,
                                                             const ProgressCallback& tell) {
  const MaskPlan masks(profile, (std::filesystem::path(folder_) / "step_growth_plan.safetensors").string(), tell);
  const double latents = mean_square(dense_latents_);
  std::vector<StepGrowth::MaskChange> changes;
  const auto compare = [&](int step, const Tensor& prediction) {
    const double change = mean_square_change(prediction, dense_.prediction(step)) / latents,
                 error = masks.summary().step_error[static_cast<size_t>(step)];
    // Masks that keep all of a step say nothing of it.
    if (change > 0 && error > 0) changes.push_back({step, std::sqrt(change) / error});
  };
  denoise(runner, *attention_of(runner, masks.plan()),
          {.first_step = header_.num_steps(),
           .known = [&](int known) { return dense_.prediction(known); },
           .compared_steps = compared_steps(header_.num_steps()),
           .compare = compare},
          tell);
  if (changes.empty()) changes.push_back({0, 1});
  return changes;
}

/// In every compared step, with everything else as in the dense run.
std::vector<StepGrowth::EightBitChange> HeldOutRun::eight_bit_changes(EightBitParts part, Runner& runner,
                                                                      const ProgressCallback& tell) {
  constexpr double kLeast = 1e-9;  // where nothing was changed that a float shows
  const double latents = mean_square(dense_latents_);
  std::vector<StepGrowth::EightBitChange> changes;
  const auto compare = [&](int step, const Tensor& prediction) {
    const double change = mean_square_change(prediction, dense_.prediction(step)) / latents;
    changes.push_back({step, std::max(std::sqrt(change), kLeast)});
  };
  denoise(runner, *attention_of(runner),
          {.first_step = header_.num_steps(),
           .known = [&](int known) { return dense_.prediction(known); },
           .compared_steps = compared_steps(header_.num_steps()),
           .compare = compare},
          tell, std::vector<EightBitParts>(static_cast<size_t>(header_.num_steps()), part));
  return changes;
}

/// What was measured before a calibration was ended, as far as it can be gone on with.
void HeldOutRun::take_part_along() {
  part_ = load_growth_part(folder_, key());
  const std::vector<int> steps = steps_of_growth(header_);
  // The latents of the last are needed beside its factor.
  std::erase_if(part_.growth.factors, [&](const StepGrowth::Factor& each) {
    return std::ranges::find(steps, each.step) == steps.end() || (each.step == steps.back() && part_.changed.empty());
  });
}

StepGrowth HeldOutRun::known_so_far() const {
  const StepGrowth& part = part_.growth;
  StepGrowth growth = missing_.kept;
  if (part.knows({.layers = true}, measured_.layers)) {  // the folder's may be of others
    growth.layers = part.layers;
    growth.layer_changes = part.layer_changes;
    growth.layer_arithmetic = part.layer_arithmetic;
  }
  growth.take_eight_bits(part);
  if (!missing_.is_known) {
    growth.factors = part.factors;
    growth.mask_changes = part.mask_changes;
  }
  return growth;
}

void HeldOutRun::look_first() {
  require_enough_steps(header_);
  missing_ = {};
  take_part_along();
  if (const std::optional<StepGrowth> there = read_growth(folder_, header_)) {
    missing_.is_known = measures_enough(*there, header_);
    if (missing_.is_known) missing_.kept = *there;
    missing_.kept.take_eight_bits(*there);
  }
  const StepGrowth known = known_so_far();
  if (!missing_.is_known) {
    for (const int step : steps_of_growth(header_)) {
      if (std::ranges::find(known.factors, step, &StepGrowth::Factor::step) == known.factors.end()) {
        missing_.steps.push_back(step);
      }
    }
    missing_.masks = known.mask_changes.empty();
  }
  const auto lacks = [&](EightBitParts part) { return !known.knows(part, measured_.layers); };
  missing_.eight_bits.layers = measured_.parts.layers && lacks({.layers = true});
  missing_.eight_bits.attention = measured_.parts.attention && lacks({.attention = true});
  if (!missing_.any_run()) load_held_out_latents(folder_, key());
  told_.expect_growth(missing_.generations(header_.num_steps()));
}

/// Of the dense run, then as growing_jobs makes them.
std::vector<double> HeldOutRun::Missing::generations(int num_steps) const {
  if (!any_run()) return {};
  std::vector<double> each = {1};
  for (const int step : steps) each.push_back(static_cast<double>(num_steps - step) / num_steps);
  const double compared = static_cast<double>(compared_steps(num_steps).size()) / num_steps;
  each.resize(each.size() + masks + eight_bits.layers + eight_bits.attention, compared);
  return each;
}

std::vector<CalibrationJob> HeldOutRun::jobs_ahead() {
  // Where more is to be measured, whatever is kept of a dense run is too little: that is its end alone.
  if (!missing_.any_run() && has_dense_latents()) return {};
  return {[this](Runner& runner, const ProgressCallback& tell) {
    run_dense(runner, told_.of_growth(0, tell));
    told_.finished_growth(0);
  }};
}

void HeldOutRun::keep(const std::function<void(GrowthPart& part)>& add) {
  const std::lock_guard lock(part_mutex_);
  add(part_);
  save_growth_part(folder_, key(), part_);
}

std::vector<CalibrationJob> HeldOutRun::growing_jobs(const Profile& profile) {
  std::vector<CalibrationJob> jobs;
  const auto add = [&](const auto& measure) {
    jobs.emplace_back(
        [this, measure, run = static_cast<int>(1 + jobs.size())](Runner& runner, const ProgressCallback& tell) {
          measure(runner, told_.of_growth(run, tell));
          told_.finished_growth(run);
        });
  };
  for (const int step : missing_.steps) {
    add([this, step](Runner& runner, const ProgressCallback& tell) {
      Tensor at_end;
      const StepGrowth::Factor factor{step, factor_at(step, at_end, runner, tell)};
      keep([&](GrowthPart& part) {
        std::vector<StepGrowth::Factor>& all = part.growth.factors;
        all.insert(std::ranges::upper_bound(all, step, {}, &StepGrowth::Factor::step), factor);
        if (step == steps_of_growth(header_).back()) part.changed = at_end;
      });
    });
  }
  if (missing_.masks) {
    add([&](Runner& runner, const ProgressCallback& tell) {
      const auto changes = mask_changes(profile, runner, tell);
      keep([&](GrowthPart& part) { part.growth.mask_changes = changes; });
    });
  }
  if (missing_.eight_bits.layers) {
    add([this](Runner& runner, const ProgressCallback& tell) {
      const auto changes = eight_bit_changes({.layers = true}, runner, tell);
      keep([&](GrowthPart& part) {
        part.growth.layer_changes = changes;
        part.growth.layers = measured_.layers;
        part.growth.layer_arithmetic = kLayerArithmetic;
      });
    });
  }
  if (missing_.eight_bits.attention) {
    add([this](Runner& runner, const ProgressCallback& tell) {
      const auto changes = eight_bit_changes({.attention = true}, runner, tell);
      keep([&](GrowthPart& part) {
        part.growth.attention_changes = changes;
        part.growth.attention_arithmetic = kAttentionArithmetic;
      });
    });
  }
  return jobs;
}

/// What a change of the latents, made as large as is seen, does to the video.
void HeldOutRun::add_visible_change(const Tensor& changed, StepGrowth& growth, const ProgressCallback& progress) {
  const double error = std::sqrt(mean_square_change(changed, dense_latents_) / mean_square(dense_latents_));
  const double scale = error > 0 ? kVisibleChange / error : 0;
  const Tensor visible = weighted_sum({{1 - scale, &dense_latents_}, {scale, &changed}});
  VideoFrames dense_video, changed_video;
  const auto decoding = [&](const Tensor& latents, VideoFrames& video) -> CalibrationJob {
    return
        [&](Runner& runner, const ProgressCallback& tell) { video = runner.decode(latents, told_.of_growth(0, tell)); };
  };
  do_jobs(runners_, {decoding(dense_latents_, dense_video), decoding(visible, changed_video)}, told_, progress);
  growth.latents_error = kVisibleChange;
  // Infinite where no pixel differs, which no plan or file could hold.
  growth.psnr_db = std::min(compare_videos(dense_video, changed_video).psnr_db, 100.0);
}

StepGrowth HeldOutRun::growth(const Profile& profile, const ProgressCallback& progress) {
  if (missing_.eight_bits.layers && !missing_.kept.layers.empty() && missing_.kept.layers != measured_.layers) {
    runners_.first().warn("what linear layers in " + missing_.kept.layers + " do gives way in " + folder_ +
                          " to what those in " + measured_.layers +
                          " do; a calibration with the former would measure it again");
  }
  if (!missing_.is_known || missing_.any_run()) {
    if (dense_.num_steps() == 0) do_jobs(runners_, jobs_ahead(), told_, progress);
    do_jobs(runners_, growing_jobs(profile), told_, progress);
  }
  StepGrowth growth = known_so_far();
  if (growth == missing_.kept) return growth;
  if (!missing_.is_known) add_visible_change(part_.changed, growth, progress);
  save_growth(folder_, header_, growth);
  remove_growth_part(folder_);
  return growth;
}

HeldOutRun::Check HeldOutRun::check(const std::string& plan_path, const ProgressCallback& progress) {
  Tensor latents;
  VideoFrames dense_video, video;
  const auto of_plan = [&](Runner& runner, const ProgressCallback& tell) {
    const ProgressCallback own = told_.of_check(tell);
    const std::unique_ptr<RunAttention> attention = attention_of(runner, load_plan(plan_path));
    std::vector<EightBitParts> eight_bits = attention->planned_eight_bits();
    const EightBitParts allowed = runner.allowed_eight_bits(run_);
    for (EightBitParts& step : eight_bits) {
      step = {.attention = step.attention && allowed.attention, .layers = step.layers && allowed.layers};
    }
    latents = denoise(runner, *attention, {}, own, std::move(eight_bits));
    video = runner.decode(latents, own);
  };
  const auto of_dense = [&](Runner& runner, const ProgressCallback& tell) {
    const ProgressCallback own = told_.of_check(tell);
    if (!has_dense_latents()) run_dense(runner, own);
    dense_video = runner.decode(dense_latents_, own);
  };
  do_jobs(runners_, {of_plan, of_dense}, told_, progress);
  return {std::sqrt(mean_square_change(latents, dense_latents_) / mean_square(dense_latents_)),
          compare_videos(dense_video, video).psnr_db};
}

}  // namespace calibatt
