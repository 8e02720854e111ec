#include "capi/guarded.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <exception>
#include <new>
#include <string_view>

#include "calibatt/calibration_settings.h"

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

/// What a C program gives where the command line has a flag that is no setting of a calibration.
constexpr std::pair<std::string_view, std::string_view> kArguments[] = {
    {"on-mismatch", "on_mismatch"},
    {"profile", "profile_dir"},
    {"prompt-range", "calibration.first_prompt, end_prompt"},
    {"seed", "prompt.seed"},
    {"width", "run.video_width"},
    {"height", "run.video_height"},
    {"video-frames", "run.video_frames"},
    {"steps", "run.num_steps"},
    {"sigmas", "run.sigmas"},
    {"timesteps", "run.sigmas"},
    {"scheduler", "run.scheduler"},
    {"flow-shift", "run.flow_shift"},
    {"cfg-scale", "run.guidance_scale"},
    {"cfg-scale-2", "run.second_guidance_scale"},
};

/// Of calibatt_compile alone.
constexpr std::string_view kEightBitSettings[] = {"weights-dtype", "keep-layers", "attention-dtype"};

/// Empty: a C program has nothing of this name.
std::string argument_of_flag(std::string_view flag) {
  for (const auto& [name, argument] : kArguments) {
    if (name == flag) return std::string(argument);
  }
  if (std::ranges::find(kEightBitSettings, flag) != std::end(kEightBitSettings)) return "settings." + std::string(flag);
  const auto same = [&](const CalibrationSetting& setting) { return setting.name == flag; };
  return std::ranges::any_of(calibration_settings(), same) ? "settings." + std::string(flag) : "";
}

/// Where a word begins that is no part of a path or of another word.
bool begins_word(const std::string& text, size_t at) {
  if (at == 0) return true;
  const auto before = static_cast<unsigned char>(text[at - 1]);
  return before < 128 && std::isalnum(before) == 0 && std::string_view("_-/.").find(text[at - 1]) == std::string::npos;
}

}  // namespace

std::string in_terms_of_c(const std::string& message) {
  std::string result;
  size_t done = 0;
  for (size_t at = 0; (at = message.find("--", at)) != std::string::npos; at += 2) {
    const auto in_name = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'; };
    const auto begin = message.begin() + static_cast<std::ptrdiff_t>(at) + 2;
    const std::string flag(begin, std::find_if_not(begin, message.end(), in_name));
    const std::string argument = begins_word(message, at) ? argument_of_flag(flag) : "";
    if (argument.empty()) continue;
    result += message.substr(done, at - done) + argument;
    done = at + 2 + flag.size();
  }
  return result + message.substr(done);
}

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
