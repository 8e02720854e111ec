#include "models/weight_overlay.h"

#include <utility>

#include "base/error.h"
#include "base/thread_pool.h"

namespace calibatt {
namespace {

constexpr int64_t kGrainElements = int64_t{1} << 16;

void add_to(Tensor& sum, const Tensor& delta) {
  const Tensor wide = converted(delta, DType::kF32);
  parallel_for(sum.size(), kGrainElements, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) sum.f32()[i] += wide.f32()[i];
  });
}

}  // namespace

void WeightOverlay::replace(const std::string& name, Tensor values) {
  changes_[name] = {{std::move(values), true}};
}

void WeightOverlay::add(const std::string& name, Tensor delta) {
  changes_[name].push_back({std::move(delta), false});
}

MappedTensors WeightOverlay::over(const MappedTensors& tensors) const {
  std::map<std::string, MappedTensors::TensorChange> by_name;
  for (const auto& [name, changes] : changes_) {
    if (!tensors.contains(name)) {
      throw Error(ErrorKind::kMismatch, tensors.path() + ": has no tensor " + quoted_name(name) +
                                            ", which is to be changed; the change was made for another model");
    }
    for (const Change& change : changes) {
      if (change.values.shape() == tensors.shape(name)) continue;
      throw Error(ErrorKind::kMismatch, tensors.describe(name) + ": is " + tensors.get(name).describe() +
                                            ", and its change is " + change.values.describe() +
                                            "; the change was made for another model");
    }
    by_name[name] = [changes = changes](const Tensor& stored) {
      Tensor values = changes.front().replaces ? Tensor() : converted(stored, DType::kF32).clone();
      for (const Change& change : changes) {
        if (change.replaces) {
          values = converted(change.values, DType::kF32).clone();
        } else {
          add_to(values, change.values);
        }
      }
      return converted(values, stored.dtype());
    };
  }
  return tensors.changed(by_name);
}

}  // namespace calibatt
