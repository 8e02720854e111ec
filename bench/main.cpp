// Times the CPU attention kernels against their targets. All cases run once per round, in random order, and a figure is
// the median over rounds of a ratio of times of one round, so that a machine that slows down or is shared skews no
// figure.
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>

#include "arithmetic_peak.h"
#include "backend/cpu/attention/attention.h"
#include "base/thread_pool.h"
#include "cases.h"
#include "clock.h"
#include "torch_process.h"
#include "workload.h"

namespace calibatt::bench {
namespace {

constexpr const char* kFmaPeak = "fma_peak";  // measured like a case; its "times" are operations per second
constexpr const char* kBf16Peak = "bf16_peak";
constexpr double kPeakMemoryTargetMb = 64;

struct Options {
  int rounds = 15;
  int threads = 0;
  Clock clock = Clock::kWall;
  std::string out = "out/bench.json", raw, python, script = "bench/torch_sdpa.py";
};

using Samples = std::map<std::string, std::vector<double>>;

struct Result {
  std::string name, unit;
  double value = 0, low = 0, high = 0;  ///< median and quartiles over rounds
  double target = 0;                    ///< 0: none
  bool lower_is_better = false;

  bool ok() const { return target == 0 || (lower_is_better ? value <= target : value >= target); }
};

double quantile(std::vector<double> values, double q) {
  std::ranges::sort(values);
  const double position = q * static_cast<double>(values.size() - 1);
  const auto below = static_cast<size_t>(position);
  const size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (position - static_cast<double>(below)) * (values[above] - values[below]);
}

double seconds_of(Clock clock, const std::function<void()>& body) {
  const double start = now(clock);
  body();
  return now(clock) - start;
}

double max_resident_mb() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024.0;
}

/// What a 16,384-token, 4-head call needs beyond its inputs and outputs: growth of the process's peak. Comes first,
/// when the peak is still what the inputs take.
Result measure_memory(DType dtype) {
  const Workload workload({.name = "memory", .dtype = dtype, .num_tokens = 16384});
  const double before = max_resident_mb();
  workload.run();
  Result result{"peak memory of 16,384 tokens, 4 heads x 64, " + std::string(dtype_name(dtype)), "MB"};
  result.value = result.low = result.high = max_resident_mb() - before;
  result.target = kPeakMemoryTargetMb;
  result.lower_is_better = true;
  return result;
}

Samples take_samples(const std::vector<std::unique_ptr<Workload>>& workloads, TorchProcess* torch,
                     const Options& options) {
  const Clock clock = options.clock;
  std::vector<std::pair<std::string, std::function<double()>>> runs = {
      {kFmaPeak, [clock] { return fma_peak(clock); }}, {kBf16Peak, [clock] { return bf16_peak(clock); }}};
  for (const auto& workload : workloads) {
    // A sparse call is repeated until it takes about as long as the dense one: an interruption then weighs the same in
    // both.
    const int repeats = std::max(1, static_cast<int>(std::lround(1.0 / workload->density())));
    runs.emplace_back(workload->bench_case().name, [&workload, clock, repeats] {
      return seconds_of(clock,
                        [&] {
                          for (int i = 0; i < repeats; ++i) workload->run();
                        }) /
             repeats;
    });
  }
  if (torch) {
    for (const char* name : {kTorchF32, kTorchBf16})
      runs.emplace_back(name, [torch, name, clock] { return torch->run(name, clock); });
  }
  Samples samples;
  std::mt19937 random(1);
  for (int round = 0; round < options.rounds; ++round) {
    std::ranges::shuffle(runs, random);
    for (const auto& [name, run] : runs) samples[name].push_back(run());
    std::fprintf(stderr, "\rround %d of %d", round + 1, options.rounds);
  }
  std::fprintf(stderr, "\n");
  return samples;
}

double figure_value(const Figure& figure, const Samples& samples, const Workload& of, size_t round) {
  const double seconds = samples.at(figure.of)[round];
  const auto other = [&] { return samples.at(figure.over)[round]; };
  switch (figure.kind) {
    case Figure::Kind::kShareOfFmaPeak:
      return of.flops() / seconds / samples.at(kFmaPeak)[round];
    case Figure::Kind::kShareOfBf16Peak:
      return of.flops() / seconds / samples.at(kBf16Peak)[round];
    case Figure::Kind::kSpeedup:
      return other() / seconds;
    case Figure::Kind::kOverhead:
      return seconds / other();
    case Figure::Kind::kEfficiency:
      return other() * of.density() / seconds;
  }
  return NAN;
}

std::vector<Result> make_results(const std::vector<std::unique_ptr<Workload>>& workloads, const Samples& samples) {
  std::vector<Result> results;
  const bool has_bf16 = samples.at(kBf16Peak)[0] > 0;
  for (const Figure& figure : figures()) {
    if (!figure.over.empty() && !samples.contains(figure.over)) continue;  // no torch in this run
    if (figure.kind == Figure::Kind::kShareOfBf16Peak && !has_bf16) continue;
    const auto of = std::ranges::find(workloads, figure.of, [](const auto& w) { return w->bench_case().name; });
    std::vector<double> values;
    for (size_t round = 0; round < samples.at(kFmaPeak).size(); ++round) {
      values.push_back(figure_value(figure, samples, **of, round));
    }
    Result result{figure.name, "ratio", quantile(values, 0.5), quantile(values, 0.25), quantile(values, 0.75)};
    result.lower_is_better = figure.kind == Figure::Kind::kOverhead;
    // A processor without bfloat16 instructions takes the float kernel: there is nothing to be faster by.
    result.target = figure.name == "bf16 over f32" && !has_bf16 ? 0 : figure.target;
    results.push_back(result);
  }
  return results;
}

void print_times(const std::vector<std::unique_ptr<Workload>>& workloads, const Samples& samples) {
  std::printf("%-36s %-12s %10s %22s %10s\n", "case", "kernel", "median ms", "quartiles", "GFLOP/s");
  for (const auto& workload : workloads) {
    const auto& times = samples.at(workload->bench_case().name);
    std::printf("%-36s %-12s %10.2f %10.2f …%10.2f %10.1f\n", workload->bench_case().name.c_str(),
                std::string(cpu::choose_attention_kernel(workload->call()).name).c_str(), 1e3 * quantile(times, 0.5),
                1e3 * quantile(times, 0.25), 1e3 * quantile(times, 0.75),
                1e-9 * workload->flops() / quantile(times, 0.5));
  }
  for (const char* name : {kTorchF32, kTorchBf16}) {
    if (!samples.contains(name)) continue;
    const auto& times = samples.at(name);
    std::printf("%-36s %-12s %10.2f %10.2f …%10.2f\n", name, "", 1e3 * quantile(times, 0.5),
                1e3 * quantile(times, 0.25), 1e3 * quantile(times, 0.75));
  }
  std::printf("peak of float FMA %.1f GFLOP/s, of bf16 dot products %.1f GFLOP/s, %d threads\n\n",
              1e-9 * quantile(samples.at(kFmaPeak), 0.5), 1e-9 * quantile(samples.at(kBf16Peak), 0.5), num_threads());
}

void print_results(const std::vector<Result>& results) {
  std::printf("%-54s %9s %19s %9s\n", "figure", "median", "quartiles", "target");
  for (const Result& result : results) {
    std::printf("%-54s %9.3f %9.3f …%9.3f ", result.name.c_str(), result.value, result.low, result.high);
    if (result.target == 0) {
      std::printf("%9s\n", "–");
    } else {
      std::printf("%s %6.2f  %s\n", result.lower_is_better ? "≤" : "≥", result.target, result.ok() ? "ok" : "MISSED");
    }
  }
}

void write_json(const std::string& path, const nlohmann::json& json) {
  const std::filesystem::path parent = std::filesystem::path(path).parent_path();
  if (!parent.empty()) std::filesystem::create_directories(parent);
  std::ofstream file(path);
  file << json.dump(1) << '\n';
  if (!file.flush()) throw std::runtime_error("cannot write " + path);
}

nlohmann::json to_json(const std::vector<Result>& results) {
  nlohmann::json list = nlohmann::json::array();
  for (const Result& result : results) {
    nlohmann::json entry = {{"name", result.name}, {"value", result.value}, {"unit", result.unit}, {"ok", result.ok()}};
    entry["target"] = result.target == 0 ? nlohmann::json() : nlohmann::json(result.target);
    entry["better"] = result.lower_is_better ? "lower" : "higher";
    entry["quartiles"] = {result.low, result.high};
    list.push_back(entry);
  }
  return list;
}

int run(const Options& options) {
  set_num_threads(options.threads);
  std::vector<Result> memory = {measure_memory(DType::kBF16), measure_memory(DType::kF32)};
  std::vector<std::unique_ptr<Workload>> workloads;
  for (const Case& bench_case : cases()) {
    workloads.push_back(std::make_unique<Workload>(bench_case));
    workloads.back()->check();
  }
  std::unique_ptr<TorchProcess> torch;
  if (!options.python.empty()) {
    torch = std::make_unique<TorchProcess>(options.python, options.script, num_threads());
    std::printf("torch %s\n", torch->version().c_str());
    for (const auto& [ours, theirs, limit] :
         {std::tuple{"f32_dense", kTorchF32, 1e-5}, std::tuple{"bf16_dense", kTorchBf16, 1e-2}}) {
      const auto workload = std::ranges::find(workloads, ours, [](const auto& w) { return w->bench_case().name; });
      const double difference = torch->check(**workload, theirs);
      if (!(difference < limit)) throw std::runtime_error("torch and we differ by " + std::to_string(difference));
    }
  }
  const Samples samples = take_samples(workloads, torch.get(), options);
  std::vector<Result> results = make_results(workloads, samples);
  results.insert(results.end(), memory.begin(), memory.end());
  print_times(workloads, samples);
  print_results(results);
  write_json(options.out, to_json(results));
  if (!options.raw.empty()) {
    write_json(options.raw, {{"threads", num_threads()},
                             {"clock", options.clock == Clock::kCpu ? "cpu" : "wall"},
                             {"rounds", options.rounds},
                             {"samples", samples},
                             {"torch", torch ? torch->version() : ""},
                             {"figures", to_json(results)}});
  }
  return std::ranges::all_of(results, &Result::ok) ? 0 : 1;
}

}  // namespace
}  // namespace calibatt::bench

int main(int argc, char** argv) {
  calibatt::bench::Options options;
  CLI::App app("Attention kernels against their targets; exit code 1 when one is missed");
  app.add_option("--rounds", options.rounds, "Rounds; a figure is the median over them")->check(CLI::Range(1, 1000));
  app.add_option("--threads", options.threads, "Threads (0: all processors)");
  using calibatt::bench::Clock;
  const std::map<std::string, Clock> clocks = {{"wall", Clock::kWall}, {"cpu", Clock::kCpu}};
  app.add_option("--clock", options.clock,
                 "wall, or cpu: processor time over threads, for a machine that others use too")
      ->transform(CLI::CheckedTransformer(clocks));
  app.add_option("--out", options.out, "Where the figures go, as JSON");
  app.add_option("--raw", options.raw, "Where every sample goes, as JSON");
  app.add_option("--torch", options.python, "A Python with torch, to compare with its CPU attention");
  app.add_option("--torch-script", options.script, "torch_sdpa.py");
  CLI11_PARSE(app, argc, argv);
  try {
    return calibatt::bench::run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "calibatt_bench: %s\n", error.what());
    return 2;
  }
}
