#pragma once

#include <functional>
#include <string>
#include <vector>

#include "calibatt/pipeline.h"
#include "serve/catalog.h"
#include "serve/jobs.h"

namespace calibatt::serve {

/// A service: videos by HTTP, in the form of OpenAI's /v1/videos (docs/serving.md).
struct ServeOptions {
  std::vector<ServedModel> models;  ///< the first is the one that requests mean where they name none
  std::vector<ServedPlan> plans;    ///< with one model, the first is its default
  GenerateOptions defaults;         ///< what requests do not say
  VideoLimits video_limits;
  JobLimits job_limits;
  std::string folder;  ///< of jobs and videos
  std::string host = "127.0.0.1";
  int port = 8000;      ///< 0: any that is free
  std::string api_key;  ///< empty: none is asked for
  std::function<void(const std::string& line)> log = [](const std::string&) {};
};

/// Serves until `should_stop`, which is asked several times a second. `ready` hears the address once requests are
/// answered. Returns how many jobs wait for the next start. Throws Error for what keeps it from starting.
size_t serve(const ServeOptions& options, const std::function<bool()>& should_stop,
             const std::function<void(const std::string& url)>& ready);

}  // namespace calibatt::serve
