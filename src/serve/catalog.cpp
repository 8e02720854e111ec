#include "serve/catalog.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "calibatt/error.h"
#include "calibatt/fit.h"
#include "calibatt/numbers.h"
#include "calibatt/plan.h"
#include "calibatt/prompts.h"
#include "serve/picture_bytes.h"
#include "serve/request/api_error.h"

namespace calibatt::serve {
namespace {

using Json = nlohmann::json;

constexpr int kMaxInt = std::numeric_limits<int>::max();

struct FieldOfFlag {
  std::string_view flag, field;
};
// A flag that begins like another one comes first.
constexpr FieldOfFlag kFields[] = {
    {"--video-frames", "num_frames"},
    {"--cfg-scale-2", "guidance_scale_2"},
    {"--cfg-scale", "guidance_scale"},
    {"--flow-shift", "flow_shift"},
    {"--steps", "num_inference_steps"},
    {"--width", "width"},
    {"--height", "height"},
    {"--fps", "fps"},
    {"--negative-prompt", "negative_prompt"},
    {"--prompt", "prompt"},
    {"--seed", "seed"},
    {"--image", "input_reference"},
    {"--on-mismatch", "on_mismatch"},
    {"--plan", "plan"},
};

constexpr std::string_view kKnownFields[] = {
    "prompt",         "negative_prompt",  "model",      "plan",       "on_mismatch", "size",
    "width",          "height",           "seconds",    "num_frames", "fps",         "num_inference_steps",
    "guidance_scale", "guidance_scale_2", "flow_shift", "seed"};

[[noreturn]] void refuse(const std::string& field, const std::string& message) {
  throw ApiError(400, message, field);
}

const std::string* find(const FormFields& form, const std::string& field) {
  const auto found = form.values.find(field);
  return found == form.values.end() ? nullptr : &found->second;
}

void check_known(const FormFields& form) {
  std::string all;
  for (const std::string_view known : kKnownFields) all += (all.empty() ? "" : ", ") + std::string(known);
  for (const auto& [field, value] : form.values) {
    if (std::ranges::find(kKnownFields, field) == std::end(kKnownFields)) {
      refuse(field, "this field is not known here; a request has " + all + ", and the file input_reference");
    }
  }
}

template <class Value>
void read_whole(const FormFields& form, const std::string& field, Value& value) {
  if (const std::string* text = find(form, field)) value = static_cast<int>(whole_number(field, *text, 1, kMaxInt));
}

void read_real(const FormFields& form, const std::string& field, std::optional<double>& value, double min, double max) {
  if (const std::string* text = find(form, field)) value = real_number(field, *text, min, max);
}

void read_size(const FormFields& form, GenerateOptions& run) {
  read_whole(form, "width", run.width);
  read_whole(form, "height", run.height);
  const std::string* size = find(form, "size");
  if (size == nullptr) return;
  if (find(form, "width") != nullptr || find(form, "height") != nullptr) {
    refuse("size", "says what width and height say, too; leave one of them out");
  }
  const size_t by = size->find('x');
  if (by == std::string::npos) refuse("size", "must be WIDTHxHEIGHT in pixels, such as 832x480");
  run.width = static_cast<int>(whole_number("size, whose width", size->substr(0, by), 1, kMaxInt));
  run.height = static_cast<int>(whole_number("size, whose height", size->substr(by + 1), 1, kMaxInt));
}

/// The number of frames that is nearest to so many seconds, of those that a model makes.
void read_duration(const FormFields& form, double default_fps, int frames_multiple, GenerateOptions& run) {
  read_whole(form, "num_frames", run.video_frames);
  const std::string* seconds = find(form, "seconds");
  if (seconds == nullptr) return;
  if (find(form, "num_frames") != nullptr) refuse("seconds", "says what num_frames says, too; leave one of them out");
  constexpr double kMaxSeconds = 3600;
  const double frames = real_number("seconds", *seconds, 0, kMaxSeconds) * run.fps.value_or(default_fps);
  run.video_frames = static_cast<int>(std::lround(frames / frames_multiple)) * frames_multiple + 1;
}

/// Random seeds are short, so that programs whose numbers are doubles read them right.
uint64_t read_seed(const FormFields& form) {
  const std::string* text = find(form, "seed");
  if (text == nullptr || *text == "-1") return std::random_device()();
  uint64_t seed = 0;
  const auto [rest, failed] = std::from_chars(text->data(), text->data() + text->size(), seed);
  if (failed != std::errc() || rest != text->data() + text->size() || text->empty()) {
    refuse("seed", "must be a whole number from 0 to 18446744073709551615, or -1 for a random one");
  }
  return seed;
}

OnMismatch read_mismatch(const FormFields& form, OnMismatch otherwise) {
  const std::string* choice = find(form, "on_mismatch");
  if (choice == nullptr) return otherwise;
  if (*choice == "refuse") return OnMismatch::kRefuse;
  if (*choice == "warn") return OnMismatch::kWarn;
  if (*choice == "dense") return OnMismatch::kDense;
  refuse("on_mismatch", "must be refuse, warn or dense");
}

int64_t pixels_of(const GenerateOptions& resolved) {
  return int64_t{*resolved.width} * *resolved.height * *resolved.video_frames;
}

template <class Named>
void require_different_names(const std::string& flag, const std::vector<Named>& all) {
  for (size_t i = 0; i < all.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (all[i].name != all[j].name) continue;
      throw Error(ErrorKind::kUsage,
                  flag + ": two are called " + all[i].name + "; name one of them: " + flag + " NAME=PATH");
    }
  }
}

}  // namespace

