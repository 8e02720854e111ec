#include "serve/api.h"

#include <filesystem>
#include <new>
#include <nlohmann/json.hpp>
#include <system_error>

#include "calibatt/error.h"
#include "calibatt/numbers.h"
#include "serve/request/api_error.h"
#include "serve/request/byte_range.h"

namespace calibatt::serve {
namespace {

using Json = nlohmann::json;

constexpr const char* kVideos = "/v1/videos";
constexpr int kDefaultPage = 20, kMaxPage = 100;

std::string dumped(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

/// Equal, in a time that does not tell where they differ.
bool same_secret(const std::string& a, const std::string& b) {
  unsigned difference = a.size() == b.size() ? 0 : 1;
  for (size_t i = 0; i < a.size(); ++i) {
    difference |= static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b[b.empty() ? 0 : i % b.size()]);
  }
  return difference == 0;
}

std::string without_port(const std::string& host) {
  const size_t colon = host.rfind(':');
  if (colon == std::string::npos || host.ends_with(']')) return host;
  return host.substr(0, colon);
}

bool is_local_name(const std::string& host) {
  const std::string name = without_port(host);
  return name.empty() || name == "localhost" || name == "127.0.0.1" || name == "[::1]";
}

/// A method that is not there is told from a path that is not.
[[noreturn]] void refuse_method(const std::string& allowed) {
  throw ApiError(405, "this path takes " + allowed, "", "method_not_allowed");
}

[[noreturn]] void no_video(const std::string& id) {
  throw ApiError(404, "there is no video " + id.substr(0, 60) + "; it may have been deleted, or have expired", "",
                 "video_not_found");
}

std::string query(const HttpRequest& request, const std::string& name, const std::string& otherwise) {
  const auto found = request.query.find(name);
  return found == request.query.end() ? otherwise : found->second;
}

HttpReply json_reply(std::string body) {
  HttpReply reply;
  reply.body = std::move(body);
  return reply;
}

HttpReply video_reply(const Job& job) {
  HttpReply reply = json_reply(to_reply(job));
  // How long OpenAI's client waits before it asks again.
  if (!job.finished()) reply.headers.emplace_back("openai-poll-after-ms", "500");
  return reply;
}

}  // namespace

HttpReply error_reply(int status, const std::string& message, const std::string& param, const std::string& code) {
  const char* type = status == 401   ? "authentication_error"
                     : status == 429 ? "rate_limit_error"
                     : status >= 500 ? "server_error"
                                     : "invalid_request_error";
  const std::string text = param.empty() || message.starts_with(param) ? message : param + ": " + message;
  HttpReply reply = json_reply(dumped({{"error",
                                        {{"message", text},
                                         {"type", type},
                                         {"param", param.empty() ? Json(nullptr) : Json(param)},
                                         {"code", code.empty() ? Json(nullptr) : Json(code)}}}}));
  reply.status = status;
  if (status == 401) reply.headers.emplace_back("WWW-Authenticate", "Bearer");
  if (status == 429 || status == 503) reply.headers.emplace_back("Retry-After", "5");
  return reply;
}

void Api::check_sender(const HttpRequest& request) const {
  // A page of another site that somebody looks at may send requests from that person's machine, and see the answers
  // where its host name leads here. A browser says so in both headers.
  if (!request.origin.empty() && request.origin != "http://" + request.host &&
      request.origin != "https://" + request.host) {
    throw ApiError(403,
                   "requests from pages of another site (Origin " + request.origin.substr(0, 100) +
                       ") are refused; behind a proxy, let it pass on the header Host",
                   "", "other_origin");
  }
  if (settings_.api_key.empty()) {
    if (settings_.local_names && !is_local_name(request.host)) {
      throw ApiError(403,
                     "this service answers to localhost and 127.0.0.1 alone, not to " + request.host.substr(0, 100) +
                         "; start it with --api-key to serve other names",
                     "", "other_host");
    }
    return;
  }
  const bool open = request.path == "/health" || request.path == "/";
  if (!open && !same_secret(request.authorization, "Bearer " + settings_.api_key)) {
    throw ApiError(401, "give the service's key in the header Authorization: Bearer KEY", "", "invalid_api_key");
  }
}

std::optional<HttpReply> Api::answer_to_head(const HttpRequest& request) {
  try {
    check_sender(request);
    if (request.method == "POST" && request.path == kVideos) return std::nullopt;
    return answer(request);
  } catch (const ApiError& error) {
    return error_reply(error.status, error.what(), error.param, error.code);
  }
}

HttpReply Api::answer(const HttpRequest& request) {
  try {
    check_sender(request);
    return route(request);
  } catch (const ApiError& error) {
    return error_reply(error.status, error.what(), error.param, error.code);
  } catch (const Error& error) {
    const int status = error.kind() == ErrorKind::kUsage ? 400 : 500;
    return error_reply(status, error.what());
  } catch (const std::bad_alloc&) {
    return error_reply(500, "the service is out of memory");
  } catch (const std::exception& error) {
    return error_reply(500, error.what());
  }
}

HttpReply Api::route(const HttpRequest& request) {
  const std::string& path = request.path;
  const bool get = request.method == "GET";
  if (path == kVideos) return videos(request);
  const std::string of_video = std::string(kVideos) + "/";
  if (path.starts_with(of_video)) {
    const std::string id = path.substr(of_video.size(), path.find('/', of_video.size()) - of_video.size());
    const std::string rest = path.substr(of_video.size() + id.size());
    if (rest.empty()) return video(request, id);
    if (rest == "/content") {
      if (!get) refuse_method("GET");
      return content(request, id);
    }
  }
  constexpr std::string_view kModels = "/v1/models";
  const bool known = path == "/" || path == "/health" || path == "/metrics" || path.starts_with(kModels);
  if (known && !get) refuse_method("GET");
  if (path == "/") {
    HttpReply reply;
    reply.content_type = "text/html; charset=utf-8";
    reply.body = settings_.page;
    reply.headers.emplace_back("Content-Security-Policy",
                               "default-src 'none'; connect-src 'self'; img-src 'self' data: blob:; media-src 'self' "
                               "blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; "
                               "form-action 'none'; frame-ancestors 'none'");
    return reply;
  }
  if (path == "/health") return health();
  if (path == "/metrics") {
    HttpReply reply;
    reply.content_type = "text/plain; version=0.0.4; charset=utf-8";
    reply.body = metrics_.text(jobs_.counts());
    return reply;
  }
  if (path == kModels) return json_reply(catalog_.list_reply());
  if (path.starts_with(std::string(kModels) + "/"))
    return json_reply(catalog_.model_reply(path.substr(kModels.size() + 1)));
  throw ApiError(404, "there is nothing at " + path.substr(0, 100) + "; videos are at " + kVideos, "", "not_found");
}

HttpReply Api::health() const {
  const JobCounts counts = jobs_.counts();
  const bool stopping = jobs_.stopping();
  const std::string problem = store_.problem();
  HttpReply reply = json_reply(dumped({{"status", stopping          ? "stopping"
                                                  : problem.empty() ? "ok"
                                                                    : "failing"},
                                       {"version", CALIBATT_VERSION},
                                       {"problem", problem.empty() ? Json(nullptr) : Json(problem)},
                                       {"queued", counts.queued},
                                       {"held", counts.held},
                                       {"in_progress", counts.in_progress}}));
  if (stopping || !problem.empty()) reply.status = 503;
  return reply;
}

HttpReply Api::videos(const HttpRequest& request) {
  if (request.method == "POST") {
    return video_reply(jobs_.create(catalog_.job_of(read_form(request.content_type, request.body))));
  }
  if (request.method != "GET") refuse_method("GET and POST");
  const auto limit =
      static_cast<size_t>(whole_number("limit", query(request, "limit", std::to_string(kDefaultPage)), 1, kMaxPage));
  const std::string order = query(request, "order", "desc");
  if (order != "asc" && order != "desc") throw ApiError(400, "must be asc or desc", "order");
  bool more = false;
  const std::vector<Job> page = jobs_.list(query(request, "after", ""), limit, order == "desc", more);
  std::string data;
  for (const Job& job : page) data += (data.empty() ? "" : ",") + to_reply(job);
  const auto id = [&](bool last) {
    return page.empty() ? "null" : "\"" + (last ? page.back() : page.front()).id + "\"";
  };
  return json_reply(R"({"object":"list","data":[)" + data + R"(],"first_id":)" + id(false) + R"(,"last_id":)" +
                    id(true) + R"(,"has_more":)" + (more ? "true" : "false") + "}");
}

HttpReply Api::video(const HttpRequest& request, const std::string& id) {
  if (request.method == "DELETE") {
    if (!jobs_.remove(id)) no_video(id);
    return json_reply(dumped({{"id", id}, {"object", "video.deleted"}, {"deleted", true}}));
  }
  if (request.method != "GET") refuse_method("GET and DELETE");
  const std::optional<Job> job = jobs_.find(id);
  if (!job) no_video(id);
  return video_reply(*job);
}

HttpReply Api::content(const HttpRequest& request, const std::string& id) const {
  const std::optional<Job> job = jobs_.find(id);
  if (!job) no_video(id);
  if (const std::string variant = query(request, "variant", "video"); variant != "video") {
    throw ApiError(400, "video is the only one here", "variant");
  }
  if (job->state == JobState::kFailed) throw ApiError(422, job->error.message, "", job->error.code);
  if (job->state != JobState::kCompleted) {
    throw ApiError(404,
                   "the video is " + std::string(state_name(job->state)) +
                       "; its content is there once it is "
                       "completed",
                   "", "video_not_ready");
  }
  const std::string path = store_.video_path(id);
  std::error_code error;
  const uint64_t size = std::filesystem::file_size(path, error);
  if (error) throw ApiError(500, "the video's file cannot be read: " + error.message(), "", "file_missing");
  HttpReply reply;
  reply.content_type = "video/mp4";
  reply.headers.emplace_back("Accept-Ranges", "bytes");
  reply.headers.emplace_back("Content-Disposition", "inline; filename=\"" + id + ".mp4\"");
  reply.file = FilePart{path, 0, size};
  std::optional<ByteRange> range;
  try {
    range = byte_range(request.range, size);
  } catch (const ApiError& beyond) {
    HttpReply refusal = error_reply(beyond.status, beyond.what());
    refusal.headers.emplace_back("Content-Range", "bytes */" + std::to_string(size));
    return refusal;
  }
  if (!range) return reply;
  reply.status = 206;
  reply.file->offset = range->offset;
  reply.file->length = range->length;
  reply.headers.emplace_back("Content-Range", "bytes " + std::to_string(range->offset) + "-" +
                                                  std::to_string(range->offset + range->length - 1) + "/" +
                                                  std::to_string(size));
  return reply;
}

}  // namespace calibatt::serve
