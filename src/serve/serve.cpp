#include "serve/serve.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "calibatt/error.h"
#include "serve/api.h"
#include "serve/http_server.h"
#include "serve/job_store.h"
#include "serve/metrics.h"
#include "serve/page.h"
#include "serve/worker.h"

namespace calibatt::serve {
namespace {

int64_t seconds_now() {
  using namespace std::chrono;
  return duration_cast<seconds>(system_clock::now().time_since_epoch()).count();
}

bool is_loopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host.starts_with("127.");
}

// A header's value reaches httplib's users with %XX decoded, and without blanks at its ends.
void check_key(const std::string& key) {
  const auto fits = [](unsigned char letter) { return letter > 0x20 && letter < 0x7f && letter != '%'; };
  if (!std::ranges::all_of(key, fits)) {
    throw Error(ErrorKind::kUsage, "--api-key: may have letters, digits and punctuation, but no % and no blanks");
  }
}

std::string url_of(const std::string& host, int port) {
  const std::string name = host.find(':') == std::string::npos ? host : "[" + host + "]";
  return "http://" + name + ":" + std::to_string(port);
}

/// The thread that makes videos, from the first model's loading to the end of the service.
void work(const ServeOptions& options, const Catalog& catalog, const JobStore& store, Jobs& jobs) {
  struct Stopping {};
  PipelineMaker maker(catalog, store);
  try {
    maker.load(catalog.first_model(), [&jobs](const std::string&, double) {
      if (jobs.stopping()) throw Stopping{};
    });
    options.log(catalog.first_model() + ": loaded");
  } catch (const Stopping&) {
    return;
  } catch (const std::exception& error) {
    options.log(catalog.first_model() + ": could not be loaded, its jobs will fail: " + error.what());
  }
  run_jobs(jobs, maker, options.log);
}

/// Ends what runs beside the caller, however the caller ends.
class Running {
 public:
  Running(Jobs& jobs, HttpServer& server, std::function<void()> work)
      : jobs_(jobs), server_(server), worker_(std::move(work)) {}
  ~Running() {
    jobs_.stop();
    server_.stop();
    worker_.join();
  }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

 private:
  Jobs& jobs_;
  HttpServer& server_;
  std::thread worker_;
};

}  // namespace

size_t serve(const ServeOptions& options, const std::function<bool()>& should_stop,
             const std::function<void(const std::string& url)>& ready) {
  check_key(options.api_key);
  const Catalog catalog(options.models, options.plans, options.defaults, options.video_limits);
  JobStore store(options.folder);
  Jobs jobs(store, options.job_limits, seconds_now, options.log,
            [&catalog](const VideoRequest& request) { return catalog.why_not(request); });
  Metrics metrics(seconds_now());
  Api api(jobs, store, catalog, metrics, {options.api_key, is_loopback(options.host), std::string(kServePage)});
  HttpServer server(api, metrics, {});
  const int port = server.bind(options.host, options.port);
  if (options.api_key.empty() && !is_loopback(options.host)) {
    options.log("warning: whoever reaches " + options.host + " may use this service; --api-key KEY asks for a key");
  }
  server.start();
  {
    const Running running(jobs, server, [&] { work(options, catalog, store, jobs); });
    ready(url_of(options.host, port));
    for (int64_t last = 0; !should_stop(); std::this_thread::sleep_for(std::chrono::milliseconds(50))) {
      if (const int64_t now = seconds_now(); now != last) {
        last = now;
        jobs.expire();
      }
    }
  }
  const JobCounts counts = jobs.counts();
  return counts.queued + counts.held;
}

}  // namespace calibatt::serve