std::string in_fields(std::string message, std::string& field) {
  size_t first = std::string::npos;
  for (const FieldOfFlag& known : kFields) {
    for (size_t at = 0; (at = message.find(known.flag, at)) != std::string::npos;) {
      message.replace(at, known.flag.size(), known.field);
      if (at < first) {
        first = at;
        field = known.field;
      }
    }
  }
  return message;
}

Catalog::Catalog(std::vector<ServedModel> models, std::vector<ServedPlan> plans, GenerateOptions defaults,
                 const VideoLimits& limits)
    : plans_(std::move(plans)), defaults_(std::move(defaults)), limits_(limits) {
  if (models.empty()) throw Error(ErrorKind::kUsage, "--model: name at least one model to serve");
  for (ServedModel& served : models) {
    Model model{served.name, std::move(served.load), nullptr, {}, {}};
    model.files = std::make_unique<ModelOnDisk>(ModelOnDisk::open(model.load));
    if (model.name.empty()) model.name = model.files->info().name;
    model.defaults = model.files->resolved(defaults_);
    models_.push_back(std::move(model));
  }
  require_different_names("--model", models_);
  require_different_names("--plan", plans_);
  for (const ServedPlan& plan : plans_) {
    if (plan.name == "none") throw Error(ErrorKind::kUsage, "--plan: \"none\" means dense; name it otherwise");
  }
  for (const Model& model : models_) check_defaults(model);
  check_plans();
}

void Catalog::check_defaults(const Model& model) const {
  check_arithmetic(model.load, model.defaults);
  if (*model.defaults.steps > limits_.max_steps) {
    throw Error(ErrorKind::kUsage, "--max-steps " + std::to_string(limits_.max_steps) + ": " + model.name + " makes " +
                                       std::to_string(*model.defaults.steps) +
                                       " steps where a request says nothing; allow as many, or give --steps");
  }
  const int64_t pixels = pixels_of(model.defaults);
  if (limits_.max_pixels > 0 && pixels > limits_.max_pixels) {
    throw Error(ErrorKind::kUsage, "--max-megapixels: " + model.name + " makes a video of " + std::to_string(pixels) +
                                       " pixels where a request says nothing, and " +
                                       std::to_string(limits_.max_pixels) +
                                       " are allowed; allow as many, or give --width, --height and --video-frames");
  }
}

