#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace calibatt::serve {

/// A request that is refused: an HTTP status, and what OpenAI's error object says.
struct ApiError : std::runtime_error {
  ApiError(int http_status, const std::string& message, std::string field = "", std::string short_code = "")
      : std::runtime_error(message), status(http_status), param(std::move(field)), code(std::move(short_code)) {}

  int status;
  std::string param;  ///< the field of the request that is wrong; empty: none alone
  std::string code;   ///< for programs, such as "queue_full"; empty: none
};

}  // namespace calibatt::serve
