#include "serve/job.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "calibatt/error.h"

namespace calibatt::serve {
namespace {

using Json = nlohmann::json;

constexpr std::array<const char*, 4> kStates{"queued", "in_progress", "completed", "failed"};
constexpr std::array<const char*, 3> kMismatch{"refuse", "dense", "warn"};  // in the order of OnMismatch

template <size_t N>
size_t index_of(const std::array<const char*, N>& names, const std::string& name) {
  for (size_t i = 0; i < N; ++i) {
    if (name == names[i]) return i;
  }
  throw std::invalid_argument("\"" + name + "\" is not known");
}

std::string reply_text(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

/// As the service's form has it: of the time between the first frame and the last, in text.
std::string seconds_text(const VideoRequest& request) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.4g", (request.num_frames - 1) / request.fps);
  return text.data();
}

Json request_record(const VideoRequest& request) {
  Json record = {{"model", request.model},
                 {"plan", request.plan},
                 {"prompt", request.prompt},
                 {"negative_prompt", request.negative_prompt},
                 {"seed", request.seed},
                 {"width", request.width},
                 {"height", request.height},
                 {"num_frames", request.num_frames},
                 {"num_inference_steps", request.steps},
                 {"fps", request.fps},
                 {"guidance_scale", request.guidance_scale},
                 {"flow_shift", request.flow_shift},
                 {"on_mismatch", kMismatch[static_cast<size_t>(request.on_mismatch)]},
                 {"input_reference", request.has_picture}};
  if (request.guidance_scale_2) record["guidance_scale_2"] = *request.guidance_scale_2;
  return record;
}

VideoRequest request_of(const Json& record) {
  VideoRequest request;
  request.model = record.at("model").get<std::string>();
  request.plan = record.at("plan").get<std::string>();
  request.prompt = record.at("prompt").get<std::string>();
  request.negative_prompt = record.at("negative_prompt").get<std::string>();
  request.seed = record.at("seed").get<uint64_t>();
  request.width = record.at("width").get<int>();
  request.height = record.at("height").get<int>();
  request.num_frames = record.at("num_frames").get<int>();
  request.steps = record.at("num_inference_steps").get<int>();
  request.fps = record.at("fps").get<double>();
  request.guidance_scale = record.at("guidance_scale").get<double>();
  if (record.contains("guidance_scale_2")) request.guidance_scale_2 = record.at("guidance_scale_2").get<double>();
  request.flow_shift = record.at("flow_shift").get<double>();
  request.on_mismatch = static_cast<OnMismatch>(index_of(kMismatch, record.at("on_mismatch").get<std::string>()));
  request.has_picture = record.at("input_reference").get<bool>();
  return request;
}

Json time_or_null(int64_t seconds) {
  return seconds == 0 ? Json(nullptr) : Json(seconds);
}

}  // namespace

const char* state_name(JobState state) {
  return kStates[static_cast<size_t>(state)];
}

std::string to_record(const Job& job) {
  Json request = request_record(job.request);
  request["input_reference"] = job.request.has_picture;
  // What is in progress is queued to whoever reads this: its process is gone.
  const JobState state = job.state == JobState::kInProgress ? JobState::kQueued : job.state;
  const Json record = {{"version", 1},
                       {"id", job.id},
                       {"number", job.number},
                       {"request", request},
                       {"status", state_name(state)},
                       {"created_at", job.created_at},
                       {"completed_at", job.completed_at},
                       {"expires_at", job.expires_at},
                       {"error", {{"code", job.error.code}, {"message", job.error.message}}},
                       {"inference_time_s", job.inference_seconds},
                       {"density", job.density},
                       {"warnings", job.warnings}};
  return record.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

Job from_record(std::string_view text, const std::string& where) {
  try {
    const Json record = Json::parse(text);
    if (record.at("version").get<int>() != 1) throw std::invalid_argument("is of a later version of calibatt");
    Job job;
    job.id = record.at("id").get<std::string>();
    job.number = record.at("number").get<uint64_t>();
    job.request = request_of(record.at("request"));
    job.state = static_cast<JobState>(index_of(kStates, record.at("status").get<std::string>()));
    job.created_at = record.at("created_at").get<int64_t>();
    job.completed_at = record.at("completed_at").get<int64_t>();
    job.expires_at = record.at("expires_at").get<int64_t>();
    job.error = {record.at("error").at("code").get<std::string>(), record.at("error").at("message").get<std::string>()};
    job.inference_seconds = record.at("inference_time_s").get<double>();
    job.density = record.at("density").get<double>();
    job.warnings = record.at("warnings").get<std::vector<std::string>>();
    if (!(job.request.fps > 0)) throw std::invalid_argument("fps must be above 0");
    return job;
  } catch (const std::exception& error) {
    throw Error(ErrorKind::kFormat, where + ": not a job of calibatt serve: " + error.what());
  }
}

std::string to_reply(const Job& job) {
  const VideoRequest& request = job.request;
  const bool completed = job.state == JobState::kCompleted;
  Json reply = request_record(request);
  reply["plan"] = request.plan.empty() ? Json(nullptr) : Json(request.plan);
  reply["id"] = job.id;
  reply["object"] = "video";
  reply["status"] = state_name(job.state);
  reply["progress"] = completed ? 100 : std::min(99, static_cast<int>(std::floor(job.progress * 100)));
  reply["stage"] = job.state == JobState::kInProgress ? Json(job.stage) : Json(nullptr);
  reply["created_at"] = job.created_at;
  reply["completed_at"] = time_or_null(job.completed_at);
  reply["expires_at"] = time_or_null(job.expires_at);
  reply["size"] = std::to_string(request.width) + "x" + std::to_string(request.height);
  reply["seconds"] = seconds_text(request);
  reply["error"] =
      job.state == JobState::kFailed ? Json({{"code", job.error.code}, {"message", job.error.message}}) : Json(nullptr);
  reply["remixed_from_video_id"] = nullptr;
  reply["inference_time_s"] = completed ? Json(job.inference_seconds) : Json(nullptr);
  reply["density"] = completed ? Json(job.density) : Json(nullptr);
  reply["warnings"] = job.warnings;
  if (!job.held.empty()) reply["warnings"].push_back(job.held);
  return reply_text(reply);
}

}  // namespace calibatt::serve
