// The calibration functions of calibatt/c_api.h.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "calibatt/counted.h"
#include "calibrate/calibration_header.h"
#include "calibrate/calibration_options.h"
#include "calibrate/compile/compile.h"
#include "calibrate/compile/least_density.h"
#include "calibrate/eight_bit_flags.h"
#include "calibrate/record/calibrator.h"
#include "calibrate/unread_settings.h"
#include "capi/arguments.h"
#include "capi/guarded.h"
#include "capi/session.h"
#include "plan/describe.h"

using namespace calibatt;
using namespace calibatt::capi;

namespace {

constexpr int kMostPrompts = 1 << 20, kMostSettings = 1000;
constexpr size_t kLongestConditions = 4096;

std::string precision_of(const char* name) {
  std::string text = name == nullptr ? "" : name;
  if (text == "f32" || text == "fp32") return "fp32";
  if (text == "f16" || text == "fp16") return "fp16";
  if (text == "bf16" || text.empty()) return text;
  refuse("calibration.precision: is " + text.substr(0, 40) + ", and must be f32, bf16 or fp16");
}

void take_prompts(const calibatt_calibration& calibration, CalibrationRuns& runs, CalibrateOptions& options) {
  require_in("calibration.num_prompts", calibration.num_prompts, 1, kMostPrompts);
  required(calibration.prompts, "calibration.prompts");
  for (int i = 0; i < calibration.num_prompts; ++i) {
    const calibatt_prompt& prompt = calibration.prompts[i];
    const std::string name = "calibration.prompts[" + std::to_string(i) + "].text";
    const std::string text = &required(prompt.text, name.c_str());
    // As the command line counts: the seed of the whole calibration, to which a prompt's place in it is added.
    runs.prompts.push_back({text, prompt.negative_prompt != nullptr ? prompt.negative_prompt : "",
                            prompt.seed - static_cast<uint64_t>(i)});
    options.prompts.push_back({text, name});
  }
  if (calibration.first_prompt == 0 && calibration.end_prompt == 0) return;
  options.prompt_range = {calibration.first_prompt, calibration.end_prompt};
}

/// What is recorded, and how, and how it is compiled.
struct Preparation {
  CalibrateOptions options;
  CalibrationRuns runs;
  ProfileHeader header;
  CompileOptions compile;
  std::string note;
};

Preparation prepared(const char* profile_dir, const calibatt_calibration& calibration, const calibatt_run& run,
                     bool on_device) {
  Preparation plan;
  plan.options = options_of(calibration.settings, calibration.num_settings);
  plan.options.profile_dir = profile_dir;
  plan.runs.description = description_of(run);
  plan.runs.precision = precision_of(calibration.precision);
  take_prompts(calibration, plan.runs, plan.options);
  if (calibration.conditions != nullptr) plan.runs.conditions = calibration.conditions;
  if (plan.runs.conditions.size() > kLongestConditions)
    refuse("calibration.conditions: is too long; give a digest of it");
  validate(plan.options);
  plan.compile = compile_options_of(plan.options);
  if (plan.compile.may_reuse_steps()) {
    throw Error(
        ErrorKind::kUsage,
        "--speedup and --psnr: what the steps of a run predict is not seen here; ask for --density, or calibrate "
        "with `calibatt calibrate`");
  }
  plan.header = make_profile_header(plan.runs, plan.options);
  const MeasureFacts facts = measure_facts(profile_dir, plan.header, on_device);
  choose_measurements(plan.options, facts, plan.header, plan.compile);
  plan.note = note_of_choice(plan.options, facts, plan.header.measured);
  return plan;
}

std::string json_of(const RecordedProfile& recorded, const Preparation& plan) {
  return nlohmann::json{{"prompts_recorded", recorded.prompts_recorded},
                        {"prompts_resumed", recorded.prompts_resumed},
                        {"attention_seconds", recorded.attention_seconds},
                        {"recording_seconds", recorded.recording_seconds},
                        {"transformer_seconds", recorded.transformer_seconds},
                        {"measured", plan.header.measured == Measured::kLevels ? "levels" : "maps"},
                        {"note", in_terms_of_c(plan.note)}}
      .dump();
}

/// How a profile that is there is compiled.
struct Compilation {
  CompileOptions options;
  std::vector<std::string> warnings;  ///< in the words of the command line
  std::string eight_bit_layers = {};  ///< weights_dtype_name
};

/// What the command line says of a run beside a calibration's settings.
struct EightBitSettings {
  WeightsPrecision weights = WeightsPrecision::kAuto;
  std::vector<std::string> kept_layers;
  bool attention = false;
  std::vector<calibatt_setting> others;  ///< of the calibration

