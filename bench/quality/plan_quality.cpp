// Videos of prompts under several plans, each compared in memory with the dense one of the same prompt and seed: one
// line of JSON a video. What tools/reuse_tradeoff.py runs. No frame is encoded, unless a folder for videos is given.
//
//   calibatt_plan_quality_bench -m models/tiny-wan --prompts FILE [--every 4 --first 1] --plan NAME=FILE … --fewer
//   STEPS … [--weights-dtype fp8|int8] --eight-bits NAME=attention,4,FILE …
//
// Only --eight-bits computes anything in 8 bits: in a model with such layers all steps of the others are kept from it.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "calibatt/output.h"
#include "calibatt/pipeline.h"
#include "calibatt/prompts.h"

namespace calibatt::bench {
namespace {

/// One way to make videos.
struct Recipe {
  std::string name, plan;
  std::optional<int> steps = {};
  bool layers_in_eight_bits = false, attention_in_eight_bits = false;
  std::optional<int> kept_steps = {};
};

struct Flags {
  LoadOptions load;
  GenerateOptions run;
  std::string prompts, videos = "videos";
  std::vector<std::string> plans, judged, eight_bits;
  std::vector<int> fewer;
  int every = 1, first = 0, most = 1'000'000;
  double seconds = 1e9;
};

/// NAME and what stands behind "=".
std::pair<std::string, std::string> named(const std::string& flag, const std::string& text) {
  const size_t at = text.find('=');
  if (at == std::string::npos) throw std::runtime_error(flag + " " + text + ": expected NAME=…");
  return {text.substr(0, at), text.substr(at + 1)};
}

/// NAME=[attention,][STEPS,][FILE]
Recipe eight_bits_of(const std::string& text, bool layers) {
  auto [name, list] = named("--eight-bits", text);
  Recipe recipe{.name = name, .plan = "", .layers_in_eight_bits = layers};
  std::istringstream parts(list);
  for (std::string part; std::getline(parts, part, ',');) {
    if (part == "attention") {
      recipe.attention_in_eight_bits = true;
    } else if (!part.empty() && part.find_first_not_of("0123456789") == std::string::npos) {
      recipe.kept_steps = std::stoi(part);
    } else {
      recipe.plan = part;
    }
  }
  return recipe;
}

std::vector<Recipe> recipes_of(const Flags& flags) {
  std::vector<Recipe> recipes;
  for (const std::string& text : flags.plans) {
    auto [name, plan] = named("--plan", text);
    recipes.push_back({.name = name, .plan = plan});
  }
  for (const int steps : flags.fewer) {
    recipes.push_back({.name = "steps_" + std::to_string(steps), .plan = "", .steps = steps});
  }
  const bool layers = flags.load.weights != WeightsPrecision::kAuto;
  for (const std::string& text : flags.eight_bits) recipes.push_back(eight_bits_of(text, layers));
  return recipes;
}

class Runs {
 public:
  explicit Runs(const Flags& flags) : flags_(flags), pipeline_(Pipeline::load(flags.load)) {}

  Pipeline::Result video(const Recipe& recipe, const Prompt& prompt, int index) {
    GenerateOptions options = flags_.run;
    options.prompt = prompt.text;
    options.prompt_source = prompt.source;
    options.seed += static_cast<uint64_t>(index);
    options.plan_path = recipe.plan;
    if (recipe.steps) options.steps = recipe.steps;
    options = pipeline_->resolved(options);
    if (recipe.attention_in_eight_bits) options.attention_dtype = AttentionDtype::kFP8;
    if (recipe.layers_in_eight_bits || recipe.attention_in_eight_bits) {
      options.kept_steps = recipe.kept_steps;
    } else if (flags_.load.weights != WeightsPrecision::kAuto) {
      options.kept_steps = options.steps;
    }
    Pipeline::Result result = pipeline_->generate(options);
    if (std::ranges::count(flags_.judged, recipe.name) > 0) {
      const std::filesystem::path folder = std::filesystem::path(flags_.videos) / recipe.name;
      std::filesystem::create_directories(folder);
      char name[32];
      std::snprintf(name, sizeof name, "v_%04d.mp4", index);
      write_video(result.video, *result.report.options.fps, folder / name);
    }
    return result;
  }

