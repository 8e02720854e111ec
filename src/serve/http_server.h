#pragma once

#include <memory>
#include <string>

#include "serve/api.h"
#include "serve/connection_limits.h"
#include "serve/metrics.h"

namespace calibatt::serve {

/// HTTP/1.1 on a socket, in front of an Api: a thread for each connection, up to a limit.
class HttpServer {
 public:
  HttpServer(Api& api, Metrics& metrics, const ConnectionLimits& limits);
  ~HttpServer();  ///< as stop

  /// Takes the address; port 0: any that is free. Returns the port. Throws Error(kIo).
  int bind(const std::string& host, int port);
  void start();
  /// Takes no more requests, waits a moment for replies that are on their way, and ends what is left.
  void stop();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace calibatt::serve