void Catalog::check_plans() {
  for (const ServedPlan& plan : plans_) {
    std::string mismatch;
    for (Model& model : models_) {
      mismatch = plan_mismatch(model.load, plan.path);
      if (mismatch.empty()) model.plans.push_back(plan.name);
    }
    const auto has = [&](const Model& model) { return std::ranges::count(model.plans, plan.name) > 0; };
    if (defaults_.on_mismatch == OnMismatch::kDense || std::ranges::any_of(models_, has)) continue;
    throw Error(ErrorKind::kMismatch, "--plan " + plan.path + ": fits no model here: " + mismatch);
  }
  if (models_.size() > 1 || plans_.empty() || defaults_.on_mismatch == OnMismatch::kDense) return;
  // The one that is meant where a request says nothing is for the video that is made where it says nothing.
  const std::string mismatch = plan_mismatch(models_.front().load, plans_.front().path, &models_.front().defaults);
  if (mismatch.empty()) return;
  throw Error(ErrorKind::kMismatch, "--plan " + plans_.front().path +
                                        ": requests that say nothing would use it: " + mismatch +
                                        "; give the plan's size by --width, --height and --video-frames, name another "
                                        "plan first, or give --on-mismatch dense");
}

std::string Catalog::why_not(const VideoRequest& request) const {
  const std::string advice = " is not served now; it waits for a start with it, or may be deleted";
  if (std::ranges::find(models_, request.model, &Model::name) == models_.end()) {
    return "the model " + request.model + advice;
  }
  return request.plan.empty() || find_plan(request.plan) ? "" : "the plan " + request.plan + advice;
}

const Catalog::Model& Catalog::model_named(const std::string& name) const {
  std::string all;
  for (const Model& model : models_) {
    if (model.name == name) return model;
    all += (all.empty() ? "" : ", ") + model.name;
  }
  throw ApiError(404, "there is no model " + name.substr(0, 60) + " here; there is " + all, "model", "model_not_found");
}

const ServedPlan* Catalog::find_plan(const std::string& name) const {
  const auto found = std::ranges::find(plans_, name, &ServedPlan::name);
  return found == plans_.end() ? nullptr : &*found;
}

/// One plan of one model is meant where a request says nothing; of several, a request says which.
void Catalog::choose_plan(VideoRequest& request, const FormFields& form) const {
  const std::string* wanted = find(form, "plan");
  if (wanted == nullptr) {
    if (models_.size() == 1 && !plans_.empty()) request.plan = plans_.front().name;
    return;
  }
  if (*wanted == "none") return;
  if (find_plan(*wanted) == nullptr) {
    std::string all = "none (dense)";
    for (const ServedPlan& plan : plans_) all += ", " + plan.name;
    refuse("plan", "there is no plan " + wanted->substr(0, 60) + " here; there is " + all);
  }
  request.plan = *wanted;
}

GenerateOptions Catalog::with_fields(const Model& model, const FormFields& form) const {
  GenerateOptions run = defaults_;
  if (const std::string* prompt = find(form, "prompt")) run.prompt = *prompt;
  if (const std::string* negative = find(form, "negative_prompt")) run.negative_prompt = *negative;
  run.seed = read_seed(form);
  read_size(form, run);
  read_real(form, "fps", run.fps, 0.1, 1000);
  read_duration(form, *model.defaults.fps, model.files->info().frames_multiple, run);
  if (const std::string* steps = find(form, "num_inference_steps")) {
    run.steps = static_cast<int>(whole_number("num_inference_steps", *steps, 1, limits_.max_steps));
  }
  read_real(form, "guidance_scale", run.cfg_scale, 0, 1000);
  read_real(form, "guidance_scale_2", run.cfg_scale_2, 0, 1000);
  read_real(form, "flow_shift", run.flow_shift, 1e-3, 1000);
  run.on_mismatch = read_mismatch(form, run.on_mismatch);
  return run;
}

