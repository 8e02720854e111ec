#include "serve/connection.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace calibatt::serve {

using std::chrono::milliseconds;

bool Connection::wait(short events, Clock::time_point until) const {
  while (true) {
    const auto left = std::chrono::duration_cast<milliseconds>(until - Clock::now()).count();
    if (left <= 0) return false;
    pollfd state{socket_, events, 0};
    const int ready = ::poll(&state, 1, static_cast<int>(std::min<int64_t>(left, 60000)));
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) return false;
  }
}

bool Connection::wait_for_request() {
  deadline_ = Clock::now() + limits_.idle;
  left_to_read_ = limits_.head_bytes;
  replying_ = false;
  written_ = 0;
  if (begin_ == end_ && !fill()) return false;
  deadline_ = Clock::now() + limits_.head;
  return true;
}

void Connection::begin_body() {
  replying_ = false;  // "100 Continue" was none
  deadline_ = Clock::now() + limits_.body;
  left_to_read_ = limits_.body_bytes + limits_.head_bytes;  // chunks have headers, too
}

void Connection::begin_reply() {
  replying_ = true;
  written_ = 0;
  deadline_ = Clock::now() + limits_.reply;
}

bool Connection::fill() {
  if (broken_ || !wait(POLLIN, deadline_)) {
    broken_ = true;
    return false;
  }
  ssize_t count = 0;
  do {
    count = ::recv(socket_, buffer_.data(), buffer_.size(), 0);
  } while (count < 0 && errno == EINTR);
  if (count <= 0) {
    broken_ = true;
    return false;
  }
  begin_ = 0;
  end_ = static_cast<size_t>(count);
  return true;
}

void Connection::close_gently() {
  ::shutdown(socket_, SHUT_WR);
  // What the client still sends is read for a while: closed before, the socket would take the reply back.
  const Clock::time_point until = Clock::now() + milliseconds(500);
  ssize_t count = 1;
  while (!broken_ && count > 0 && wait(POLLIN, until)) count = ::recv(socket_, buffer_.data(), buffer_.size(), 0);
}

bool Connection::is_readable() const {
  return !broken_ && (begin_ < end_ || wait(POLLIN, deadline_));
}

bool Connection::is_writable() const {
  return !broken_ && wait(POLLOUT, Clock::now() + limits_.reply);
}

ssize_t Connection::read(char* data, size_t size) {
  if (left_to_read_ == 0) broken_ = true;
  if (broken_ || (begin_ == end_ && !fill())) return -1;
  // A trickle of bytes keeps `fill` content; the deadline is looked at here, too.
  if (Clock::now() > deadline_) {
    broken_ = true;
    return -1;
  }
  const size_t count = std::min({size, end_ - begin_, left_to_read_});
  std::memcpy(data, buffer_.data() + begin_, count);
  begin_ += count;
  left_to_read_ -= count;
  return static_cast<ssize_t>(count);
}

ssize_t Connection::write(const char* data, size_t size) {
  if (!replying_) begin_reply();
  const milliseconds for_bytes(written_ * 1000 / limits_.slowest_bytes_per_second);
  if (broken_ || !wait(POLLOUT, deadline_ + for_bytes)) {
    broken_ = true;
    return -1;
  }
  ssize_t count = 0;
  do {
    count = ::send(socket_, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
  } while (count < 0 && errno == EINTR);
  if (count < 0 && errno == EAGAIN) return 0;
  if (count < 0) broken_ = true;
  if (count > 0) written_ += static_cast<size_t>(count);
  return count;
}

namespace {

void read_address(const sockaddr_storage& address, std::string& ip, int& port) {
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (address.ss_family == AF_INET) {
    const auto& four = reinterpret_cast<const sockaddr_in&>(address);
    ::inet_ntop(AF_INET, &four.sin_addr, text.data(), text.size());
    port = ntohs(four.sin_port);
  } else if (address.ss_family == AF_INET6) {
    const auto& six = reinterpret_cast<const sockaddr_in6&>(address);
    ::inet_ntop(AF_INET6, &six.sin6_addr, text.data(), text.size());
    port = ntohs(six.sin6_port);
  }
  ip = text.data();
}

}  // namespace

void Connection::get_remote_ip_and_port(std::string& ip, int& port) const {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  if (::getpeername(socket_, reinterpret_cast<sockaddr*>(&address), &size) == 0) read_address(address, ip, port);
}

void Connection::get_local_ip_and_port(std::string& ip, int& port) const {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  if (::getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &size) == 0) read_address(address, ip, port);
}

}  // namespace calibatt::serve
