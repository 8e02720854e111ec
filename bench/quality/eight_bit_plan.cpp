// Which steps calibration puts in 8 bits where these gain other than on this device, so that what a small model bears
// can be seen though it gains nothing itself. One line of JSON.
//
//   calibatt_eight_bit_plan_bench -m models/tiny-wan --prompts FILE --profile FOLDER --speedup 3 --as-tokens 75600
//   --attention-share .69 -o PLAN
#include <CLI/CLI.hpp>
#include <iostream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "calibatt/prompts.h"
#include "pipeline/calibrate.h"

int main(int argc, char** argv) {
  using namespace calibatt;
  LoadOptions load;
  CalibrateOptions options;
  EightBitGains gains;
  std::string prompts, plan;
  double attention = 1;
  int tokens = 0;
  load.weights = WeightsPrecision::kFP8;
  load.precision = Precision::kBF16;
  load.warn = [](const std::string& message) { std::cerr << message << "\n"; };
  CLI::App app{"Which steps calibration puts in 8 bits, by what these gain"};
  app.add_option("-m,--model", load.model_dir)->required();
  app.add_option("--prompts", prompts)->required();
  app.add_option("--profile", options.profile_dir)->required();
  app.add_option("-o,--output", plan)->required();
  app.add_option("--speedup", options.speedup)->required();
  app.add_option("--density", options.density);
  app.add_option("--attention-share", options.attention_share);
  app.add_option("--layers-gain", gains.layers)->capture_default_str();
  app.add_option("--attention-gain", attention, "At every density; at most 1: attention is not measured");
  app.add_option("--as-tokens", tokens, "In place of both: as on a Hopper GPU in a large model of so many tokens");
  app.add_option("--measure", options.measure)->capture_default_str();
  app.add_option("--steps", options.run.steps);
  app.add_option("--backend", load.backend)->capture_default_str();
  app.add_option("-t,--threads", load.threads)->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  gains.attention = {{.tokens = 1, .density = 1, .gain = attention}};
  if (tokens > 0) {
    const EightBitGains hopper = eight_bit_gains("cuda", "WanTransformer3DModel", DType::kE4M3);
    gains = {hopper.layers, {}};
    for (const double density : {0.2, 0.375, 1.0}) {
      gains.attention.push_back({1, density, hopper.of_attention(tokens, density)});
    }
  }
  if (gains.parts(1).attention) options.run.attention_dtype = AttentionDtype::kFP8;
  try {
    options.prompts = read_prompts(prompts);
    RunnerGroup runners(load);
    const CalibrationSummary summary = calibrate(runners, options, plan, {}, &gains);
    std::cout << nlohmann::json{{"speedup", *options.speedup},
                                {"layers_gain", gains.layers},
                                {"attention_gain", gains.of_attention(1, 1)},
                                {"density", summary.density},
                                {"step_reuse", summary.step_reuse},
                                {"eight_bits", summary.eight_bits},
                                {"predicted_speedup", summary.predicted_speedup},
                                {"psnr_db", summary.psnr_db.value_or(0)},
                                {"psnr_measured", summary.psnr_measured.value_or(0)},
                                {"growth_seconds", summary.growth_seconds},
                                {"calibration_seconds", summary.calibration_seconds}}
                     .dump()
              << std::endl;
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
