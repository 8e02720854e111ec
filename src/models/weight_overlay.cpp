#include "models/weight_overlay.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/thread_pool.h"
#include "nn/tensor_rows.h"

namespace calibatt {
namespace {

constexpr int64_t kOverlayGrain = int64_t{1} << 14;
/// Of a tensor that is changed, for each thread at a time: what its core's cache holds in F32, and what a product of
/// matrices takes at a time.
constexpr int64_t kElementsAtATime = int64_t{1} << 18, kRowsAtATime = 128;

void convert_in_parallel(const Tensor& from, Tensor& to) {
  parallel_for(from.size(), kOverlayGrain, [&](int64_t begin, int64_t end, int) {
    const auto* source = static_cast<const char*>(from.raw()) + static_cast<size_t>(begin) * dtype_size(from.dtype());
    auto* target = static_cast<char*>(to.raw()) + static_cast<size_t>(begin) * dtype_size(to.dtype());
    if (from.dtype() == to.dtype()) {
      std::memcpy(target, source, static_cast<size_t>(end - begin) * dtype_size(to.dtype()));
    } else {
      convert_elements(source, from.dtype(), target, to.dtype(), end - begin);
    }
  });
}

/// [rows, elements of each]
Tensor as_matrix(const Tensor& tensor) {
  const int64_t rows = tensor.rank() > 1 ? tensor.dim(0) : 1;
  return tensor.reshaped({rows, rows > 0 ? tensor.size() / rows : 0});
}

WeightOverlay::AddToRows adder_of(const Tensor& delta) {
  return [matrix = as_matrix(delta)](int64_t first_row, Tensor& rows) {
    const Tensor wide = converted(tensor_rows(matrix, first_row, rows.dim(0)), DType::kF32);
    parallel_for(rows.size(), kOverlayGrain, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) rows.f32()[i] += wide.f32()[i];
    });
  };
}

}  // namespace

void WeightOverlay::replace(const std::string& name, Tensor values) {
  std::vector<int64_t> shape = values.shape();
  changes_[name] = {{std::move(shape), true, [values = std::move(values)] { return adder_of(values); }}};
}

void WeightOverlay::add(const std::string& name, Tensor delta) {
  std::vector<int64_t> shape = delta.shape();
  add(name, std::move(shape), [delta = std::move(delta)] { return adder_of(delta); });
}

void WeightOverlay::add(const std::string& name, std::vector<int64_t> shape, std::function<AddToRows()> prepare) {
  changes_[name].push_back({std::move(shape), false, std::move(prepare)});
}

Tensor WeightOverlay::changed(const std::vector<Change>& changes, const Tensor& stored) {
  std::vector<AddToRows> adders;
  adders.reserve(changes.size());
  for (const Change& change : changes) adders.push_back(change.prepare());
  Tensor result(stored.dtype(), stored.shape());
  const Tensor from = as_matrix(stored), to = as_matrix(result);
  const int64_t rows = from.dim(0), width = from.dim(1);
  const int64_t at_a_time =
      std::max(kRowsAtATime, kElementsAtATime / std::max<int64_t>(width, 1)) * int64_t{num_threads()};
  Tensor wide(DType::kF32, {std::min(rows, at_a_time), width});
  for (int64_t first = 0; first < rows; first += at_a_time) {
    const int64_t count = std::min(at_a_time, rows - first);
    Tensor part = tensor_rows(wide, 0, count), target = tensor_rows(to, first, count);
    if (changes.front().replaces) {
      std::fill_n(part.f32(), part.size(), 0.0f);
    } else {
      convert_in_parallel(tensor_rows(from, first, count), part);
    }
    for (const AddToRows& add_to : adders) add_to(first, part);
    convert_in_parallel(part, target);
  }
  return result;
}

MappedTensors WeightOverlay::over(const MappedTensors& tensors) const {
  std::map<std::string, MappedTensors::TensorChange> by_name;
  for (const auto& [name, changes] : changes_) {
    if (!tensors.contains(name)) {
      throw Error(ErrorKind::kMismatch, tensors.path() + ": has no tensor " + quoted_name(name) +
                                            ", which is to be changed; the change was made for another model");
    }
    for (const Change& change : changes) {
      if (change.shape == tensors.shape(name)) continue;
      throw Error(ErrorKind::kMismatch, tensors.describe(name) + ": is " + shape_text(tensors.shape(name)) +
                                            ", and its change is " + shape_text(change.shape) +
                                            "; the change was made for another model");
    }
    by_name[name] = [changes = changes](const Tensor& stored) { return changed(changes, stored); };
  }
  return tensors.changed(by_name);
}

}  // namespace calibatt
