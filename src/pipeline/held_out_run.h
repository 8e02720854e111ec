#pragma once

#include <memory>
#include <string>

#include "calibatt/progress.h"
#include "calibrate/compile/compile_options.h"
#include "calibrate/profile/profile.h"
#include "calibrate/profile/step_growth.h"
#include "pipeline/runner.h"

namespace calibatt {

/// A run that is none of a profile's own, as those that plans are made for: by it calibration learns how errors of
/// steps grow, and checks the finished plan.
class HeldOutRun {
 public:
  /// What 8 bits may do in a plan, and be measured for.
  struct EightBits {
    EightBitParts parts;
    std::string layers;  ///< which: RunReport::weights_dtype
  };
  /// `run`: with a seed that the profile has no run of. All must outlive the object. Nothing runs yet.
  HeldOutRun(Runner& runner, const Profile& profile, std::string folder, const GenerateOptions& run,
             EightBits measured);
  ~HeldOutRun();

  /// To be asked before prompts are measured; arguments as of the constructor. Whether the folder holds what `growth`
  /// says. Throws Error(kUsage) for runs of too few steps, Error(kFormat) where what the folder holds is damaged.
  static bool look_first(const ProfileHeader& header, const std::string& folder, const GenerateOptions& run,
                         const EightBits& measured);

  /// What the profile's folder holds, else measured now and saved there: a dense run, and less than one generation of
  /// forwards more; for each part in 8 bits another third of one. Throws as look_first.
  StepGrowth growth(const ProgressCallback& progress);

  struct Check {
    double latents_error = 0;  ///< √(mean square of the change of the final latents / that of dense ones)
    double psnr_db = 0;        ///< of its video against the dense one
  };
  /// Runs with the plan, in 8 bits where it is and the options of the run and the model allow it. The dense run's
  /// latents are kept in the profile's folder.
  Check check(const std::string& plan_path, const ProgressCallback& progress);

 private:
  struct Parts;
  Parts& parts();
  Tensor dense_latents();
  void run_dense();
  double factor_at(int step, Tensor& latents_at_end);
  StepGrowth grown();
  std::vector<StepGrowth::MaskChange> mask_changes();
  std::vector<StepGrowth::EightBitChange> eight_bit_changes(EightBitParts part);
  std::vector<int> compared_steps() const;
  double psnr(const Tensor& latents);

  Runner& runner_;
  const Profile& profile_;
  std::string folder_;
  const GenerateOptions& run_;
  EightBits measured_;
  ProgressCallback progress_;  ///< of what runs now
  std::unique_ptr<Parts> parts_;
  Tensor dense_latents_;
};

}  // namespace calibatt