/// What the service was started with may leave a request less than the model would, and its flags say nothing to a
/// client.
void Catalog::check_steps(const FormFields& form) const {
  const size_t listed = defaults_.timesteps.size() + defaults_.noise_levels.size();
  if (const std::string* text = find(form, "num_inference_steps")) {
    const int64_t steps = whole_number("num_inference_steps", *text, 1, limits_.max_steps);
    if (listed > 0 && steps != static_cast<int64_t>(listed)) {
      refuse("num_inference_steps", *text + ": this service makes every video in " + std::to_string(listed) +
                                        " steps of its own; give " + std::to_string(listed) + ", or leave it out");
    }
    if (defaults_.kept_steps && steps < *defaults_.kept_steps) {
      refuse("num_inference_steps",
             *text + ": this service computes the first " + std::to_string(*defaults_.kept_steps) +
                 " steps of a video without 8 bits; give " + std::to_string(*defaults_.kept_steps) + " to " +
                 std::to_string(limits_.max_steps));
    }
  }
  if (!defaults_.noise_levels.empty() && find(form, "flow_shift") != nullptr) {
    refuse("flow_shift",
           "this service makes every video at noise levels of its own, which are not shifted; leave it "
           "out");
  }
}

void Catalog::check_limits(const Model& model, const GenerateOptions& resolved) const {
  const int64_t most = limits_.max_pixels > 0 ? limits_.max_pixels : 4 * pixels_of(model.defaults);
  const int64_t wanted = pixels_of(resolved);
  if (wanted > most) {
    refuse("size", std::to_string(*resolved.width) + "x" + std::to_string(*resolved.height) + ", " +
                       std::to_string(*resolved.video_frames) + " frames: " + std::to_string(wanted) +
                       " pixels in all, and this service makes videos of up to " + std::to_string(most));
  }
  if (*resolved.steps > limits_.max_steps) {
    refuse("num_inference_steps", "more than " + std::to_string(limits_.max_steps) + " steps, the most here");
  }
}

/// Here, where a client learns of it at once, and not when the video's turn comes. The weights are not read for it.
void Catalog::check_plan_of(const VideoRequest& request, const Model& model) const {
  if (request.plan.empty() || request.on_mismatch == OnMismatch::kDense) return;
  const GenerateOptions run = options_of(request);
  std::string mismatch;
  try {
    mismatch = plan_mismatch(model.load, run.plan_path, &run);
  } catch (const Error&) {
    return;  // a file that cannot be read now may be there when the video is made; else that tells of it
  }
  if (mismatch.empty()) return;
  throw ApiError(400,
                 request.plan + " does not fit: " + mismatch +
                     "; ask for the video that it was made for, or for plan none or on_mismatch dense, which run dense",
                 "plan", "plan_mismatch");
}

