#include "serve/api.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "serve/test_service.h"

namespace calibatt::serve {
namespace {

using Json = nlohmann::json;
using testing::HasSubstr;

LoadOptions tiny_wan() {
  LoadOptions load;
  load.model_dir = CALIBATT_MODELS_DIR "/tiny-wan";
  return load;
}

class ApiTest : public testing::Test {
 protected:
  ApiTest() { serve_with({}); }

  void serve_with(const ApiSettings& settings) {
    api = std::make_unique<Api>(service.jobs, service.store, catalog, metrics, settings);
  }
  HttpReply ask(const std::string& method, const std::string& path, const std::string& body = "") {
    HttpRequest request{method, path, {}, "application/json", "", "127.0.0.1:8000", "", "", body};
    if (const size_t mark = path.find('?'); mark != std::string::npos) {
      request.path = path.substr(0, mark);
      const size_t equals = path.find('=');
      request.query[path.substr(mark + 1, equals - mark - 1)] = path.substr(equals + 1);
    }
    return api->answer(request);
  }
  std::string create() {
    const HttpReply reply = ask("POST", "/v1/videos", R"({"prompt":"a cat","size":"64x64","seconds":"1","fps":8})");
    EXPECT_EQ(reply.status, 200) << reply.body;
    return Json::parse(reply.body)["id"];
  }
  /// A completed one, of these bytes.
  std::string made(const std::string& bytes) {
    const std::string id = create();
    service.jobs.take();
    std::ofstream(service.store.video_path(id)) << bytes;
    service.jobs.complete(id, {1.5, 0.4, {}});
    return id;
  }

