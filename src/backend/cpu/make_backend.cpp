#include "backend/cpu/make_backend.h"

#include <algorithm>
#include <mutex>
#include <string>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "base/error.h"

namespace calibatt {
namespace {

struct Choices {
  std::mutex mutex;
  std::vector<BackendChoice> added;
};

Choices& choices() {
  static Choices all;
  return all;
}

std::vector<BackendChoice> added_choices() {
  const std::lock_guard lock(choices().mutex);
  return choices().added;
}

std::unique_ptr<Backend> make(const BackendChoice& choice, int device, const std::string& flag) {
  try {
    return choice.make(device);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kUsage) throw;
    throw Error(ErrorKind::kUsage, flag + error.what());
  }
}

}  // namespace

void add_backend(const BackendChoice& choice) {
  const std::lock_guard lock(choices().mutex);
  auto& added = choices().added;
  const auto same_name = [&](const BackendChoice& known) { return known.name == choice.name; };
  if (std::ranges::none_of(added, same_name)) added.insert(added.begin(), choice);
}

bool computes_on_host(std::string_view name) {
  const std::vector<BackendChoice> added = added_choices();
  return name == "cpu" ||
         (name == "auto" && std::ranges::none_of(added, [](const auto& each) { return each.usable(); }));
}

std::unique_ptr<Backend> make_backend(std::string_view name, int device, const std::string& asked) {
  const std::string flag = asked.empty() ? "" : asked + ": ";
  std::string known = "cpu";
  for (const BackendChoice& choice : added_choices()) {
    if (name == choice.name || (name == "auto" && choice.usable())) return make(choice, device, flag);
    known += ", " + std::string(choice.name);
  }
  if ((name == "cpu" || name == "auto") && device == 0) return cpu::make_cpu_backend();
  if (name == "cpu") {
    throw Error(ErrorKind::kUsage, flag + "the backend cpu has no device " + std::to_string(device) +
                                       ": its only one is 0, which ranks can share to be tested: --device 0,0. To run "
                                       "on GPUs, leave --backend cpu out");
  }
  if (name == "auto") {
    throw Error(ErrorKind::kUsage, flag + "there is no GPU " + std::to_string(device) +
                                       ": this machine or build has none, and the backend is cpu; leave it out");
  }
  std::string message = "backend: there is no \"" + std::string(name) + "\"; this build has: " + known;
  if (name == "cuda") message += ". A build with it needs nvcc 13: cmake --preset cuda";
  throw Error(ErrorKind::kUsage, message);
}

}  // namespace calibatt
