#include "calibrate/compile/early_doubt.h"

#include "calibrate/compile/compile.h"
#include "calibrate/compile/energy_schedule.h"
#include "calibrate/compile/least_density.h"
#include "calibrate/compile/unreachable_target.h"

namespace calibatt {
namespace {

/// Every query block keeps its own blocks and one more, of which there may be as many.
constexpr double kNear = 4;
/// How much better all prompts may do than one: what lies further beyond is out of reach. The least density of eight
/// prompts was 5 to 7 % below the first's (tiny-wan, four sizes, with and without repetition), and never above it.
constexpr double kSpread = 1.1;

/// What `attempt` finds to be out of reach. That it refuses anything else is for the plan itself to say.
std::optional<UnreachableTarget> unreached_by(const auto& attempt) {
  try {
    attempt();
  } catch (const UnreachableTarget& target) {
    return target;
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kUsage) throw;
  }
  return std::nullopt;
}

}  // namespace

TargetDoubt doubt_about_target(const Profile& profile, CompileOptions options, const ProgressCallback& progress) {
  std::optional<UnreachableTarget> target;
  double allowed = kSpread;
  const std::optional<double> density = options.density ? options.density : options.target_density();
  take_measured_share(profile, options);
  if (options.speedup && (options.attention_share_is_asked || measured_attention_share(profile))) {
    target = unreached_by([&] { require_possible_speedup(options, profile.header, true); });
  }
  options.speedup = options.psnr = std::nullopt;  // with a density: that of the steps that run
  const bool widened = options.merge_gap > 0 || options.share_steps_iou > 0;
  if (!target && density && (widened || *density < kNear * least_density(options, profile.header))) {
    target = unreached_by([&] { compile_plan(profile, options, progress); });
    allowed *= kNearDensity;
  }
  if (!target) return {};
  const bool is_certain = target->beyond() > allowed;
  return {"what is measured so far (" + std::to_string(profile.prompts.size()) + " of the prompts) says: " +
              (is_certain ? target->what() : target->doubt()) + ". The other prompts are measured all the same",
          is_certain};
}

}  // namespace calibatt
