#include "serve/metrics.h"

#include <unistd.h>

#include <fstream>
#include <sstream>

namespace calibatt::serve {
namespace {

void head(std::ostringstream& text, const char* name, const char* type, const char* help) {
  text << "# HELP " << name << ' ' << help << "\n# TYPE " << name << ' ' << type << '\n';
}

template <class Value>
void single(std::ostringstream& text, const char* name, const char* type, const char* help, Value value) {
  head(text, name, type, help);
  text << name << ' ' << value << '\n';
}

uint64_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  uint64_t total = 0, resident = 0;
  file >> total >> resident;
  return resident * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

}  // namespace

void Metrics::count_reply(int status) {
  const std::lock_guard lock(mutex_);
  ++replies_[status];
}

std::string Metrics::text(const JobCounts& jobs) const {
  std::ostringstream text;
  head(text, "calibatt_build_info", "gauge", "Always 1; the version is its label.");
  text << "calibatt_build_info{version=\"" CALIBATT_VERSION "\"} 1\n";
  head(text, "calibatt_jobs", "gauge", "Videos that are there, by state; kept: completed or failed.");
  text << "calibatt_jobs{state=\"queued\"} " << jobs.queued << "\ncalibatt_jobs{state=\"held\"} " << jobs.held
       << "\ncalibatt_jobs{state=\"in_progress\"} " << jobs.in_progress << "\ncalibatt_jobs{state=\"kept\"} "
       << jobs.kept << '\n';
  single(text, "calibatt_jobs_created_total", "counter", "Videos that were asked for since the start.", jobs.created);
  head(text, "calibatt_jobs_ended_total", "counter", "How videos ended since the start.");
  text << "calibatt_jobs_ended_total{outcome=\"completed\"} " << jobs.completed
       << "\ncalibatt_jobs_ended_total{outcome=\"failed\"} " << jobs.failed
       << "\ncalibatt_jobs_ended_total{outcome=\"deleted\"} " << jobs.removed
       << "\ncalibatt_jobs_ended_total{outcome=\"expired\"} " << jobs.expired << '\n';
  single(text, "calibatt_inference_seconds_total", "counter", "Time that completed videos took.",
         jobs.inference_seconds);
  head(text, "calibatt_http_replies_total", "counter", "HTTP replies by status.");
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [status, count] : replies_) {
      text << "calibatt_http_replies_total{status=\"" << status << "\"} " << count << '\n';
    }
  }
  single(text, "process_resident_memory_bytes", "gauge", "Resident memory.", resident_bytes());
  single(text, "process_start_time_seconds", "gauge", "Start of the process since 1970.", started_at_);
  return text.str();
}

}  // namespace calibatt::serve
