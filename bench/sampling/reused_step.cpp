// What a step without a forward costs beside the solver's own step, and what calibration adds to a dense run to know of
// reuse, on latents of a video's size: host arithmetic.
//
//   calibatt_reused_step_bench [--frames 21 --height 90 --width 160 --channels 16] [--run-steps 50] > FILE.json
#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/random.h"
#include "base/thread_pool.h"
#include "bench/clock.h"
#include "calibrate/record/step_recorder.h"
#include "sampling/scheduler.h"
#include "sampling/step_predictor.h"

namespace calibatt::bench {
namespace {

/// Milliseconds, medians: on the wall, and of each thread's processor, which leaves out what others on the machine
/// take.
template <class Work>
nlohmann::json measured(int repetitions, const Work& work) {
  std::vector<double> wall, processor;
  for (int i = 0; i < repetitions; ++i) {
    const double wall_begin = now(Clock::kWall), processor_begin = now(Clock::kCpu);
    work();
    wall.push_back(1e3 * (now(Clock::kWall) - wall_begin));
    processor.push_back(1e3 * (now(Clock::kCpu) - processor_begin));
  }
  const auto median = [](std::vector<double>& values) {
    std::ranges::sort(values);
    return values[values.size() / 2];
  };
  return {{"wall_ms", median(wall)}, {"processor_ms", median(processor)}};
}

nlohmann::json run(const std::vector<int64_t>& shape, int repetitions, int64_t run_steps) {
  TorchGenerator generator(1);
  const std::vector<StepSettings> steps{{.sigma = 1}, {.sigma = 0.9}, {.sigma = 0.8}};
  nlohmann::json result{{"threads", num_threads()}, {"shape", shape}};
  const Tensor first = generator.randn(shape), second = generator.randn(shape), latents = generator.randn(shape);
  for (const StepReuse reuse : {StepReuse::kHold, StepReuse::kResidual, StepReuse::kLinear}) {
    StepPredictor predictor(steps, {StepReuse::kNone, StepReuse::kNone, reuse});
    predictor.computed(0, latents, first);
    predictor.computed(1, first, second);
    result[std::string(step_reuse_name(reuse))] =
        measured(repetitions, [&] { const Tensor prediction = predictor.predicted(2, latents); });
  }
  if (run_steps > 0) {
    std::vector<Tensor> seen;
    for (int64_t step = 0; step <= run_steps; ++step) seen.push_back(generator.randn(shape));
    std::vector<const Tensor*> vectors;
    for (const Tensor& each : seen) vectors.push_back(&each);
    result["products_of_a_run"] = measured(3, [&] { const Tensor products = mean_products(vectors); });
    result["run_steps"] = run_steps;
  }
  const std::unique_ptr<Scheduler> scheduler = Scheduler::make({}, SchedulerConfig::Kind::kUniPC);
  scheduler->set_timesteps(repetitions);
  Tensor x = latents;
  result["solver_step"] = measured(repetitions, [&] { x = scheduler->step(first, x); });
  return result;
}

}  // namespace
}  // namespace calibatt::bench

int main(int argc, char** argv) {
  int64_t channels = 16, frames = 21, height = 90, width = 160, run_steps = 0;
  int repetitions = 50;
  CLI::App app{"Time of a reused step on the host"};
  app.add_option("--channels", channels)->capture_default_str();
  app.add_option("--frames", frames)->capture_default_str();
  app.add_option("--height", height)->capture_default_str();
  app.add_option("--width", width)->capture_default_str();
  app.add_option("--repetitions", repetitions)->capture_default_str();
  app.add_option("--run-steps", run_steps,
                 "Also what a calibration run of so many steps computes at its end; holds its "
                 "predictions in memory")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  std::cout << calibatt::bench::run({channels, frames, height, width}, repetitions, run_steps).dump(2) << "\n";
}