NewJob Catalog::job_of(FormFields form) const {
  check_known(form);
  const std::string* name = find(form, "model");
  const Model& model = name == nullptr ? models_.front() : model_named(*name);
  NewJob job;
  VideoRequest& request = job.request;
  try {
    if (find(form, "prompt") == nullptr) refuse("prompt", "is missing: say what the video should show");
    check_steps(form);
    GenerateOptions run = with_fields(model, form);
    check_prompt({run.prompt, "prompt"});
    check_prompt({run.negative_prompt, "negative_prompt"});
    if (form.has_picture && !model.files->info().takes_image) {
      refuse("input_reference", "the model " + model.name + " makes videos from text alone; leave the picture out");
    }
    if (form.has_picture) run.image = picture_of_bytes(form.picture);
    model.files->check_image(run);
    choose_plan(request, form);
    const GenerateOptions resolved = model.files->resolved(run);
    check_limits(model, resolved);
    job.warnings = model.files->unread(run);
    request.model = model.name;
    request.prompt = resolved.prompt;
    request.negative_prompt = resolved.negative_prompt;
    request.seed = resolved.seed;
    request.width = *resolved.width;
    request.height = *resolved.height;
    request.num_frames = *resolved.video_frames;
    request.steps = *resolved.steps;
    request.fps = *resolved.fps;
    request.guidance_scale = *resolved.cfg_scale;
    request.guidance_scale_2 = resolved.cfg_scale_2;
    request.flow_shift = *resolved.flow_shift;
    request.on_mismatch = resolved.on_mismatch;
    request.has_picture = form.has_picture;
  } catch (const Error& error) {
    std::string field;
    const std::string message = in_fields(error.what(), field);
    const std::string* shift = find(form, "flow_shift");
    if (shift != nullptr && message.starts_with("--timesteps: begins")) {  // those are the service's own
      refuse("flow_shift", *shift +
                               ": with this service's steps a video would not begin with pure noise; leave it out, "
                               "or give more");
    }
    throw ApiError(400, message, field.empty() ? message.substr(0, message.find_first_of(" ,:")) : field);
  }
  for (std::string& warning : job.warnings) {
    std::string ignored;
    warning = in_fields(std::move(warning), ignored);
  }
  check_plan_of(request, model);
  job.picture = std::move(form.picture);
  return job;
}

GenerateOptions Catalog::options_of(const VideoRequest& request) const {
  GenerateOptions run = defaults_;
  run.prompt = request.prompt;
  run.prompt_source = "prompt";
  run.negative_prompt = request.negative_prompt;
  run.seed = request.seed;
  run.width = request.width;
  run.height = request.height;
  run.video_frames = request.num_frames;
  run.steps = request.steps;
  run.fps = request.fps;
  run.cfg_scale = request.guidance_scale;
  run.cfg_scale_2 = request.guidance_scale_2;
  run.flow_shift = request.flow_shift;
  run.on_mismatch = request.on_mismatch;
  if (!request.plan.empty()) {
    const ServedPlan* plan = find_plan(request.plan);
    if (plan == nullptr) throw Error(ErrorKind::kNotFound, "the plan " + request.plan + " is not served any more");
    run.plan_path = plan->path;
  }
  return run;
}

const LoadOptions& Catalog::load_options(const std::string& name) const {
  const auto found = std::ranges::find(models_, name, &Model::name);
  if (found == models_.end()) throw Error(ErrorKind::kNotFound, "the model " + name + " is not served any more");
  return found->load;
}

std::string Catalog::model_reply(const std::string& name) const {
  const Model& model = model_named(name);
  const ModelInfo& info = model.files->info();
  const GenerateOptions& defaults = model.defaults;
  return Json({{"id", model.name},
               {"object", "model"},
               {"created", 0},
               {"owned_by", "calibatt"},
               {"kind", info.kind},
               {"takes_picture", info.takes_image},
               {"width_multiple", info.width_multiple},
               {"height_multiple", info.height_multiple},
               {"frames_multiple", info.frames_multiple},
               {"plans", model.plans},
               {"default_plan", models_.size() == 1 && !plans_.empty() ? Json(plans_.front().name) : Json(nullptr)},
               {"defaults",
                {{"width", *defaults.width},
                 {"height", *defaults.height},
                 {"num_frames", *defaults.video_frames},
                 {"fps", *defaults.fps},
                 {"num_inference_steps", *defaults.steps},
                 {"guidance_scale", *defaults.cfg_scale},
                 {"flow_shift", *defaults.flow_shift}}}})
      .dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string Catalog::list_reply() const {
  std::string list;
  for (const Model& model : models_) list += (list.empty() ? "" : ",") + model_reply(model.name);
  return R"({"object":"list","data":[)" + list + "]}";
}

}  // namespace calibatt::serve
