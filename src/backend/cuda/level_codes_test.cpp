#include "backend/cuda/kernels/level_codes.h"

#include <algorithm>
#include <numeric>

#include "backend/cuda/backend_pair.h"
#include "backend/cuda/linear.h"

namespace calibatt::cuda {
namespace {

using CudaLevelCodes = BackendPair;

/// By the definition in the header, the obvious way.
std::vector<uint8_t> expected_row(std::vector<float> energy, std::span<const uint32_t> levels) {
  const size_t columns = energy.size();
  std::vector<uint8_t> packed((columns + 1) / 2, 0xff);
  for (const float value : energy) {
    if (!(value >= 0 && value <= 1.0f + 1e-3f)) return packed;
  }
  std::vector<uint64_t> fixed;
  for (const float value : energy) fixed.push_back(static_cast<uint64_t>(std::nearbyint(double{value} * 0x1p30)));
  if (std::accumulate(fixed.begin(), fixed.end(), uint64_t{0}) == 0) std::fill(fixed.begin(), fixed.end(), 1);
  const uint64_t total = std::accumulate(fixed.begin(), fixed.end(), uint64_t{0});
  std::vector<size_t> order(columns);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return fixed[a] > fixed[b]; });
  uint64_t before = 0;
  for (const size_t c : order) {
    const auto code = static_cast<uint8_t>(
        std::ranges::count_if(levels, [&](uint64_t level) { return level * total <= before * 65536; }));
    uint8_t& byte = packed[c / 2];
    byte = c % 2 == 0 ? static_cast<uint8_t>((byte & 0xf0) | code) : static_cast<uint8_t>((byte & 0x0f) | code << 4);
    before += fixed[c];
  }
  return packed;
}

TEST_F(CudaLevelCodes, AreThoseOfTheDefinitionBitForBit) {
  Context context;
  constexpr int kRows = 9;
  std::vector<uint32_t> levels(kMaxLevels);
  for (size_t i = 0; i < levels.size(); ++i) levels[i] = static_cast<uint32_t>(65536 * (i + 1) / 16);
  for (const int columns : {1, 2, 7, 64, 512, 513, 1182, 1280, 1281, 4096}) {
    SCOPED_TRACE(columns);
    Tensor energy = random({kRows, columns});
    for (int row = 0; row < kRows; ++row) {
      float* const values = energy.f32() + int64_t{row} * columns;
      double sum = 0;
      for (int c = 0; c < columns; ++c) sum += values[c] = std::exp(3 * values[c]);
      for (int c = 0; c < columns; ++c) values[c] /= static_cast<float>(sum);
    }
    const auto row_of = [&](int row) { return energy.f32() + int64_t{row} * columns; };
    std::fill_n(row_of(1), columns, 0.0f);
    std::fill_n(row_of(2), columns, 1.0f / static_cast<float>(columns));        // ties: the lower index comes first
    for (int c = 0; c < columns; ++c) row_of(3)[c] = c == columns / 2 ? 1 : 0;  // one has it all
    row_of(4)[columns - 1] = std::nanf("");
    row_of(5)[0] = -0.5f;
    row_of(6)[0] = 2;

    const int row_bytes = (columns + 1) / 2;
    const Tensor device = upload(context, energy, DType::kF32);
    Tensor codes = context.allocate(DType::kU8, {kRows, row_bytes}), found(DType::kU8, {kRows, row_bytes});
    encode_levels(device.f32(), kRows, columns, levels, codes.data<uint8_t>(), context.stream());
    context.copy_to_host(found.raw(), codes.raw(), found.size_bytes());
    for (int row = 0; row < kRows; ++row) {
      const uint8_t* begin = found.data<uint8_t>() + int64_t{row} * row_bytes;
      const std::vector<uint8_t> actual(begin, begin + row_bytes);
      EXPECT_EQ(actual, expected_row({row_of(row), row_of(row) + columns}, levels)) << "row " << row;
    }
  }
}

}  // namespace
}  // namespace calibatt::cuda
