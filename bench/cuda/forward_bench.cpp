// Forwards of Wan 2.1 and Mochi 1 at the public models' sizes, dense and planned: with random weights, written to a
// temporary folder (time depends on shapes and masks alone), or with those of --weights. Prints JSON; with --serve it
// answers bench/cuda/forward.py instead.
//   calibatt_forward_bench [--backend cuda] [--model 14B-720p] [--dtype bf16] [--layers 8] [--runs 5]
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "backend/cpu/make_backend.h"
#include "backend/cuda/cuda_backend.h"
#include "base/error.h"
#include "forward_models.h"
#include "forwards.h"

namespace calibatt {
namespace {

using bench::ForwardModel;
using bench::Forwards;
using nlohmann::json;
namespace fs = std::filesystem;

const std::map<std::string, DType> kDTypes = {{"bf16", DType::kBF16}, {"fp16", DType::kF16}, {"fp32", DType::kF32}};

/// enqueue_seconds: of the host, from the start until it has asked for the last layer; what is left of a forward it
/// waits. layer_enqueue_seconds: the median layer's part. Once the driver's queue is full (some thousand kernels) the
/// host waits for the GPU in both, so a few layers (--layers) tell more of the host than the whole model.
json measure(Forwards& forwards, int runs) {
  json dense = json::array(), planned = json::array();
  for (int run = -1; run < runs; ++run) {  // one of each to warm up, and to choose algorithms
    const json a = forwards.run(false), b = forwards.run(true);
    if (run < 0) continue;
    dense.push_back(a);
    planned.push_back(b);
  }
  const auto median_of = [](const json& all, const char* key) {
    std::vector<double> values;
    for (const json& one : all) values.push_back(one.at(key).get<double>());
    return bench::median(std::move(values));
  };
  const double dense_seconds = median_of(dense, "seconds"), planned_seconds = median_of(planned, "seconds");
  return {{"layers", forwards.num_layers()},
          {"load_seconds", forwards.load_seconds()},
          {"dense_seconds", dense_seconds},
          {"dense_attention_seconds", median_of(dense, "attention_seconds")},
          {"dense_enqueue_seconds", median_of(dense, "enqueue_seconds")},
          {"dense_layer_enqueue_seconds", median_of(dense, "layer_enqueue_seconds")},
          {"planned_seconds", planned_seconds},
          {"planned_attention_seconds", median_of(planned, "attention_seconds")},
          {"planned_enqueue_seconds", median_of(planned, "enqueue_seconds")},
          {"planned_layer_enqueue_seconds", median_of(planned, "layer_enqueue_seconds")},
          {"planned_speedup", dense_seconds / planned_seconds},
          {"density", planned.back().at("density")},
          {"peak_device_bytes", planned.back().at("peak_device_bytes")},
          {"schedules", forwards.schedules()},
          {"dense", dense},
          {"planned", planned}};
}

void serve(Forwards& forwards) {
  std::string line;
  while (std::getline(std::cin, line)) {
    json answer;
    try {
      std::istringstream words(line);
      std::string command, first, second;
      words >> command >> first >> second;
      if (command == "run" && (first == "dense" || first == "planned")) {
        answer = forwards.run(first == "planned");
      } else if (command == "predict" && !second.empty()) {
        forwards.predict(first, second);
        answer = {{"ok", true}};
      } else {
        answer = {{"error", "commands: run dense | run planned | predict IN OUT"}};
      }
    } catch (const std::exception& error) {
      answer = {{"error", error.what()}};
    }
    std::cout << answer.dump() << std::endl;
  }
}

/// What may be asked for in the place of a model's own; 0: the model's.
struct Sizes {
  int layers = 0, frames = 0, height = 0, width = 0;
  double density = 0;
};

ForwardModel resized(ForwardModel model, const Sizes& sizes) {
  if (sizes.layers > 0) model.layers = sizes.layers;
  if (sizes.frames > 0) model.frames = sizes.frames;
  if (sizes.height > 0) model.height = sizes.height;
  if (sizes.width > 0) model.width = sizes.width;
  if (sizes.density > 0) model.density = sizes.density;
  return model;
}

DType dtype_for(const std::string& flag, const Backend& backend) {
  const DType dtype = kDTypes.at(flag);
  if (dtype == DType::kF16 && !backend.has_fp16()) {
    throw Error(ErrorKind::kUsage,
                "--dtype fp16: " + std::string(backend.name()) + " has no half precision; use --backend cuda");
  }
  return dtype;
}

struct Flags {
  std::string backend = "cuda", model = "14B-720p", dtype = "bf16", weights_dtype = "auto", attention_dtype = "auto";
  bench::ForwardsOptions options;
  int runs = 5;
  Sizes sizes;
  bool serving = false;
};

void add_flags(CLI::App& app, Flags& flags) {
  app.add_option("--backend", flags.backend);
  app.add_option("--model", flags.model,
                 "One of " + bench::forward_model_names() + ": sizes, and weights where none are given");
  app.add_option("--dtype", flags.dtype, "Arithmetic: bf16, fp16 (on a GPU) or fp32")->check(CLI::IsMember(kDTypes));
  app.add_option("--layers", flags.sizes.layers, "of the model that is made; default: all")->check(CLI::PositiveNumber);
  app.add_option("--weights", flags.options.weights, "A transformer folder, instead of making one");
  app.add_option("--frames", flags.sizes.frames, "of the latents")->check(CLI::PositiveNumber);
  app.add_option("--height", flags.sizes.height)->check(CLI::PositiveNumber);
  app.add_option("--width", flags.sizes.width)->check(CLI::PositiveNumber);
  app.add_option("--density", flags.sizes.density, "of the plan")->check(CLI::Range(0.01, 1.0));
  app.add_option("--keep-plan", flags.options.plan_path, "Leave the plan that is timed in this file");
  app.add_option("--runs", flags.runs, "0: none, for the plan alone")->check(CLI::NonNegativeNumber);
  app.add_option("--weights-dtype", flags.weights_dtype,
                 "Linear layers of the blocks: as --dtype has them, fp8 (e4m3) or int8")
      ->check(CLI::IsMember({"auto", "fp8", "int8"}));
  app.add_option("--attention-dtype", flags.attention_dtype,
                 "Self-attention: as --dtype has it, or fp8 (int8 and e4m3)")
      ->check(CLI::IsMember({"auto", "fp8"}));
  app.add_flag("--offload", flags.options.offload, "Weights of the blocks stay in host memory");
  app.add_flag("--serve", flags.serving, "Commands from the standard input");
}

}  // namespace
}  // namespace calibatt

