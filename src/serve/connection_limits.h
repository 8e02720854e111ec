#pragma once

#include <chrono>
#include <cstddef>

namespace calibatt::serve {

/// How long a client may take, and how much it may send before it has said what it wants.
struct ConnectionLimits {
  std::chrono::milliseconds idle{5000};        ///< without a request
  std::chrono::milliseconds head{10000};       ///< from the first byte of a request to the end of its headers
  std::chrono::milliseconds body{60000};       ///< from there to the end of its body
  std::chrono::milliseconds reply{30000};      ///< beside what the slowest client takes for the bytes
  size_t slowest_bytes_per_second = 16 << 10;  ///< a client that takes a reply more slowly is given up
  size_t head_bytes = 32 << 10;
  size_t body_bytes = (16 << 20) + (1 << 20);  ///< a picture and the fields
  size_t connections = 256;                    ///< at a time; others are sent away
};

}  // namespace calibatt::serve
