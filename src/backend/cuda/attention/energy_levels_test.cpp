#include "backend/cuda/attention/energy_levels.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "backend/cuda/device/device.h"
#include "base/random.h"

namespace calibatt::cuda {
namespace {

constexpr std::array<uint32_t, 15> kLadder{19648, 27520, 34048, 39296, 43904, 47872, 51136, 53760,
                                           56064, 57984, 59648, 61248, 62592, 63872, 64896};

// calibrate/level_code.h, word for word.
std::vector<uint8_t> expected_row(const std::vector<float>& energy) {
  const size_t columns = energy.size();
  std::vector<uint64_t> fixed(columns);
  uint64_t total = 0;
  bool valid = true;
  for (size_t c = 0; c < columns; ++c) {
    const bool in_range = energy[c] >= 0 && energy[c] <= 1.0f + 1e-3f;
    valid &= in_range;
    total += fixed[c] = in_range ? static_cast<uint64_t>(std::llrint(double{energy[c]} * (1 << 30))) : 0;
  }
  std::vector<uint8_t> packed((columns + 1) / 2, 0xff);
  if (!valid || total >= uint64_t{1} << 31) return packed;
  if (total == 0) {
    std::fill(fixed.begin(), fixed.end(), 1);
    total = columns;
  }
  for (size_t c = 0; c < columns; ++c) {
    uint64_t before = 0;
    for (size_t j = 0; j < columns; ++j) {
      if (fixed[j] > fixed[c] || (fixed[j] == fixed[c] && j < c)) before += fixed[j];
    }
    uint8_t code = 0;
    for (const uint32_t level : kLadder) code += level * total <= before << 16;
    packed[c / 2] = c % 2 == 0 ? static_cast<uint8_t>((packed[c / 2] & 0xf0) | code)
                               : static_cast<uint8_t>((packed[c / 2] & 0x0f) | (code << 4));
  }
  return packed;
}

std::vector<uint8_t> encoded(const std::vector<float>& energy, int64_t rows, int columns) {
  const Stream stream;
  DeviceBuffer in(energy.size() * sizeof(float)), out(static_cast<size_t>(rows * ((columns + 1) / 2)));
  in.copy_from_host(energy.data(), stream.get());
  encode_energy_levels(in.as<float>(), rows, columns, kLadder, out.as<uint8_t>(), stream.get());
  std::vector<uint8_t> codes(out.size_bytes());
  out.copy_to_host(codes.data(), stream.get());
  stream.synchronize();
  return codes;
}

TEST(EnergyLevels, EqualTheDefinitionBitForBit) {
  if (num_devices() == 0) GTEST_SKIP() << "no CUDA device";
  constexpr int64_t kRows = 8;
  for (const int columns : {1, 2, 3, 4, 127, 128, 591, 640, 641, 1182, kMostEncodedColumns}) {
    TorchGenerator generator(static_cast<uint64_t>(columns));
    const Tensor noise = generator.randn({kRows, columns});
    std::vector<float> energy(static_cast<size_t>(kRows * columns));
    std::vector<uint8_t> expected;
    for (int64_t r = 0; r < kRows; ++r) {
      std::vector<float> row(static_cast<size_t>(columns));
      double sum = 0;
      for (int c = 0; c < columns; ++c) {
        // Row 0: ties everywhere; the others ever more concentrated.
        const double value = r == 0 ? 1 + c % 3 : std::exp(2.0 * static_cast<double>(r) * noise.f32()[r * columns + c]);
        sum += value;
        row[static_cast<size_t>(c)] = static_cast<float>(value);
      }
      for (float& value : row) value = static_cast<float>(value / sum);
      if (r == 5) std::fill(row.begin(), row.end(), 0.0f);
      if (r == 6) std::fill(row.begin(), row.end(), 1.0f / static_cast<float>(columns));  // the lower index comes first
      if (r == 7) {                                                                       // one has it all
        std::fill(row.begin(), row.end(), 0.0f);
        row[row.size() / 2] = 1;
      }
      std::copy(row.begin(), row.end(), energy.begin() + r * columns);
      const std::vector<uint8_t> codes = expected_row(row);
      expected.insert(expected.end(), codes.begin(), codes.end());
    }
    EXPECT_EQ(encoded(energy, kRows, columns), expected) << columns << " columns";
  }
}

TEST(EnergyLevels, RowsThatAreNoDistributionAreMarked) {
  if (num_devices() == 0) GTEST_SKIP() << "no CUDA device";
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> energy{0.5f, nan,      0.5f,   // not a number
                                  0.5f, infinity, 0.5f,   // not finite
                                  0.5f, -0.1f,    0.6f,   // negative
                                  0.9f, 0.9f,     0.9f,   // the sum is far above 1
                                  2.0f, 0.0f,     0.0f,   // above 1
                                  0.5f, 0.3f,     0.2f};  // a distribution
  const std::vector<uint8_t> codes = encoded(energy, 6, 3);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(codes[static_cast<size_t>(i)], 0xff) << i;
  EXPECT_EQ(std::vector<uint8_t>(codes.begin() + 10, codes.end()), expected_row({0.5f, 0.3f, 0.2f}));
}

}  // namespace
}  // namespace calibatt::cuda
