#include "backend/backend.h"

#include <algorithm>
#include <mutex>
#include <string>
#include <vector>

#include "backend/cpu/cpu_backend.h"

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

}  // namespace

std::shared_ptr<const LinearLayer> Backend::load_linear(const StoredLinear& stored) {
  CALIBATT_ASSERT(stored.streamed == nullptr);
  const Tensor weight =
      stored.weights.size() == 1
          ? stack_rows(stored.weights, stored.weights[0].tensor.dtype() == DType::kBF16 ? DType::kBF16 : DType::kF32)
          : stack_rows(stored.weights, stored.dtype);
  return make_linear(weight, stored.biases.empty() ? Tensor() : stack_rows(stored.biases, DType::kF32), stored.dtype);
}

std::shared_ptr<const LinearLayer> Backend::project_values(const LinearLayer&, ConstHeadsView, int, int) {
  CALIBATT_ASSERT(!"attention_weight_slots is 0");
  return nullptr;
}

void Backend::attention_weights(const AttentionCall&, Tensor&) {
  CALIBATT_ASSERT(!"attention_weight_slots is 0");
}

size_t Backend::streamed_bytes(int64_t out, int64_t in, DType dtype) {
  constexpr size_t kAlignment = 256;  // as device memory has it
  return (static_cast<size_t>(out * in) * dtype_size(dtype) + kAlignment - 1) / kAlignment * kAlignment;
}

void add_backend(const BackendChoice& choice) {
  const std::lock_guard lock(choices().mutex);
  auto& added = choices().added;
  const auto same_name = [&](const BackendChoice& known) { return known.name == choice.name; };
  if (std::ranges::none_of(added, same_name)) added.insert(added.begin(), choice);
}

std::unique_ptr<Backend> make_backend(std::string_view name, int device) {
  std::string known = "cpu";
  for (const BackendChoice& choice : added_choices()) {
    if (name == choice.name || (name == "auto" && choice.usable())) return choice.make(device);
    known += ", " + std::string(choice.name);
  }
  if (name == "cpu" || name == "auto") {
    if (device == 0) return cpu::make_cpu_backend();
    throw Error(ErrorKind::kUsage,
                "--device " + std::to_string(device) + ": there is no GPU to choose from (backend cpu); leave it out");
  }
  std::string message = "backend: there is no \"" + std::string(name) + "\"; this build has: " + known;
  if (name == "cuda") message += ". A build with it needs nvcc 13: cmake --preset cuda";
  throw Error(ErrorKind::kUsage, message);
}

HostHeads Backend::heads_to_host(ConstHeadsView, int, int) {
  throw Error(ErrorKind::kUsage, "the backend " + std::string(name()) +
                                     " cannot copy attention heads to the host, which measuring output errors needs; "
                                     "calibrate with --budget energy");
}

}  // namespace calibatt
