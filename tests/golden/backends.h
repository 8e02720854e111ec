#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "backend/cpu/make_backend.h"
#include "pipeline/device_backends.h"

namespace calibatt {

/// The backends that are held against diffusers.
inline const auto kBackends = testing::Values(std::string("cpu"), std::string("cuda"));

/// For all tests of the binary, before the first one runs.
inline const bool kDeviceBackendsAdded = (add_device_backends(), true);

/// The backend of this name; null where this build or this machine has none, and the test is to be skipped.
inline std::unique_ptr<Backend> backend_or_null(const std::string& name) {
  if (name != "cpu" && make_backend("auto")->name() != name) return nullptr;
  return make_backend(name);
}
inline constexpr const char* kNoDevice = "no CUDA device";

}  // namespace calibatt