  test::Folder folder;
  test::Service service{folder.path, {.max_queue = 2}};
  Catalog catalog{{{"", tiny_wan()}}, {}, {}, {}};
  Metrics metrics{1};
  std::unique_ptr<Api> api;
};

Json error_of(const HttpReply& reply) {
  return Json::parse(reply.body)["error"];
}

std::string header(const HttpReply& reply, const std::string& name) {
  for (const auto& [each, value] : reply.headers) {
    if (each == name) return value;
  }
  return "";
}

TEST_F(ApiTest, CreatesAndRetrievesAVideo) {
  const std::string id = create();
  const HttpReply reply = ask("GET", "/v1/videos/" + id);
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(header(reply, "openai-poll-after-ms"), "500");
  const Json video = Json::parse(reply.body);
  EXPECT_EQ(video["id"], id);
  EXPECT_EQ(video["object"], "video");
  EXPECT_EQ(video["status"], "queued");
  EXPECT_EQ(video["progress"], 0);
  EXPECT_EQ(video["size"], "64x64");
  EXPECT_EQ(video["seconds"], "1");
  EXPECT_EQ(video["model"], "tiny-wan");
  EXPECT_EQ(video["prompt"], "a cat");
  EXPECT_TRUE(video["error"].is_null());
  EXPECT_TRUE(video["completed_at"].is_null());
  service.jobs.take();
  service.jobs.update(id, "denoise", 0.999);
  const Json running = Json::parse(ask("GET", "/v1/videos/" + id).body);
  EXPECT_EQ(running["status"], "in_progress");
  EXPECT_EQ(running["progress"], 99);
  EXPECT_EQ(running["stage"], "denoise");
}

TEST_F(ApiTest, AFailedJobIsNoFailedRequest) {
  const std::string id = create();
  service.jobs.take();
  service.jobs.fail(id, {"plan_mismatch", "made for another size"});
  const HttpReply reply = ask("GET", "/v1/videos/" + id);
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(Json::parse(reply.body)["error"]["code"], "plan_mismatch");
  const HttpReply content = ask("GET", "/v1/videos/" + id + "/content");
  EXPECT_EQ(content.status, 422);
  EXPECT_EQ(error_of(content)["message"], "made for another size");
}

TEST_F(ApiTest, ContentIsThereOnceItIsCompleted) {
  const std::string waiting = create();
  EXPECT_EQ(ask("GET", "/v1/videos/" + waiting + "/content").status, 404);
  EXPECT_EQ(error_of(ask("GET", "/v1/videos/" + waiting + "/content"))["code"], "video_not_ready");
  service.jobs.remove(waiting);
  const std::string id = made("0123456789");
  const HttpReply whole = ask("GET", "/v1/videos/" + id + "/content");
  EXPECT_EQ(whole.status, 200);
  EXPECT_EQ(whole.content_type, "video/mp4");
  ASSERT_TRUE(whole.file);
  EXPECT_EQ(whole.file->length, 10U);
  EXPECT_EQ(ask("GET", "/v1/videos/" + id + "/content?variant=thumbnail").status, 400);
  EXPECT_EQ(ask("GET", "/v1/videos/" + id + "/content?variant=video").status, 200);
  HttpRequest request{"GET", "/v1/videos/" + id + "/content", {}, "", "", "localhost", "", "bytes=2-4", ""};
  const HttpReply part = api->answer(request);
  EXPECT_EQ(part.status, 206);
  EXPECT_EQ(part.file->offset, 2U);
  EXPECT_EQ(part.file->length, 3U);
  EXPECT_EQ(header(part, "Content-Range"), "bytes 2-4/10");
  request.range = "bytes=10-";
  const HttpReply beyond = api->answer(request);
  EXPECT_EQ(beyond.status, 416);
  EXPECT_EQ(header(beyond, "Content-Range"), "bytes */10");
  std::filesystem::remove(service.store.video_path(id));
  EXPECT_EQ(error_of(ask("GET", "/v1/videos/" + id + "/content"))["code"], "file_missing");
}

TEST_F(ApiTest, DeletesAVideo) {
  const std::string id = create();
  const Json reply = Json::parse(ask("DELETE", "/v1/videos/" + id).body);
  EXPECT_EQ(reply, (Json{{"id", id}, {"object", "video.deleted"}, {"deleted", true}}));
  EXPECT_EQ(ask("DELETE", "/v1/videos/" + id).status, 404);
  EXPECT_EQ(error_of(ask("GET", "/v1/videos/" + id))["code"], "video_not_found");
}

TEST_F(ApiTest, ListsVideos) {
  EXPECT_EQ(ask("GET", "/v1/videos").body,
            R"({"object":"list","data":[],"first_id":null,"last_id":null,"has_more":false})");
  const std::string first = create(), second = create();
  Json list = Json::parse(ask("GET", "/v1/videos").body);
  EXPECT_EQ(list["data"].size(), 2U);
  EXPECT_EQ(list["first_id"], second);
  EXPECT_EQ(list["last_id"], first);
  list = Json::parse(ask("GET", "/v1/videos?order=asc").body);
  EXPECT_EQ(list["first_id"], first);
  list = Json::parse(ask("GET", "/v1/videos?limit=1").body);
  EXPECT_EQ(list["has_more"], true);
  EXPECT_EQ(ask("GET", "/v1/videos?limit=0").status, 400);
  EXPECT_EQ(ask("GET", "/v1/videos?limit=101").status, 400);
  EXPECT_EQ(ask("GET", "/v1/videos?order=up").status, 400);
  EXPECT_EQ(ask("GET", "/v1/videos?after=nobody").status, 404);
}

TEST_F(ApiTest, ErrorsAreAsOpenAIsClientsReadThem) {
  const HttpReply reply = ask("POST", "/v1/videos", R"({"prompt":"a","width":65})");
  EXPECT_EQ(reply.status, 400);
  EXPECT_EQ(reply.content_type, "application/json");
  const Json error = error_of(reply);
  EXPECT_EQ(error["type"], "invalid_request_error");
  EXPECT_EQ(error["param"], "width");
  EXPECT_TRUE(error["code"].is_null());
  EXPECT_THAT(error["message"], HasSubstr("multiple of"));
  create();
  create();
  const HttpReply full = ask("POST", "/v1/videos", R"({"prompt":"a"})");
  EXPECT_EQ(full.status, 429);
  EXPECT_EQ(error_of(full)["code"], "queue_full");
  EXPECT_EQ(error_of(full)["type"], "rate_limit_error");
  EXPECT_EQ(header(full, "Retry-After"), "5");
}

TEST_F(ApiTest, TellsAWrongMethodFromAWrongPath) {
  EXPECT_EQ(ask("PUT", "/v1/videos", "{}").status, 405);
  EXPECT_EQ(ask("POST", "/v1/videos/x", "{}").status, 405);
  EXPECT_EQ(ask("DELETE", "/v1/videos/x/content").status, 405);
  EXPECT_EQ(ask("POST", "/health", "{}").status, 405);
  EXPECT_EQ(ask("GET", "/v1/videos/x/y").status, 404);
  EXPECT_EQ(ask("GET", "/v1").status, 404);
  EXPECT_EQ(ask("GET", "/v1/videos/../../etc/passwd").status, 404);
  EXPECT_EQ(ask("GET", "/v1/models/nobody").status, 404);
}

TEST_F(ApiTest, DescribesItself) {
  const Json models = Json::parse(ask("GET", "/v1/models").body);
  EXPECT_EQ(models["data"][0]["id"], "tiny-wan");
  EXPECT_EQ(Json::parse(ask("GET", "/v1/models/tiny-wan").body)["object"], "model");
  create();
  EXPECT_EQ(Json::parse(ask("GET", "/health").body)["queued"], 1);
  metrics.count_reply(200);
  const std::string text = ask("GET", "/metrics").body;
  EXPECT_THAT(text, HasSubstr("calibatt_jobs{state=\"queued\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("calibatt_http_replies_total{status=\"200\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("# TYPE calibatt_jobs_created_total counter\ncalibatt_jobs_created_total 1\n"));
  service.jobs.stop();
  EXPECT_EQ(ask("GET", "/health").status, 503);
}

TEST_F(ApiTest, IsNotHealthyWithoutItsFolder) {
  EXPECT_EQ(Json::parse(ask("GET", "/health").body)["problem"], nullptr);
  std::filesystem::rename(folder.path, folder.path + ".away");
  std::filesystem::create_directory(folder.path);
  EXPECT_EQ(ask("GET", "/health").status, 503);
  EXPECT_EQ(Json::parse(ask("GET", "/health").body)["status"], "failing");
  EXPECT_THAT(Json::parse(ask("GET", "/health").body)["problem"].get<std::string>(), HasSubstr("removed or replaced"));
  std::filesystem::remove(folder.path);
  EXPECT_EQ(ask("GET", "/health").status, 503);
  std::filesystem::rename(folder.path + ".away", folder.path);
  EXPECT_EQ(ask("GET", "/health").status, 200);
}

TEST_F(ApiTest, AKeyIsAskedForWhereThereIsOne) {
  serve_with({"secret", true, "the page"});
  EXPECT_EQ(ask("GET", "/v1/videos").status, 401);
  EXPECT_EQ(header(ask("GET", "/metrics"), "WWW-Authenticate"), "Bearer");
  EXPECT_EQ(ask("GET", "/health").status, 200);
  EXPECT_EQ(ask("GET", "/").body, "the page");
  for (const auto& [key, status] : std::map<std::string, int>{
           {"Bearer secret", 200}, {"Bearer secre", 401}, {"Bearer secret2", 401}, {"secret", 401}, {"", 401}}) {
    const HttpRequest request{"GET", "/v1/videos", {}, "", key, "any.example", "", "", ""};
    EXPECT_EQ(api->answer(request).status, status) << key;
    EXPECT_EQ(api->answer_to_head(request)->status, status) << key;
  }
}

TEST_F(ApiTest, PagesOfOtherSitesAreRefused) {
  HttpRequest request{"GET", "/v1/videos", {}, "", "", "127.0.0.1:8000", "http://127.0.0.1:8000", "", ""};
  EXPECT_EQ(api->answer(request).status, 200);
  request.origin = "http://evil.example";
  EXPECT_EQ(error_of(api->answer(request))["code"], "other_origin");
  request.origin = "null";
  EXPECT_EQ(api->answer(request).status, 403);
  // A name that somebody else lets point here.
  request.host = "evil.example:8000";
  request.origin = "http://evil.example:8000";
  EXPECT_EQ(error_of(api->answer(request))["code"], "other_host");
  for (const char* host : {"localhost", "localhost:8000", "[::1]:8000", "[::1]", "127.0.0.1"}) {
    request.host = host;
    request.origin = "";
    EXPECT_EQ(api->answer(request).status, 200) << host;
  }
}

TEST_F(ApiTest, ABodyIsReadForNewVideosAlone) {
  const auto answered = [&](const std::string& method, const std::string& path) {
    return api->answer_to_head({method, path, {}, "", "", "localhost", "", "", ""}).has_value();
  };
  EXPECT_FALSE(answered("POST", "/v1/videos"));
  EXPECT_TRUE(answered("POST", "/v1/other"));
  EXPECT_TRUE(answered("PUT", "/v1/videos"));
  EXPECT_TRUE(answered("GET", "/v1/videos"));
  serve_with({"secret", true, ""});
  EXPECT_TRUE(answered("POST", "/v1/videos"));
}

}  // namespace
}  // namespace calibatt::serve
