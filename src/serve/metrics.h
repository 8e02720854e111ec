#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include "serve/jobs.h"

namespace calibatt::serve {

/// The service's figures, as Prometheus reads them (text format 0.0.4). Any thread may call any function.
class Metrics {
 public:
  explicit Metrics(int64_t started_at) : started_at_(started_at) {}

  void count_reply(int status);
  std::string text(const JobCounts& jobs) const;

 private:
  const int64_t started_at_;  ///< seconds since 1970
  mutable std::mutex mutex_;
  std::map<int, uint64_t> replies_;
};

}  // namespace calibatt::serve
