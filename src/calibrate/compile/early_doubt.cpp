#include "calibrate/compile/early_doubt.h"

#include "base/error.h"
#include "calibrate/compile/compile.h"
#include "calibrate/compile/least_density.h"

namespace calibatt {
namespace {

/// Every query block keeps its own blocks and one more, of which there may be as many.
constexpr double kNear = 4;
/// How much the least density of some prompts may be above that of more.
constexpr double kSpread = 1.1;

/// What `refuse` says when it refuses what the options ask for.
std::string refusal_of(const auto& refuse) {
  try {
    refuse();
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kUsage) throw;
    return error.what();
  }
  return "";
}

}  // namespace

std::string doubt_about_target(const Profile& profile, CompileOptions options, const ProgressCallback& progress) {
  std::string doubt;
  const std::optional<double> density = options.density ? options.density : options.target_density();
  take_measured_share(profile, options);
  if (options.speedup && (options.attention_share_is_asked || measured_attention_share(profile))) {
    doubt = refusal_of([&] { require_possible_speedup(options, profile.header, true); });
  }
  options.speedup = options.psnr = std::nullopt;  // with a density: that of the steps that run
  const bool widened = options.merge_gap > 0 || options.share_steps_iou > 0;
  if (doubt.empty() && density && (widened || *density < kNear * least_density(options, profile.header))) {
    doubt = refusal_of([&] { compile_plan(profile, options, progress); });
    // The least of all prompts is not that of the first.
    if (!doubt.empty() && options.density) {
      *options.density *= kSpread;
      if (refusal_of([&] { compile_plan(profile, options, progress); }).empty()) doubt.clear();
    }
  }
  if (doubt.empty()) return "";
  return "what is measured so far (" + std::to_string(profile.prompts.size()) + " of the prompts) says: " + doubt +
         ". The other prompts are measured all the same";
}

}  // namespace calibatt
