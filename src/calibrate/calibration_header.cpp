#include "calibrate/calibration_header.h"

#include <algorithm>
#include <map>

#include "base/error.h"
#include "base/thread_pool.h"
#include "calibrate/profile/profile_header.h"
#include "calibrate/record/measure.h"
#include "io/fingerprint.h"
#include "io/input_file.h"

namespace calibatt {
namespace {

constexpr const char* kDefaultTokenOrder = "tiles:16x2x2";

std::string hash_prompts(const std::vector<CalibrationPrompt>& prompts) {
  Hasher hasher;
  for (const CalibrationPrompt& prompt : prompts) hasher.update(prompt.text);
  const std::string& negative = prompts.front().negative_prompt;
  const bool alike = std::ranges::all_of(prompts, [&](const auto& each) { return each.negative_prompt == negative; });
  for (const CalibrationPrompt& prompt : prompts) {
    hasher.update(prompt.negative_prompt);
    if (alike) break;  // as the command line's always are
  }
  return hasher.hex();
}

// What a prompt's measurement depends on beside the kind of run: its text, what it is guided away from, the seed, the
// picture, and a text encoder that is not the model folder's, both by their content. A text that is there twice is two
// prompts, since each has noise of its own.
std::vector<std::string> prompt_identities(const CalibrationRuns& runs) {
  const double guidance = runs.description.guidance_scale.value_or(0);
  const bool guided = std::max(guidance, runs.description.guidance_scale_2.value_or(0)) > 1;
  std::vector<std::string> identities;
  std::map<std::string, int> times;
  for (const CalibrationPrompt& prompt : runs.prompts) {
    Hasher hasher;
    hasher.update(prompt.text);
    hasher.update(guided ? prompt.negative_prompt : "");
    hasher.update(std::to_string(prompt.seed));
    hasher.update(std::to_string(times[prompt.text]++));
    if (!runs.text_encoder.empty()) hasher.update(runs.text_encoder);
    if (!runs.image.empty()) hasher.update("image " + runs.image);
    identities.push_back(hasher.hex());
  }
  return identities;
}

void require_steps_of_all(const RunDescription& run) {
  for (size_t expert = 0; expert < run.transformers.size() && run.transformers.size() > 1; ++expert) {
    if (std::ranges::count(run.step_transformer, static_cast<int>(expert)) > 0) continue;
    throw Error(ErrorKind::kUsage, "no step of this run is of the transformer of the " +
                                       std::string(expert == 0 ? "high" : "low") +
                                       " noise levels, and a plan is for both; give more steps, or other ones with "
                                       "--timesteps");
  }
}

}  // namespace

ProfileHeader make_profile_header(const CalibrationRuns& runs, const CalibrateOptions& options) {
  const RunDescription& run = runs.description;
  ProfileHeader header;
  header.geometry = run.geometry;
  header.geometry.order =
      TokenOrder::parse(options.token_order.empty() ? std::string(kDefaultTokenOrder) : options.token_order);
  header.geometry.block_q = options.block_q;
  header.geometry.block_k = options.block_k;
  header.num_layers = run.num_layers;
  header.sigmas = run.sigmas;
  header.step_transformer = run.step_transformer;
  require_steps_of_all(run);
  if (std::ranges::all_of(run.transformers, [](const auto& each) { return each.fingerprint != nullptr; })) {
    header.fingerprint = [transformers = run.transformers](int transformer, const std::string& like) {
      return transformers.at(static_cast<size_t>(transformer)).fingerprint(like);
    };
  }
  header.levels_with = runs.levels_with;
  header.prompt_identities = prompt_identities(runs);
  header.precision = runs.precision;

  PlanProvenance& provenance = header.provenance;
  provenance.tool_version = CALIBATT_VERSION;
  provenance.transformers.clear();
  for (const RunTransformer& each : run.transformers) {
    provenance.transformers.push_back({each.name, each.fingerprint ? each.fingerprint("") : std::string()});
  }
  provenance.prompts_hash = hash_prompts(runs.prompts);
  provenance.num_prompts = static_cast<int>(runs.prompts.size());
  provenance.video_frames = run.video_frames;
  provenance.video_height = run.video_height;
  provenance.video_width = run.video_width;
  provenance.guidance_scale = run.guidance_scale.value_or(0);
  provenance.scheduler = run.scheduler;
  provenance.flow_shift = run.flow_shift;
  if (run.guidance_scale_2) provenance.settings["cfg-scale-2"] = number_text(*run.guidance_scale_2);
  if (!runs.conditions.empty()) provenance.settings["conditions"] = runs.conditions;
  provenance.settings["seed"] = std::to_string(runs.prompts.front().seed);
  return header;
}

MeasureFacts measure_facts(const std::string& profile_dir, const ProfileHeader& header, bool on_device) {
  MeasureFacts facts;
  // Of any prompt: several processes may share the folder.
  for (int prompt = 0; prompt < header.provenance.num_prompts && !facts.existing; ++prompt) {
    const std::string saved = prompt_file(profile_dir, prompt);
    if (!path_exists(saved)) continue;
    facts.existing = load_header(saved);
    require_same_run(header, *facts.existing, saved);
  }
  facts.maps_refusal = maps_refusal(header, num_threads(), on_device);
  return facts;
}

}  // namespace calibatt
