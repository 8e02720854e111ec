#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "backend/backend.h"

namespace calibatt {

/// A backend that make_backend can make beside "cpu": whoever links a device's floor adds it.
struct BackendChoice {
  std::string_view name;
  bool (*usable)();                              ///< such a device is there
  std::unique_ptr<Backend> (*make)(int device);  ///< throws Error(kDevice, kUsage) when not, listing the devices
};
/// Adding a name twice is adding it once. The last one added is the first that "auto" looks at.
void add_backend(const BackendChoice& choice);

/// The backend of this name; "auto": the first usable device's, else the CPU's. device: index, for those that have
/// several; asked: the flag that named it, for messages ("--device 5"). Throws Error(kUsage) naming those there are.
std::unique_ptr<Backend> make_backend(std::string_view name, int device = 0, const std::string& asked = {});

/// Whether make_backend's would be the CPU's.
bool computes_on_host(std::string_view name);

}  // namespace calibatt