  static void tell(const std::string& name, int index, const RunReport& report, const VideoComparison* comparison) {
    nlohmann::json line = {{"name", name},
                           {"prompt", index},
                           {"seed", report.options.seed},
                           {"forwards", report.forwards},
                           {"density", report.density},
                           {"step_reuse", report.step_reuse},
                           {"eight_bit_parts", report.eight_bit_parts},
                           {"precision", report.precision},
                           {"device", report.device},
                           {"threads", report.threads},
                           {"attention_seconds", report.seconds.attention},
                           {"transformer_seconds", report.seconds.transformer()}};
    if (comparison != nullptr) {
      line["psnr_db"] = comparison->psnr_db;
      line["ssim"] = comparison->ssim;
      line["flicker"] = comparison->flicker_difference;
    }
    std::cout << line.dump() << std::endl;  // each at once: what is done is kept where the rest is stopped
  }

 private:
  const Flags& flags_;
  std::unique_ptr<Pipeline> pipeline_;
};

void run(const Flags& flags) {
  const auto begin = std::chrono::steady_clock::now();
  const std::vector<Recipe> recipes = recipes_of(flags);
  const std::vector<Prompt> prompts = read_prompts(flags.prompts);
  Runs runs(flags);
  for (int index = flags.first; index < std::min(flags.most, static_cast<int>(prompts.size())); index += flags.every) {
    if (std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() > flags.seconds) return;
    const Prompt& prompt = prompts[static_cast<size_t>(index)];
    const Pipeline::Result dense = runs.video({.name = "dense", .plan = ""}, prompt, index);
    Runs::tell("dense", index, dense.report, nullptr);
    for (const Recipe& recipe : recipes) {
      const Pipeline::Result other = runs.video(recipe, prompt, index);
      const VideoComparison comparison = compare_videos(dense.video, other.video);
      Runs::tell(recipe.name, index, other.report, &comparison);
    }
  }
}

}  // namespace
}  // namespace calibatt::bench

int main(int argc, char** argv) {
  calibatt::bench::Flags flags;
  std::string dtype = "auto";
  CLI::App app{"How far videos with plans are from dense ones"};
  app.add_option("-m,--model", flags.load.model_dir)->required();
  app.add_option("--prompts", flags.prompts, "One a line; the i-th has the seed --seed + i")->required();
  app.add_option("--first", flags.first, "The first prompt that this process takes")->capture_default_str();
  app.add_option("--every", flags.every, "And every so many after it")->capture_default_str();
  app.add_option("--max-prompts", flags.most, "Prompts of the file from this on are nobody's")->capture_default_str();
  app.add_option("--plan", flags.plans, "NAME=FILE; several");
  app.add_option("--fewer", flags.fewer, "So many steps, without a plan; several");
  app.add_option(
      "--eight-bits", flags.eight_bits,
      "NAME=[attention,][STEPS,][FILE]: in 8 bits what --weights-dtype says and, where it is named, attention, "
      "but for so many first steps [a quarter, or as the plan says]; several");
  app.add_option_function<std::string>(
         "--weights-dtype",
         [&flags](const std::string& name) {
           flags.load.weights = name == "fp8" ? calibatt::WeightsPrecision::kFP8 : calibatt::WeightsPrecision::kINT8;
         },
         "fp8, int8: the model has linear layers in 8 bits")
      ->check(CLI::IsMember({"fp8", "int8"}));
  app.add_option("--videos", flags.videos, "Folder for videos: FOLDER/NAME/v_INDEX.mp4")->capture_default_str();
  app.add_option("--judged", flags.judged, "What videos are written of: dense, a plan's name, steps_N; several");
  app.add_option("--seconds", flags.seconds, "Begins no new prompt after that");
  app.add_option("-s,--seed", flags.run.seed)->capture_default_str();
  app.add_option("--steps", flags.run.steps);
  app.add_option("-t,--threads", flags.load.threads)->capture_default_str();
  app.add_option("--backend", flags.load.backend)->capture_default_str();
  app.add_option("-W,--width", flags.run.width);
  app.add_option("-H,--height", flags.run.height);
  app.add_option("--video-frames", flags.run.video_frames);
  app.add_option("--dtype", dtype)->check(CLI::IsMember({"auto", "fp32", "bf16", "fp16"}))->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  using enum calibatt::Precision;
  flags.load.precision = dtype == "fp32" ? kF32 : dtype == "bf16" ? kBF16 : dtype == "fp16" ? kF16 : kAuto;
  try {
    calibatt::bench::run(flags);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
