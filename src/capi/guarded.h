#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>
#include <utility>

#include "base/error.h"
#include "calibatt/c_api.h"

/// What stands between the C functions and the C++ behind them: no exception gets out, and nothing that cannot be gets
/// in.
namespace calibatt::capi {

/// Thrown where a callback of the caller's asked to stop.
struct Cancelled {
  std::string what;
};

/// The status of the exception that is being handled; its message becomes the thread's last error.
calibatt_status status_of_current_exception() noexcept;
/// The library's messages name the command line's flags. Here they are arguments: "run.num_steps", "settings.block-q".
std::string in_terms_of_c(const std::string& message);
/// Remembers a message as the thread's last error.
calibatt_status failed(calibatt_status status, const char* message) noexcept;

/// Runs the body of a C function. What the body writes to the caller's memory comes last in it, so that a failure
/// leaves that as it was.
template <class Body>
calibatt_status guarded(const Body& body) noexcept {
  try {
    body();
    return CALIBATT_OK;
  } catch (...) {
    return status_of_current_exception();
  }
}

[[noreturn]] void refuse(const std::string& message);  ///< Error(kUsage)

/// Throws Error(kUsage) "NAME: is NULL" for a pointer that is none.
template <class T>
T& required(T* pointer, const char* name) {
  if (pointer == nullptr) refuse(std::string(name) + ": is NULL");
  return *pointer;
}

/// Throws Error(kUsage), naming the member, unless lowest ≤ value ≤ highest.
void require_in(const char* name, int64_t value, int64_t lowest, int64_t highest);

/// How long a struct was when it was first published.
template <class Struct>
inline constexpr size_t kFirstSize = sizeof(Struct);
template <>
inline constexpr size_t kFirstSize<calibatt_calibration> = offsetof(calibatt_calibration, conditions);
template <>
inline constexpr size_t kFirstSize<calibatt_run> = offsetof(calibatt_run, reuses_steps);

/// A struct of the caller's as this version knows it: what one that was compiled before lacks is zero. One that was
/// compiled when the struct was longer may set nothing that this version does not know.
template <class Struct>
Struct taken(const Struct* from, const char* name) {
  const size_t size = required(from, name).struct_size;
  bool known = size == kFirstSize<Struct> || (size >= sizeof(Struct) && size <= size_t{1} << 16);
  for (size_t i = sizeof(Struct); known && i < size; ++i) known = reinterpret_cast<const char*>(from)[i] == 0;
  if (!known) {
    refuse(std::string(name) + ".struct_size: is " + std::to_string(size) + ", and this library knows " +
           std::to_string(sizeof(Struct)) + " bytes; set it to sizeof the struct, and everything unused to 0");
  }
  Struct copy{};
  std::memcpy(static_cast<void*>(&copy), from, std::min(size, sizeof(Struct)));
  copy.struct_size = sizeof(Struct);
  return copy;
}

/// Throws Error(kUsage) for a struct that is to be written and is not as long as this version's.
template <class Struct>
void require_size(const Struct& to, const char* name) {
  if (to.struct_size == sizeof(Struct)) return;
  refuse(std::string(name) + ".struct_size: is " + std::to_string(to.struct_size) + ", and this library writes " +
         std::to_string(sizeof(Struct)) + " bytes; set it to sizeof the struct");
}

/// A copy for calibatt_string_free.
char* copied(const std::string& text);

}  // namespace calibatt::capi
