// Weights in 8 bits as ComfyUI, its users and LightX2V publish them: value = element · scale.
#include <array>
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

}  // namespace

void MappedTensors::apply_scales() {
  std::set<std::string> beside;
  for (auto& [name, entry] : entries_) {
    if (entry.form == StoredForm::kValues) continue;
    if (name.ends_with(kMarker)) beside.insert(name);
    if (!name.ends_with(kWeight)) continue;
    const std::string layer = name.substr(0, name.size() - kWeight.size());
    if (contains(layer + std::string(kBlockScale))) {
      throw Error(ErrorKind::kFormat, describe(layer + std::string(kBlockScale)) +
                                          ": scales of blocks are not supported; take the model with one scale for "
                                          "each matrix or row, or in BF16");
    }
    for (const std::string_view ending : kBeside) beside.insert(layer + std::string(ending));
    for (const std::string_view ending : kScale) {
      const std::string scale = layer + std::string(ending);
      if (!contains(scale)) continue;
      beside.insert(scale);
      const Entry& found = entries_.at(scale);
      const int64_t count = num_elements(found.shape), rows = entry.shape.empty() ? 1 : entry.shape[0];
      const bool is_float = found.dtype == DType::kF32 || found.dtype == DType::kBF16 || found.dtype == DType::kF16;
      if (!is_float || count < 1 || (count != 1 && count != rows)) {
        throw Error(ErrorKind::kFormat, describe(scale) + ": expected one number, or one for each of the " +
                                            std::to_string(rows) + " rows of its matrix, found " +
                                            std::string(dtype_name(found.dtype)) + " " + shape_text(found.shape));
      }
      const Tensor scales = converted(stored(found), DType::kF32).clone();
      entry.dtype = DType::kF32;
      entry.change =
          std::make_shared<const TensorChange>([scales](const Tensor& elements) { return scaled(elements, scales); });
      break;
    }
  }
  for (const std::string& name : beside) entries_.erase(name);
}

}  // namespace calibatt
