#include "serve/http_server.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <mutex>
#include <set>
#include <string_view>
#include <thread>
#include <utility>

#include "calibatt/error.h"
#include "serve/connection.h"
#include "serve/request/api_error.h"

namespace calibatt::serve {
namespace {

/// What a thread knows of the request that it serves, beside what httplib's handlers are told.
struct Exchange {
  Connection* connection = nullptr;
  HttpRequest request;
  bool has_head = false;    ///< its headers are read and make sense
  bool has_body = false;    ///< something follows the headers
  bool has_length = false;  ///< and says how long it is
  bool encoded = false;     ///< and is compressed
  uint64_t length = 0;
  bool body_read = false;
};
thread_local Exchange* exchange = nullptr;

/// Set while the accepting thread sends a client away.
thread_local bool busy = false;

/// A thread for each connection. (httplib's own pool has a fixed number of threads: so many clients that wait would
/// keep all others out.)
class ConnectionThreads : public httplib::TaskQueue {
 public:
  explicit ConnectionThreads(size_t limit) : limit_(limit) {}

  /// Returns whether it was taken, as newer versions of httplib ask, or nothing, as older ones do.
  decltype(std::declval<httplib::TaskQueue&>().enqueue({})) enqueue(std::function<void()> serve) override {
    serve_or_send_away(serve);
    return decltype(enqueue({}))(true);
  }

  void shutdown() override {
    std::unique_lock lock(mutex_);
    ended_.wait(lock, [this] { return running_ == 0; });
  }

 private:
  void serve_or_send_away(const std::function<void()>& serve) {
    {
      const std::lock_guard lock(mutex_);
      ++running_;
      if (running_ <= limit_ && start(serve)) return;
      --running_;
    }
    busy = true;
    serve();
    busy = false;
  }
  bool start(const std::function<void()>& serve) {
    try {
      std::thread([this, serve] {
        serve();
        const std::lock_guard lock(mutex_);
        --running_;
        ended_.notify_all();
      }).detach();
      return true;
    } catch (const std::system_error&) {  // no more threads
      return false;
    }
  }

