#pragma once

#include <functional>
#include <memory>
#include <string>

#include "calibatt/pipeline.h"
#include "serve/catalog.h"
#include "serve/jobs.h"

namespace calibatt::serve {

/// Hears how far a run is; what it throws ends the run.
using RunProgress = std::function<void(const std::string& stage, double done)>;

/// Makes the videos. One thread uses it.
class VideoMaker {
 public:
  virtual ~VideoMaker() = default;
  /// Makes the video and report of a job, under the names that the store has for them. Throws Error, and what
  /// `progress` throws.
  virtual RunFigures make(const Job& job, const RunProgress& progress) = 0;
};

/// On this library's pipeline. It holds one model at a time, the last that was asked for.
class PipelineMaker : public VideoMaker {
 public:
  PipelineMaker(const Catalog& catalog, const JobStore& store);
  ~PipelineMaker() override;
  RunFigures make(const Job& job, const RunProgress& progress) override;
  /// Loads a model, so that its first job need not wait for it.
  void load(const std::string& model, const RunProgress& progress);

 private:
  const Catalog& catalog_;
  const JobStore& store_;
  std::string loaded_;  ///< the model's name
  std::unique_ptr<Pipeline> pipeline_;
};

/// Takes one job after another and makes it, until the service stops. `log` hears one line about each.
void run_jobs(Jobs& jobs, VideoMaker& maker, const std::function<void(const std::string&)>& log);

}  // namespace calibatt::serve
