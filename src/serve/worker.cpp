#include "serve/worker.h"

#include <array>
#include <cstdio>
#include <memory>
#include <new>
#include <optional>

#include "calibatt/error.h"
#include "calibatt/output.h"
#include "calibatt/video.h"

namespace calibatt::serve {
namespace {

/// What ends a run from outside. Neither is an error.
struct JobRemoved {};
struct ServiceStopping {};

const char* code_of(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kUsage:
      return "invalid_request";
    case ErrorKind::kNotFound:
      return "not_found";
    case ErrorKind::kUnreadable:
    case ErrorKind::kFormat:
      return "unreadable_file";
    case ErrorKind::kMismatch:
      return "plan_mismatch";
    case ErrorKind::kIo:
      return "not_written";
    case ErrorKind::kNumeric:
      return "not_a_number";
    case ErrorKind::kDevice:
      return "device_error";
  }
  return "server_error";
}

JobError job_error(const std::string& code, const std::string& message) {
  std::string ignored;
  return {code, in_fields(message, ignored)};
}

std::string seconds_text(double seconds) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.1f s", seconds);
  return text.data();
}

/// One line for the log.
std::string run_job(Jobs& jobs, VideoMaker& maker, const Job& job) {
  const RunProgress progress = [&](const std::string& stage, double done) {
    if (jobs.stopping()) throw ServiceStopping{};
    if (!jobs.update(job.id, stage, done)) throw JobRemoved{};
  };
  std::optional<JobError> error;
  try {
    progress("load", 0);
    const RunFigures figures = maker.make(job, progress);
    jobs.complete(job.id, figures);
    const std::optional<Job> now = jobs.find(job.id);
    if (now && now->state == JobState::kCompleted) {
      return job.id + ": made in " + seconds_text(figures.inference_seconds);
    }
    if (now) return job.id + ": failed: " + now->error.message;
  } catch (const JobRemoved&) {
  } catch (const ServiceStopping&) {
    jobs.put_back(job.id);
    return job.id + ": interrupted; it is made when the service is started again";
  } catch (const Error& failed) {
    error = job_error(code_of(failed.kind()), failed.what());
  } catch (const std::bad_alloc&) {
    error = job_error("out_of_memory", "out of memory; ask for a smaller size or fewer frames");
  } catch (const std::exception& failed) {
    error = job_error("server_error", failed.what());
  }
  if (error && jobs.find(job.id)) {
    jobs.fail(job.id, *error);
    return job.id + ": failed: " + error->message;
  }
  jobs.purge(job.id);  // whatever the run met after the job was removed
  return job.id + ": removed while it was made";
}

}  // namespace

PipelineMaker::PipelineMaker(const Catalog& catalog, const JobStore& store) : catalog_(catalog), store_(store) {}
PipelineMaker::~PipelineMaker() = default;

void PipelineMaker::load(const std::string& model, const RunProgress& progress) {
  if (pipeline_ && loaded_ == model) return;
  LoadOptions options = catalog_.load_options(model);
  pipeline_.reset();  // two of them might not fit
  options.progress = [&progress](const Progress&) { progress("load", 0); };
  pipeline_ = Pipeline::load(options);
  loaded_ = model;
}

RunFigures PipelineMaker::make(const Job& job, const RunProgress& progress) {
  GenerateOptions options = catalog_.options_of(job.request);
  if (job.request.has_picture) {
    options.image = std::make_shared<const Picture>(read_picture(store_.picture_path(job.id)));
  }
  load(job.request.model, progress);
  std::optional<Pipeline::Result> result;
  try {
    result = pipeline_->generate(options, [&progress](const Progress& state) { progress(state.stage, state.overall); });
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kDevice) pipeline_.reset();  // the next job begins with a device of its own
    throw;
  } catch (const std::bad_alloc&) {
    pipeline_.reset();
    throw;
  }
  const RunReport& report = result->report;
  write_video(result->video, *report.options.fps, store_.video_path(job.id));
  write_text_file(store_.report_path(job.id), to_json(report));
  RunFigures figures{report.seconds.total(), report.density, {}};
  if (report.plan) figures.warnings = report.plan->warnings;
  if (report.dense_fallback_calls > 0) figures.warnings.push_back("ran dense: " + report.fallback_reason);
  return figures;
}

void run_jobs(Jobs& jobs, VideoMaker& maker, const std::function<void(const std::string&)>& log) {
  while (const std::optional<Job> job = jobs.take()) log(run_job(jobs, maker, *job));
}

}  // namespace calibatt::serve
