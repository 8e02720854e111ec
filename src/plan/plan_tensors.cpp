#include "plan/plan_tensors.h"

namespace calibatt {

Tensor narrowed(const std::vector<uint32_t>& values, std::vector<int64_t> shape) {
  const uint32_t largest = values.empty() ? 0 : *std::max_element(values.begin(), values.end());
  const auto stored_as = [&]<class T>(DType dtype, T) {
    Tensor tensor(dtype, std::move(shape));
    CALIBATT_ASSERT(tensor.size() == static_cast<int64_t>(values.size()));
    std::transform(values.begin(), values.end(), tensor.data<T>(),
                   [](uint32_t value) { return static_cast<T>(value); });
    return tensor;
  };
  if (largest <= UINT8_MAX) return stored_as(DType::kU8, uint8_t{});
  if (largest <= UINT16_MAX) return stored_as(DType::kU16, uint16_t{});
  return stored_as(DType::kU32, uint32_t{});
}

Tensor f64_tensor(const std::vector<double>& values) {
  Tensor tensor(DType::kF64, {static_cast<int64_t>(values.size())});
  std::copy(values.begin(), values.end(), tensor.data<double>());
  return tensor;
}

std::vector<uint32_t> anchor_row_numbers(const AttentionGeometry& geometry, int rows_per_frame) {
  AttentionGeometry one_column = geometry;  // one frame of one column: its tokens are the rows
  one_column.frames = one_column.width = 1;
  one_column.text_tokens = 0;
  one_column.order = TokenOrder::raster();
  const AnchorRows anchors = make_anchor_rows(one_column, rows_per_frame);
  return {anchors.query_tokens.begin(), anchors.query_tokens.end()};
}

}  // namespace calibatt
