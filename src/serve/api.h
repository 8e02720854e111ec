#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "serve/catalog.h"
#include "serve/jobs.h"
#include "serve/metrics.h"

namespace calibatt::serve {

/// What the service reads of an HTTP request.
struct HttpRequest {
  std::string method, path;                  ///< HEAD counts as GET
  std::map<std::string, std::string> query;  ///< the last of each name
  std::string content_type, authorization, host, origin, range;
  std::string body;
};

/// Bytes of a file.
struct FilePart {
  std::string path;
  uint64_t offset = 0, length = 0;
};

struct HttpReply {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::optional<FilePart> file;  ///< in place of the body
  std::vector<std::pair<std::string, std::string>> headers;
};

struct ApiSettings {
  std::string api_key;      ///< empty: everybody may ask
  bool local_names = true;  ///< without a key: requests for another host name than this machine's own are refused
  std::string page;         ///< what / shows, HTML
};

/// The service as requests see it: OpenAI's /v1/videos, models, health, figures and the page. It knows no sockets. Any
/// thread may call any function.
class Api {
 public:
  Api(Jobs& jobs, const JobStore& store, const Catalog& catalog, Metrics& metrics, ApiSettings settings)
      : jobs_(jobs), store_(store), catalog_(catalog), metrics_(metrics), settings_(std::move(settings)) {}

  /// Answers a request; never throws.
  HttpReply answer(const HttpRequest& request);
  /// The same before the body was read, for requests whose answer does not depend on it. Absent: read it.
  std::optional<HttpReply> answer_to_head(const HttpRequest& request);

 private:
  void check_sender(const HttpRequest& request) const;
  HttpReply route(const HttpRequest& request);
  HttpReply videos(const HttpRequest& request);
  HttpReply video(const HttpRequest& request, const std::string& id);
  HttpReply content(const HttpRequest& request, const std::string& id) const;
  HttpReply health() const;

  Jobs& jobs_;
  const JobStore& store_;
  const Catalog& catalog_;
  Metrics& metrics_;
  const ApiSettings settings_;
};

/// A refusal as OpenAI's clients read it: {"error": {message, type, param, code}}.
HttpReply error_reply(int status, const std::string& message, const std::string& param = "",
                      const std::string& code = "");

}  // namespace calibatt::serve
