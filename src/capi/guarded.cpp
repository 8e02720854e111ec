#include "capi/guarded.h"

#include <cstdlib>
#include <exception>
#include <new>
#include <string_view>

namespace calibatt::capi {
namespace {

thread_local std::string last_error;

calibatt_status status_of(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kUsage:
      return CALIBATT_USAGE;
    case ErrorKind::kNotFound:
      return CALIBATT_NOT_FOUND;
    case ErrorKind::kUnreadable:
      return CALIBATT_UNREADABLE;
    case ErrorKind::kFormat:
      return CALIBATT_FORMAT;
    case ErrorKind::kMismatch:
      return CALIBATT_MISMATCH;
    case ErrorKind::kIo:
      return CALIBATT_IO;
    case ErrorKind::kNumeric:
      return CALIBATT_NUMERIC;
    case ErrorKind::kDevice:
      return CALIBATT_DEVICE;
  }
  return CALIBATT_INTERNAL;
}

/// The library's messages name the command line's flags. on_mismatch is an argument here.
std::string in_terms_of_c(std::string message) {
  constexpr std::string_view kFlag = "--on-mismatch", kArgument = "on_mismatch";
  for (size_t at; (at = message.find(kFlag)) != std::string::npos;) message.replace(at, kFlag.size(), kArgument);
  return message;
}

}  // namespace

calibatt_status failed(calibatt_status status, const char* message) noexcept {
  try {
    last_error = message;
  } catch (...) {
    last_error.clear();  // no memory even for that
  }
  return status;
}

calibatt_status status_of_current_exception() noexcept {
  try {
    throw;
  } catch (const Cancelled& cancelled) {
    return failed(CALIBATT_CANCELLED, cancelled.what.c_str());
  } catch (const Error& error) {
    return failed(status_of(error.kind()), in_terms_of_c(error.what()).c_str());
  } catch (const std::bad_alloc&) {
    return failed(CALIBATT_INTERNAL, "out of host memory");
  } catch (const std::exception& error) {
    return failed(CALIBATT_INTERNAL, error.what());
  } catch (...) {
    return failed(CALIBATT_INTERNAL, "an unknown fault of the library");
  }
}

void refuse(const std::string& message) {
  throw Error(ErrorKind::kUsage, message);
}

void require_in(const char* name, int64_t value, int64_t lowest, int64_t highest) {
  if (value >= lowest && value <= highest) return;
  refuse(std::string(name) + ": is " + std::to_string(value) + ", and must be " +
         (highest >= INT32_MAX ? "at least " + std::to_string(lowest)
                               : "from " + std::to_string(lowest) + " to " + std::to_string(highest)));
}

char* copied(const std::string& text) {
  auto* copy = static_cast<char*>(std::malloc(text.size() + 1));
  if (copy == nullptr) throw std::bad_alloc();
  std::memcpy(copy, text.c_str(), text.size() + 1);
  return copy;
}

}  // namespace calibatt::capi

const char* calibatt_last_error(void) {
  return calibatt::capi::last_error.c_str();
}

void calibatt_string_free(char* text) {
  std::free(text);
}
