#pragma once

#include <stdlib.h>

#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include "serve/catalog.h"
#include "serve/job_store.h"
#include "serve/jobs.h"

namespace calibatt::serve::test {

/// A folder that is there while the object lives.
class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "calibatt_serve_XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path = name;
  }
  ~Folder() { std::filesystem::remove_all(path); }
  std::string path;
};

inline VideoRequest example_request(const std::string& prompt = "a cat") {
  VideoRequest request;
  request.model = "tiny-wan";
  request.prompt = prompt;
  request.seed = 7;
  request.width = request.height = 64;
  request.num_frames = 9;
  request.steps = 2;
  request.fps = 8;
  request.guidance_scale = 5;
  request.flow_shift = 3;
  return request;
}

inline NewJob example_job(const std::string& prompt = "a cat") {
  return {example_request(prompt), "", {}};
}

/// The jobs of a store, at a time that the test sets.
struct Service {
  explicit Service(const std::string& folder, const JobLimits& limits = {})
      : store(folder),
        jobs(
            store, limits, [this] { return now; }, [this](const std::string& line) { warnings.push_back(line); }) {}
  int64_t now = 1'000'000;
  std::vector<std::string> warnings;
  JobStore store;
  Jobs jobs;
};

}  // namespace calibatt::serve::test