  const size_t limit_;
  std::mutex mutex_;
  std::condition_variable ended_;
  size_t running_ = 0;
};

void send_away(int socket) {
  constexpr std::string_view kReply =
      "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
  (void)::send(socket, kReply.data(), kReply.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
}

/// Takes from the request what the Api reads, and what httplib is not to act on: it would read multipart bodies, ranges
/// and compressed content itself, with no limits.
void read_head(httplib::Request& from, Exchange& to) {
  HttpRequest& request = to.request;
  request.method = from.method == "HEAD" ? "GET" : from.method;
  request.path = from.path;
  for (const auto& [name, value] : from.params) request.query[name] = value;
  request.content_type = from.get_header_value("Content-Type");
  request.authorization = from.get_header_value("Authorization");
  request.host = from.get_header_value("Host");
  request.origin = from.get_header_value("Origin");
  request.range = from.get_header_value("Range");
  const bool chunked = from.has_header("Transfer-Encoding");
  const std::string length = from.get_header_value("Content-Length");
  to.has_length = !length.empty();
  to.length = to.has_length ? std::strtoull(length.c_str(), nullptr, 10) : 0;
  to.has_body = chunked || to.length > 0;
  const std::string encoding = from.get_header_value("Content-Encoding");
  to.encoded = !encoding.empty() && encoding != "identity";
  // Two statements about where a request ends, or one that is no number, let a client hide a request in another's body.
  const bool number = length.find_first_not_of("0123456789") == std::string::npos && length.size() < 19;
  to.has_head = number && from.get_header_value_count("Content-Length") <= 1 && !(chunked && to.has_length) &&
                (!chunked || from.get_header_value("Transfer-Encoding") == "chunked");
  from.ranges.clear();
  for (const char* name : {"Content-Type", "Content-Encoding", "Accept-Encoding", "Range"}) from.headers.erase(name);
}

/// The bytes of a file, as httplib asks for them.
class FileReader {
 public:
  explicit FileReader(const FilePart& part)
      : descriptor_(::open(part.path.c_str(), O_RDONLY | O_CLOEXEC)), offset_(part.offset) {}
  ~FileReader() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  FileReader(const FileReader&) = delete;
  FileReader& operator=(const FileReader&) = delete;
  bool is_open() const { return descriptor_ >= 0; }

  bool send(size_t at, size_t length, httplib::DataSink& sink) const {
    std::array<char, 65536> buffer;
    const ssize_t count =
        ::pread(descriptor_, buffer.data(), std::min(length, buffer.size()), static_cast<off_t>(offset_ + at));
    return count > 0 && sink.write(buffer.data(), static_cast<size_t>(count));
  }

 private:
  int descriptor_;
  uint64_t offset_;
};

void write_reply(const HttpReply& reply, httplib::Response& to) {
  const char* const type = reply.content_type.c_str();  // httplib 0.10 takes no strings for names
  to.status = reply.status;
  for (const auto& header : reply.headers) {
    const char* const name = header.first.c_str();
    to.set_header(name, header.second);
  }
  to.set_header("X-Content-Type-Options", "nosniff");
  if (!reply.file || reply.file->length == 0) {
    to.set_content(reply.body, type);
    return;
  }
  const auto file = std::make_shared<FileReader>(*reply.file);
  if (!file->is_open()) {
    write_reply(error_reply(500, "the video's file cannot be opened", "", "file_missing"), to);
    return;
  }
  to.set_content_provider(reply.file->length, type, [file](size_t at, size_t length, httplib::DataSink& sink) {
    return file->send(at, length, sink);
  });
}

/// What is wrong with a body before it is read.
std::optional<HttpReply> body_refusal(const Exchange& now, const ConnectionLimits& limits) {
  if (!now.has_head) return error_reply(400, "the headers do not say clearly how long the request is");
  if (now.encoded) return error_reply(415, "send the request without Content-Encoding: a few bytes could become many");
  if (now.length > limits.body_bytes) {
    return error_reply(413, "the request is larger than " + std::to_string(limits.body_bytes) + " bytes");
  }
  if (now.request.method == "POST" && !now.has_body && !now.has_length) {
    return error_reply(411, "the request has no body, or does not say how long it is (Content-Length)");
  }
  return std::nullopt;
}

}  // namespace

class HttpServer::Impl : public httplib::Server {
 public:
  Impl(Api& api, Metrics& metrics, const ConnectionLimits& limits) : api_(api), metrics_(metrics), limits_(limits) {
    new_task_queue = [this] { return new ConnectionThreads(limits_.connections); };  // httplib deletes it
    set_tcp_nodelay(true);
    set_keep_alive_max_count(kRequestsPerConnection);
    set_keep_alive_timeout(std::chrono::duration_cast<std::chrono::seconds>(limits.idle).count());
    // Not as httplib has it: SO_REUSEPORT would let two services share a port, and each get some of the requests.
    set_socket_options([](int socket) {
      const int yes = 1;
      ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    });
    set_pre_routing_handler([this](const httplib::Request&, httplib::Response& reply) { return answer_head(reply); });
    Post("/v1/videos", [this](const httplib::Request&, httplib::Response& reply, const httplib::ContentReader& body) {
      answer_with_body(reply, body);
    });
    set_error_handler(Handler([this](const httplib::Request& request, httplib::Response& reply) {
      if (!reply.body.empty()) return;
      if (reply.status == 416) return answer_without_range(request, reply);
      write_reply(error_reply(reply.status, "the request cannot be read as HTTP/1.1, or is too long"), reply);
    }));
    set_logger([this](const httplib::Request&, const httplib::Response& reply) { metrics_.count_reply(reply.status); });
  }

  int take_address(const std::string& host, int port) {
    errno = 0;
    const char* const name = host.c_str();
    const int taken = port == 0 ? bind_to_any_port(name) : bind_to_port(name, port) ? port : -1;
    if (taken <= 0) {
      const std::string reason = errno == 0 ? "it is no address of this machine" : std::strerror(errno);
      throw Error(ErrorKind::kIo, "--host " + host + " --port " + std::to_string(port) +
                                      ": cannot listen there: " + reason + "; choose another");
    }
    constexpr int kBacklog = 256;  // httplib's 5 makes clients that come together wait for seconds
    ::listen(svr_sock_, kBacklog);
    return taken;
  }

