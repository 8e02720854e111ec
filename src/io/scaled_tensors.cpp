// Weights in 8 bits as ComfyUI, its users and LightX2V publish them: value = element · scale.
#include <algorithm>
#include <array>
#include <cmath>
#include <set>
#include <string_view>

#include "base/error.h"
#include "base/thread_pool.h"
#include "io/mapped_tensors.h"

namespace calibatt {
namespace {

constexpr std::string_view kWeight = ".weight";
/// Beside "<layer>.weight": the factor of all its elements or of each row. The first is ComfyUI's older spelling.
constexpr std::array<std::string_view, 2> kScale{".scale_weight", ".weight_scale"};
/// Factors of blocks, of which it is not known how they lie.
constexpr std::string_view kBlockScale = ".weight_scale_inv";
/// Of activations, which are not quantized here, and notes of the format.
constexpr std::array<std::string_view, 3> kBeside{".scale_input", ".input_scale", ".comfy_quant"};
/// Says that a file has scales; a tensor without a meaning of its own.
constexpr std::string_view kMarker = "scaled_fp8";

int64_t num_elements(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;
  return count;
}

/// scales: F32, one or one of each row.
Tensor scaled(const Tensor& elements, const Tensor& scales) {
  Tensor values = elements.clone();
  const int64_t rows = scales.size(), width = values.size() / rows;
  constexpr int64_t kGrain = int64_t{1} << 16;
  parallel_for(values.size(), kGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) values.f32()[i] *= scales.f32()[rows == 1 ? 0 : i / width];
  });
  return values;
}

bool is_fp8(StoredForm form) {
  return form == StoredForm::kE4M3 || form == StoredForm::kE5M2;
}

/// Whether scales of this shape are one number, or one of each row: [rows], [rows, 1], …
bool fits(const std::vector<int64_t>& scales, int64_t rows) {
  const int64_t count = num_elements(scales);
  return count == 1 || (count >= 1 && count == rows && scales[0] == rows);
}

}  // namespace

Tensor MappedTensors::scales_of(const std::string& scale, const std::string& matrix) const {
  const Entry& found = entry(scale);
  const std::vector<int64_t>& shape = entry(matrix).shape;
  const int64_t rows = shape.empty() ? 1 : shape[0];
  const bool is_float = found.dtype == DType::kF32 || found.dtype == DType::kBF16 || found.dtype == DType::kF16;
  if (!is_float || !fits(found.shape, rows)) {
    throw Error(ErrorKind::kFormat, describe(scale) + ": expected one number, or one for each of the " +
                                        std::to_string(rows) + " rows of its matrix, found " +
                                        std::string(dtype_name(found.dtype)) + " " + shape_text(found.shape));
  }
  Tensor scales = converted(stored(found), DType::kF32).clone();
  for (int64_t i = 0; i < scales.size(); ++i) {
    if (scales.f32()[i] > 0 && std::isfinite(scales.f32()[i])) continue;
    throw Error(ErrorKind::kFormat, describe(scale) + ": holds the scale " + std::to_string(scales.f32()[i]) +
                                        ", expected finite numbers above 0; take the model from another source");
  }
  return scales;
}

void MappedTensors::apply_scales() {
  std::set<std::string> beside;
  std::string sign, unscaled;  // that there are scales; a matrix without one
  for (auto& [name, entry] : entries_) {
    if (entry.form == StoredForm::kValues) continue;
    if (name.ends_with(kMarker)) beside.insert(sign = name);
    if (!name.ends_with(kWeight)) continue;
    const std::string layer = name.substr(0, name.size() - kWeight.size());
    if (contains(layer + std::string(kBlockScale))) {
      throw Error(ErrorKind::kFormat, describe(layer + std::string(kBlockScale)) +
                                          ": scales of blocks are not supported; take the model with one scale for "
                                          "each matrix or row, or in BF16");
    }
    for (const std::string_view ending : kBeside) beside.insert(layer + std::string(ending));
    const auto ending =
        std::ranges::find_if(kScale, [&](std::string_view each) { return contains(layer + std::string(each)); });
    if (ending == kScale.end()) {
      if (is_fp8(entry.form) && entry.shape.size() == 2) unscaled = name;
      continue;
    }
    beside.insert(sign = layer + std::string(*ending));
    const Tensor scales = scales_of(sign, name);
    entry.dtype = DType::kF32;
    entry.change =
        std::make_shared<const TensorChange>([scales](const Tensor& elements) { return scaled(elements, scales); });
  }
  if (!sign.empty() && !unscaled.empty()) {
    throw Error(ErrorKind::kFormat, describe(unscaled) + ": is in fp8 and has no scale, though " + quoted_name(sign) +
                                        " says that this file has scales; is it complete?");
  }
  for (const std::string& name : beside) entries_.erase(name);
}

}  // namespace calibatt