  EightBitSettings(const calibatt_setting* settings, int32_t num_settings) {
    require_in("num_settings", num_settings, 0, kMostSettings);
    if (num_settings > 0) required(settings, "settings");
    for (int i = 0; i < num_settings; ++i) {
      const auto [name, value] = setting_of(settings, i);  // refused by its place among all
      if (!take(name, value)) others.push_back(settings[i]);
    }
    if (!kept_layers.empty() && layers().empty())
      throw Error(ErrorKind::kUsage,
                  "--keep-layers says which layers --weights-dtype fp8 or int8 leaves as they are; add that");
  }
  std::string layers() const { return weights_dtype_name(weights, kept_layers); }

 private:
  bool take(const std::string& name, const std::string& value) {
    if (name == "weights-dtype") {
      weights = weights_precision_of(value);
    } else if (name == "keep-layers") {
      kept_layers = kept_layers_of(value);
    } else if (name == "attention-dtype") {
      attention = attention_dtype_of(value) == AttentionDtype::kFP8;
    } else {
      return false;
    }
    return true;
  }
};

/// What the plan may have in 8 bits: of a part that it could have, the profile has to know what that does.
void enter_eight_bits(const EightBitSettings& settings, const Profile& profile, const std::string& folder,
                      Compilation& compilation) {
  CompileOptions& compile = compilation.options;
  compilation.eight_bit_layers = settings.layers();
  compile.may_be_eight_bit = {.attention = settings.attention, .layers = !compilation.eight_bit_layers.empty()};
  const std::string& name = profile.header.provenance.transformers.front().name;  // begins with its class
  const DType layers = settings.weights == WeightsPrecision::kINT8 ? DType::kI8 : DType::kE4M3;
  const std::optional<int> gpu = usual_gpu();
  if (gpu) compile.gains = eight_bit_gains(*gpu, std::string_view(name).substr(0, name.find(' ')), layers);
  const EightBitParts measured = parts_to_measure(compile, compile.gains.parts(profile.header.geometry.num_tokens()));
  for (const EightBitParts part :
       {EightBitParts{.attention = measured.attention}, EightBitParts{.layers = measured.layers}}) {
    if (!compile.growth || compile.growth->knows(part, compilation.eight_bit_layers)) continue;
    const std::string flag = part.layers ? "--weights-dtype " + compilation.eight_bit_layers : "--attention-dtype fp8";
    throw Error(ErrorKind::kUsage, flag + ": " + folder +
                                       " does not know what these 8 bits do; measure it with `calibatt "
                                       "calibrate` and the same flag, or leave it out");
  }
  compilation.warnings.push_back(
      note_of_eight_bits(compile, measured, compilation.eight_bit_layers, gpu ? "cuda" : "cpu"));
  compilation.warnings.push_back(doubt_about_kept_layers(compile, compilation.eight_bit_layers));
}

/// Settings of what is measured have to be what was measured.
Compilation compilation_of(const ProfileHeader& header, CalibrateOptions options, const std::string& folder) {
  const auto require_measured = [&](bool same, const char* name, const std::string& measured) {
    if (same) return;
    throw Error(ErrorKind::kMismatch, folder + " was measured with --" + name + " " + measured +
                                          "; leave that setting out, or measure into another folder");
  };
  const AttentionGeometry& geometry = header.geometry;
  const int usual = CalibrateOptions().block_q;
  require_measured(options.token_order.empty() || TokenOrder::parse(options.token_order) == geometry.order,
                   "token-order", geometry.order.to_string());
  require_measured(options.block_q == usual || options.block_q == geometry.block_q, "block-q",
                   std::to_string(geometry.block_q));
  require_measured(options.block_k == usual || options.block_k == geometry.block_k, "block-k",
                   std::to_string(geometry.block_k));
  require_measured(!options.steps_recorded || header.measured == Measured::kMaps ||
                       *options.steps_recorded == header.num_recorded_steps(),
                   "steps-recorded", std::to_string(header.num_recorded_steps()));
  options.profile_dir = folder;
  CompileOptions compile = compile_options_of(options);
  ProfileHeader chosen = header;
  choose_measurements(options, {header, ""}, chosen, compile);
  return {compile, unread_settings(options, header)};
}

std::string json_of(const CompileSummary& summary, const Compilation& compilation, size_t num_prompts) {
  const auto number = [](std::optional<double> value) {  // JSON has no infinity either
    return value && std::isfinite(*value) ? nlohmann::json(*value) : nlohmann::json();
  };
  const std::optional<double> asked = compilation.options.target_density();
  nlohmann::json warnings = nlohmann::json::array();
  for (const std::string& warning : compilation.warnings) {
    if (!warning.empty()) warnings.push_back(in_terms_of_c(warning));
  }
  return nlohmann::json{{"density", summary.density},
                        {"density_asked", number(asked)},
                        {"density_map", summary.density_map},
                        {"predicted_speedup", summary.predicted_speedup},
                        {"expected_error", number(summary.held_out_error)},
                        {"held_out", summary.error_is_held_out},
                        {"latents_error", number(summary.latents_error)},
                        {"psnr_db", number(summary.psnr_db)},
                        {"repetitive_heads", summary.repetitive_heads},
                        {"heads", summary.total_heads},
                        {"prompts", num_prompts},
                        {"warnings", warnings}}
      .dump();
}

/// Of one calibration, whole: its prompts have the first places of the folder, and nothing else is there.
Profile complete_profile(const std::string& folder) {
  Profile profile = load_profile(folder);
  const int expected = profile.header.provenance.num_prompts, found = static_cast<int>(profile.prompts.size());
  if (found < expected) {
    throw Error(ErrorKind::kUsage, folder + ": holds the first " + std::to_string(found) + " of " +
                                       std::to_string(expected) +
                                       " prompts; record the others, or merge the folders that hold them");
  }
  if (const int all = count_prompts(folder); all > found) {
    throw Error(ErrorKind::kUsage,
                folder + ": holds " + counted(all, "prompts") +
                    " of more than one calibration (other "
                    "texts, negative prompts or seeds); calibrate once more with those that the plan "
                    "is to be made of, which measures nothing that is there");
  }
  return profile;
}

Profile profile_of_prompts(const std::string& folder, const Preparation& plan) {
  Profile profile{plan.header, {}};
  for (int prompt = 0; prompt < plan.header.provenance.num_prompts; ++prompt) {
    std::optional<PromptProfile> found = load_prompt(folder, plan.header, prompt);
    if (!found) {
      throw Error(ErrorKind::kUsage, folder + ": prompt " + std::to_string(prompt) + " of " +
                                         std::to_string(plan.header.provenance.num_prompts) +
                                         " was not measured there; record it, or merge the folders that hold them");
    }
    profile.prompts.push_back(*std::move(found));
  }
  return profile;
}

void compile_profile(const std::string& folder, const Profile& profile, Compilation compilation,
                     const EightBitSettings& eight_bits, const char* plan_path, calibatt_progress progress, void* user,
                     char** json) {
  CompileOptions& compile = compilation.options;
  if (compile.may_reuse_steps()) compile.growth = load_growth(folder, profile.header);
  enter_eight_bits(eight_bits, profile, folder, compilation);
  take_measured_share(profile, compile);
  const ProgressCallback tell = [&](const Progress& state) {
    if (progress == nullptr || progress(user, state.stage.c_str(), state.done, state.total) == 0) return;
    throw Cancelled{"stopped while compiling; no plan was written"};
  };
  const CompileSummary summary = compile_to_file(profile, compile, plan_path, tell);
  const auto reused = summary.step_reuse.size() - std::ranges::count(summary.step_reuse, StepReuse::kNone);
  for (const std::string& warning :
       {doubt_about_told_steps(compile, summary.psnr_db, false),
        note_of_overshoot(compile, profile.header, summary.predicted_speedup, static_cast<int>(reused)),
        doubt_about_closeness({.psnr_predicted = summary.psnr_db})}) {
    compilation.warnings.push_back(warning);
  }
  if (json != nullptr) *json = copied(json_of(summary, compilation, profile.prompts.size()));
}

}  // namespace