  void start() {
    thread_ = std::thread([this] { listen_after_bind(); });
    while (!is_running()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }

  void end() {
    if (!thread_.joinable()) return;
    stopping_ = true;
    httplib::Server::stop();
    shut(SHUT_RD);  // who waits for a request stops waiting
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(2);
    while (std::chrono::steady_clock::now() < until && open_sockets() > 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    shut(SHUT_RDWR);
    thread_.join();
  }

 private:
  static constexpr size_t kRequestsPerConnection = 1000;

  bool process_and_close_socket(socket_t socket) override {
    if (busy || stopping_) {
      send_away(socket);
      ::close(socket);
      return false;
    }
    remember(socket, true);
    Connection connection(socket, limits_);
    for (size_t left = kRequestsPerConnection; left > 0 && !stopping_ && connection.wait_for_request(); --left) {
      if (!serve_request(connection, left == 1)) break;
    }
    connection.close_gently();
    remember(socket, false);
    ::close(socket);
    return true;
  }

  /// False: the connection ends after it.
  bool serve_request(Connection& connection, bool last) {
    Exchange now;
    now.connection = &connection;
    exchange = &now;
    bool closed = false;
    const bool answered =
        process(*this, connection, last, closed, [&](httplib::Request& request) { read_head(request, now); });
    exchange = nullptr;
    return answered && !closed && now.has_head && (!now.has_body || now.body_read) && !connection.broken();
  }

  /// Newer versions of httplib want the addresses, which nothing here reads.
  static bool process(auto& server, Connection& connection, bool last, bool& closed,
                      const std::function<void(httplib::Request&)>& read_head) {
    if constexpr (requires { server.process_request(connection, last, closed, read_head); }) {
      return server.process_request(connection, last, closed, read_head);
    } else {
      return server.process_request(connection, "", 0, "", 0, last, closed, read_head);
    }
  }

  HandlerResponse answer_head(httplib::Response& reply) {
    std::optional<HttpReply> known = api_.answer_to_head(exchange->request);
    if (!known || !exchange->has_head) {
      if (std::optional<HttpReply> refusal = body_refusal(*exchange, limits_)) known = std::move(refusal);
    }
    if (!known) return HandlerResponse::Unhandled;
    if (exchange->has_body || !exchange->has_head) reply.set_header("Connection", "close");
    write_reply(*known, reply);
    exchange->connection->begin_reply();
    return HandlerResponse::Handled;
  }

  /// httplib refuses a Range that it cannot read before anybody is asked, and RFC 9110 (14.2) has it ignored.
  void answer_without_range(const httplib::Request& refused, httplib::Response& reply) {
    read_head(const_cast<httplib::Request&>(refused), *exchange);  // its own, which it goes on with: without ranges
    if (answer_head(reply) == HandlerResponse::Handled) return;
    reply.set_header("Connection", "close");  // the body cannot be read from here
    write_reply(error_reply(400, "a request to make a video has no Range; leave that header out"), reply);
  }

  void answer_with_body(httplib::Response& reply, const httplib::ContentReader& body) {
    Connection& connection = *exchange->connection;
    connection.begin_body();
    std::string& bytes = exchange->request.body;
    const bool read = body([&](const char* data, size_t size) {
      if (bytes.size() + size > limits_.body_bytes) return false;
      bytes.append(data, size);
      return true;
    });
    exchange->body_read = read;
    connection.begin_reply();
    if (!read) {
      reply.set_header("Connection", "close");
      write_reply(error_reply(bytes.size() + 1 > limits_.body_bytes ? 413 : 400,
                              "the request's body does not arrive, is malformed or is too long"),
                  reply);
      return;
    }
    write_reply(api_.answer(exchange->request), reply);
  }

  void remember(int socket, bool open) {
    const std::lock_guard lock(mutex_);
    if (open) {
      sockets_.insert(socket);
    } else {
      sockets_.erase(socket);
    }
  }
  size_t open_sockets() {
    const std::lock_guard lock(mutex_);
    return sockets_.size();
  }
  void shut(int how) {
    const std::lock_guard lock(mutex_);
    for (const int socket : sockets_) ::shutdown(socket, how);
  }

  Api& api_;
  Metrics& metrics_;
  const ConnectionLimits limits_;
  std::thread thread_;
  std::atomic<bool> stopping_ = false;
  std::mutex mutex_;
  std::set<int> sockets_;
};

HttpServer::HttpServer(Api& api, Metrics& metrics, const ConnectionLimits& limits)
    : impl_(std::make_unique<Impl>(api, metrics, limits)) {}

HttpServer::~HttpServer() {
  stop();
}

int HttpServer::bind(const std::string& host, int port) {
  return impl_->take_address(host, port);
}

void HttpServer::start() {
  impl_->start();
}

void HttpServer::stop() {
  impl_->end();
}

}  // namespace calibatt::serve