int main(int argc, char** argv) {
  using namespace calibatt;
  CLI::App app("Forwards of Wan 2.1 and Mochi 1 with random weights, dense and planned.");
  Flags flags;
  add_flags(app, flags);
  CLI11_PARSE(app, argc, argv);
  try {
    const ForwardModel model = resized(bench::find_forward_model(flags.model), flags.sizes);
    cuda::add_cuda_backend();
    const auto backend = make_backend(flags.backend);
    bench::ForwardsOptions& options = flags.options;
    options.dtype = dtype_for(flags.dtype, *backend);
    options.eight_bit_layers = flags.weights_dtype != "auto";
    if (flags.weights_dtype == "int8") options.eight_bit_type = DType::kI8;
    options.eight_bit_attention = flags.attention_dtype == "fp8";
    const std::string temporary = fs::temp_directory_path() / ("calibatt_forward_bench_" + std::to_string(getpid()));
    const bool make = options.weights.empty();
    if (make) bench::write_transformer(model, options.weights = temporary);
    options.keep_plan = !options.plan_path.empty();
    if (!options.keep_plan) options.plan_path = temporary + ".plan";
    const auto forwards = bench::make_forwards(*backend, model, options);
    if (make) fs::remove_all(temporary);
    json about = {
        {"backend", backend->name()},
        {"device", backend->device_name()},
        {"dtype", flags.dtype},
        {"attention_kernel", backend->attention_kernel(options.dtype, model.head_dim, options.eight_bit_attention)},
        {"model", model.name},
        {"offload", options.offload},
        {"weights_dtype", options.eight_bit_layers ? flags.weights_dtype : flags.dtype},
        {"load_seconds", forwards->load_seconds()}};
    if (flags.serving) {
      about["ready"] = true;
      std::cout << about.dump() << std::endl;
      serve(*forwards);
      return 0;
    }
    if (flags.runs > 0) about.update(measure(*forwards, flags.runs));
    std::cout << about.dump(2) << std::endl;
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "calibatt_forward_bench: %s\n", error.what());
    return 1;
  }
}
