// Steps of a model on some devices. Each line of the input asks for a video, "dense|planned GUIDANCE STEPS", and is
// answered with a line of JSON: seconds of each step by the wall clock, of self-attention in all, and what the report
// says of the ranks. It stays, so that bench/ranks/alternate.py takes several builds and devices in turns on weights
// that are loaded.
//   calibatt_ranks_bench MODEL --plan PLAN --device 0,1 [--backend cuda] [--width 1280 --height 720 --video-frames 81]
//     [--shard-weights on | --offload] [--weights-dtype fp8|int8]
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "calibatt/error.h"
#include "calibatt/pipeline.h"

namespace calibatt {
namespace {

using nlohmann::json;

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void print(const json& line) {
  std::printf("%s\n", line.dump().c_str());
  std::fflush(stdout);
}

/// A step ends where the next one, or decoding, is first told of.
class StepClock {
 public:
  void hear(const Progress& state) {
    if (state.stage != "denoise" || state.done <= last_) return;
    last_ = state.done;
    times_.push_back(now_seconds());
  }
  std::vector<double> seconds() const {
    std::vector<double> result;
    for (size_t i = 1; i < times_.size(); ++i) result.push_back(times_[i] - times_[i - 1]);
    return result;
  }

 private:
  int last_ = -1;
  std::vector<double> times_;
};

json timed(Pipeline& pipeline, GenerateOptions run) {
  StepClock clock;
  const RunReport report = pipeline.generate(run, [&](const Progress& state) { clock.hear(state); }).report;
  json line{{"steps", clock.seconds()},
            {"attention", report.seconds.attention},
            {"other", report.seconds.transformer_other},
            {"text", report.seconds.text},
            {"vae", report.seconds.vae},
            {"density", report.density},
            {"groups", report.guidance_groups},
            {"peak", report.peak_device_bytes},
            {"weights", report.weight_placement},
            {"kernel", report.attention_kernel}};
  if (report.deal_imbalance) line["imbalance"] = *report.deal_imbalance;
  return line;
}

int run_bench(int argc, char** argv) {
  CLI::App app{"Steps of a model on some devices, asked for line by line"};
  LoadOptions load;
  std::string plan;
  int width = 1280, height = 720, video_frames = 81;
  app.add_option("model", load.model_dir)->required();
  app.add_option("--plan", plan);
  app.add_option("--backend", load.backend);
  app.add_option("--device", load.devices)->delimiter(',');
  app.add_option("--shard-weights", load.shard_weights)
      ->transform(CLI::Transformer(std::map<std::string, ShardWeights>{
          {"auto", ShardWeights::kAuto}, {"on", ShardWeights::kOn}, {"off", ShardWeights::kOff}}));
  app.add_flag("--offload", load.offload);
  app.add_option("--weights-dtype", load.weights)
      ->transform(CLI::Transformer(std::map<std::string, WeightsPrecision>{
          {"bf16", WeightsPrecision::kBF16}, {"fp8", WeightsPrecision::kFP8}, {"int8", WeightsPrecision::kINT8}}));
  app.add_option("--width", width);
  app.add_option("--height", height);
  app.add_option("--video-frames", video_frames);
  CLI11_PARSE(app, argc, argv);
  const auto pipeline = Pipeline::load(load);
  print({{"devices", load.devices}});
  for (std::string request; std::getline(std::cin, request);) {
    std::istringstream words(request);
    std::string kind;
    double guidance = 0;
    int steps = 0;
    if (!(words >> kind >> guidance >> steps) || (kind != "dense" && kind != "planned")) {
      throw Error(ErrorKind::kUsage, "request '" + request + "': dense|planned GUIDANCE STEPS is expected");
    }
    GenerateOptions run;
    run.prompt = "a";
    run.steps = steps;
    run.cfg_scale = guidance;
    run.width = width;
    run.height = height;
    run.video_frames = video_frames;
    run.on_mismatch = OnMismatch::kWarn;
    if (kind == "planned") run.plan_path = plan;
    print(timed(*pipeline, run));
  }
  return 0;
}

}  // namespace
}  // namespace calibatt

int main(int argc, char** argv) {
  try {
    return calibatt::run_bench(argc, argv);
  } catch (const std::exception& error) {
    std::printf("%s\n", nlohmann::json{{"error", error.what()}}.dump().c_str());
    return 1;
  }
}