calibatt_status calibatt_settings_check(const calibatt_setting* settings, int32_t num_settings) {
  return guarded([&] {
    CalibrateOptions options = options_of(settings, num_settings);
    options.prompts = {{"", ""}};  // those are not looked at here
    validate(options);
  });
}

calibatt_status calibatt_record(const char* profile_dir, const calibatt_calibration* calibration,
                                calibatt_run_prompt run_prompt, void* user, char** json) {
  return guarded([&] {
    required(profile_dir, "profile_dir");
    if (run_prompt == nullptr) refuse("run_prompt: is NULL");
    const calibatt_calibration known = taken(calibration, "calibration");
    const calibatt_run run = taken(known.run, "calibration.run");
    const Preparation plan = prepared(profile_dir, known, run, run.device != CALIBATT_CPU);
    const std::unique_ptr<RecordingPlace> place = make_recording_place(run.device);
    const auto run_one = [&](int prompt, SelfAttention& recorder) {
      calibatt_session session({*place, recorder, plan.header.measured}, plan.runs.description);
      double seconds = 0;
      int32_t stopped = 0;
      place->off_device([&] { stopped = run_prompt(user, prompt, &session, &seconds); });
      session.rethrow_failure();
      if (stopped != 0) {
        throw Cancelled{"stopped in prompt " + std::to_string(prompt) +
                        ", of which nothing is kept; the same call goes on with it"};
      }
      return std::isfinite(seconds) && seconds > 0 ? seconds : 0.0;
    };
    PromptRange range;
    if (plan.options.prompt_range) range = {plan.options.prompt_range->first, plan.options.prompt_range->second};
    std::optional<RecordedProfile> recorded;
    place->on_device(
        [&] { recorded = record_profile(place->backend(), plan.header, profile_dir, run_one, {}, range); });
    if (json != nullptr) *json = copied(json_of(*recorded, plan));
  });
}

