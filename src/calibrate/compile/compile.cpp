#include "calibrate/compile/compile.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <utility>

#include "base/error.h"
#include "calibrate/compile/compiler.h"
#include "calibrate/compile/joint_choice.h"
#include "plan/plan_writer.h"

namespace calibatt {
namespace {

/// What compiling a plan needs, for as long as that takes.
struct Job {
  Job(const Profile& profile_of_runs, const CompileOptions& compile_options, const ProgressCallback& callback)
      : profile(profile_of_runs),
        options(compile_options),
        measurements((validate_all(profile, options), make_measurements(profile, options))),
        progress(callback, measurements->num_entries() * profile.header.num_layers, Compiler::num_passes(options)),
        compiler(*measurements, options, profile.prompts.size(), progress) {}

  static void validate_all(const Profile& profile, const CompileOptions& options) {
    CALIBATT_ASSERT(!profile.prompts.empty());
    validate(options, profile.header);
  }

  Choices choose() {
    return options.may_reuse_steps() ? choose_jointly(compiler, profile, options) : compiler.choose();
  }
  CompileSummary completed(CompileSummary summary, const Choices& choices) const {
    summary.latents_error = choices.latents_error;
    if (options.growth && choices.latents_error) {
      summary.psnr_db = expected_psnr(*options.growth, *choices.latents_error);
    }
    return summary;
  }

  const Profile& profile;
  const CompileOptions& options;
  std::unique_ptr<Measurements> measurements;
  CompileProgress progress;
  Compiler compiler;
};

}  // namespace

CompiledPlan compile_plan(const Profile& profile, const CompileOptions& options, const ProgressCallback& progress) {
  Job job(profile, options, progress);
  const Choices choices = job.choose();
  CompiledPlan compiled = job.compiler.in_memory(choices);
  compiled.summary = job.completed(std::move(compiled.summary), choices);
  return compiled;
}

CompileSummary compile_to_file(const Profile& profile, const CompileOptions& options, const std::string& path,
                               const ProgressCallback& progress) {
  Job job(profile, options, progress);
  const Choices choices = job.choose();
  if (options.share_steps_iou > 0) {  // which steps share is known when all masks are
    CompiledPlan compiled = job.compiler.in_memory(choices);
    const Plan plan(std::move(compiled.parts));
    PlanWriter writer(plan.info(), path);
    for (int entry = 0; entry < plan.num_entries(); ++entry) {
      for (int layer = 0; layer < plan.num_layers(); ++layer) {
        job.progress.tell();
        writer.add_layer(*plan.layer(entry, layer));
      }
    }
    writer.finish();
    return job.completed(std::move(compiled.summary), choices);
  }
  PlanWriter writer(job.compiler.frame(choices), path);
  CompileSummary summary = job.compiler.emit(choices, [&](std::vector<HeadPlan>& heads) { writer.add_layer(heads); });
  writer.finish();
  return job.completed(std::move(summary), choices);
}

}  // namespace calibatt
