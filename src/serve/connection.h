#pragma once

#include <httplib.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <string>

#include "serve/connection_limits.h"

namespace calibatt::serve {

/// A client's socket, with limits on whole requests. (cpp-httplib's own are on single reads and writes, so that one
/// byte every few seconds keeps it busy without end.) One thread uses it.
class Connection : public httplib::Stream {
 public:
  Connection(int socket, const ConnectionLimits& limits) : socket_(socket), limits_(limits) {}

  /// Waits for a request. False: there is none, and the connection is to be closed.
  bool wait_for_request();
  /// The headers are read; the body begins.
  void begin_body();
  /// The request was read; time for the reply begins with its first byte.
  void begin_reply();
  /// Ends the connection so that the reply arrives, even where the request was not read to its end.
  void close_gently();
  /// Something went over a limit, or the client is gone: nothing more can be read or written.
  bool broken() const { return broken_; }

  bool is_readable() const override;
  bool is_writable() const override;
  ssize_t read(char* data, size_t size) override;
  ssize_t write(const char* data, size_t size) override;
  void get_remote_ip_and_port(std::string& ip, int& port) const override;
  // Versions of cpp-httplib before 0.11 do not ask for it.
  virtual void get_local_ip_and_port(std::string& ip, int& port) const;  // NOLINT(modernize-use-override)
  socket_t socket() const override { return socket_; }

 private:
  using Clock = std::chrono::steady_clock;
  bool wait(short events, Clock::time_point until) const;
  bool fill();

  const int socket_;
  const ConnectionLimits limits_;
  std::array<char, 16384> buffer_{};
  size_t begin_ = 0, end_ = 0;  ///< of what was received and not yet read, in the buffer
  Clock::time_point deadline_{};
  size_t left_to_read_ = 0;  ///< bytes that the request may still have
  size_t written_ = 0;       ///< bytes of the reply
  bool replying_ = false, broken_ = false;
};

}  // namespace calibatt::serve