calibatt_status calibatt_compile(const char* profile_dir, const char* plan_path, const calibatt_setting* settings,
                                 int32_t num_settings, calibatt_progress progress, void* user, char** json) {
  return guarded([&] {
    required(profile_dir, "profile_dir");
    required(plan_path, "plan_path");
    const EightBitSettings eight_bits(settings, num_settings);
    const CalibrateOptions options =
        options_of(eight_bits.others.data(), static_cast<int32_t>(eight_bits.others.size()));
    const Profile profile = complete_profile(profile_dir);
    compile_profile(profile_dir, profile, compilation_of(profile.header, options, profile_dir), eight_bits, plan_path,
                    progress, user, json);
  });
}

calibatt_status calibatt_compile_prompts(const char* profile_dir, const char* plan_path,
                                         const calibatt_calibration* calibration, calibatt_progress progress,
                                         void* user, char** json) {
  return guarded([&] {
    required(profile_dir, "profile_dir");
    required(plan_path, "plan_path");
    const calibatt_calibration known = taken(calibration, "calibration");
    const calibatt_run run = taken(known.run, "calibration.run");
    Preparation plan = prepared(profile_dir, known, run, run.device != CALIBATT_CPU);
    plan.options.prompt_range.reset();  // of what is recorded
    compile_profile(profile_dir, profile_of_prompts(profile_dir, plan),
                    {plan.compile, unread_settings(plan.options, plan.header)}, {nullptr, 0}, plan_path, progress, user,
                    json);
  });
}

calibatt_status calibatt_merge_profiles(const char* const* folders, int32_t num_folders, const char* output,
                                        int32_t* num_prompts) {
  return guarded([&] {
    require_in("num_folders", num_folders, 1, kMostPrompts);
    required(folders, "folders");
    required(output, "output");
    std::vector<std::string> names;
    names.reserve(static_cast<size_t>(num_folders));
    for (int i = 0; i < num_folders; ++i) {
      names.emplace_back(&required(folders[i], ("folders[" + std::to_string(i) + "]").c_str()));
    }
    const MergeSummary merged = merge_profiles(names, output);
    if (num_prompts != nullptr) *num_prompts = merged.prompts;
  });
}
