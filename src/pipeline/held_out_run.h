#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "attention/plan_fit.h"
#include "base/tensor.h"
#include "calibatt/progress.h"
#include "calibrate/compile/compile_options.h"
#include "calibrate/profile/growth_part.h"
#include "calibrate/profile/profile.h"
#include "calibrate/profile/step_growth.h"
#include "calibrate/record/step_recorder.h"
#include "pipeline/calibration_jobs.h"

namespace calibatt {

/// A run that is none of a profile's own, as those that plans are made for: by it calibration learns how errors of
/// steps grow, and checks the finished plan. What does not depend on each other is done side by side.
class HeldOutRun {
 public:
  /// What 8 bits may do in a plan, and be measured for.
  struct EightBits {
    EightBitParts parts;
    std::string layers;  ///< which: RunReport::weights_dtype
  };
  /// `run`: with a seed that the profile has no run of; description: its own, of fingerprints that every rank may ask
  /// for at no cost. All must outlive the object. Nothing runs yet.
  HeldOutRun(RunnerGroup& runners, const ProfileHeader& header, std::string folder, const GenerateOptions& run,
             RunDescription description, EightBits measured, CalibrationProgress& told);
  ~HeldOutRun();

  /// To be asked before anything else, and before prompts are measured: what the folder lacks of what `growth` says.
  /// `told` expects it. Throws Error(kUsage) for runs of too few steps, Error(kFormat) where what the folder holds is
  /// damaged.
  void look_first();

  /// What may be done beside the prompts, as it needs nothing of them: the dense run, unless it is there.
  std::vector<CalibrationJob> jobs_ahead();

  /// What the profile's folder holds, else measured now and saved there: a dense run, and less than one generation of
  /// forwards more; for each part in 8 bits another third of one. What is measured is kept as it is known: where this
  /// ends early, another object goes on, behind a dense run.
  StepGrowth growth(const Profile& profile, const ProgressCallback& progress);

  struct Check {
    double latents_error = 0;  ///< √(mean square of the change of the final latents / that of dense ones)
    double psnr_db = 0;        ///< of its video against the dense one
  };
  /// Runs with the plan, in 8 bits where it is and the options of the run and the model allow it. The dense run's
  /// latents are kept in the profile's folder.
  Check check(const std::string& plan_path, const ProgressCallback& progress);

 private:
  /// What the folder knows of growth, and what of the rest is to be measured.
  struct Missing {
    StepGrowth kept;         ///< of 8 bits alone where the rest is measured anew
    bool is_known = false;   ///< all but what 8 bits do
    std::vector<int> steps;  ///< whose factors
    bool masks = false;      ///< what these do
    EightBitParts eight_bits;
    bool any_run() const { return !steps.empty() || masks || eight_bits.any(); }
    std::vector<double> generations(int num_steps) const;
  };

  struct RankParts;
  RankParts& parts_of(Runner& runner, const ProgressCallback& tell);
  /// In 8 bits what of each step is told; nothing: none.
  Tensor denoise(Runner& runner, RunAttention& attention, StepControl control, const ProgressCallback& tell,
                 std::vector<EightBitParts> eight_bits = {});
  std::unique_ptr<RunAttention> attention_of(Runner& runner, std::shared_ptr<const Plan> plan = nullptr);
  bool has_dense_latents();
  void run_dense(Runner& runner, const ProgressCallback& tell);
  /// What a prediction that is reused at `step` does to the end, over what the solver alone would make of it.
  double factor_at(int step, Tensor& latents_at_end, Runner& runner, const ProgressCallback& tell);
  std::vector<StepGrowth::MaskChange> mask_changes(const Profile& profile, Runner& runner,
                                                   const ProgressCallback& tell);
  std::vector<StepGrowth::EightBitChange> eight_bit_changes(EightBitParts part, Runner& runner,
                                                            const ProgressCallback& tell);
  /// Jobs that fill in what is missing, the longest first.
  std::vector<CalibrationJob> growing_jobs(const Profile& profile);
  /// What a job has measured, in memory and in the folder. add: to part_, which no other job changes meanwhile.
  void keep(const std::function<void(GrowthPart& part)>& add);
  HeldOutKey key() const { return {header_, run_.prompt, run_.seed}; }
  void take_part_along();
  StepGrowth known_so_far() const;
  void add_visible_change(const Tensor& changed, StepGrowth& growth, const ProgressCallback& progress);

  RunnerGroup& runners_;
  const ProfileHeader& header_;
  std::string folder_;
  const GenerateOptions& run_;
  const RunDescription description_;
  EightBits measured_;
  CalibrationProgress& told_;
  Missing missing_;
  std::mutex mutex_;                                          // of the map alone
  std::map<Runner*, std::unique_ptr<RankParts>> rank_parts_;  // each used by its rank's thread
  StepRecorder dense_;                                        // empty until a dense run was made
  Tensor dense_latents_;
  std::mutex part_mutex_;
  GrowthPart part_;  // what this run has measured, here or before it was ended
};

}  // namespace calibatt
