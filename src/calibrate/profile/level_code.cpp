#include "calibrate/profile/level_code.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "base/thread_pool.h"

namespace calibatt {
namespace {

constexpr float kOne = 0x1p30f;                     // 1.0 in fixed point
constexpr float kLargest = 1.0f + 1e-3f;            // rounding may lift a mean of softmax masses a little above 1
constexpr uint64_t kMostTotal = uint64_t{1} << 31;  // so that devices may add in 32 bits
constexpr uint32_t kKeyMask = 0x7fffffffu;

struct RowScratch {
  SortScratch sort;
  std::vector<uint32_t> order;
  std::vector<uint8_t> codes;
};

void pack(const std::vector<uint8_t>& codes, int columns, uint8_t* packed) {
  for (int c = 0; c + 1 < columns; c += 2) packed[c / 2] = static_cast<uint8_t>(codes[c] | (codes[c + 1] << 4));
  if (columns % 2 != 0) packed[columns / 2] = static_cast<uint8_t>(codes[columns - 1] | 0xf0);
}

}  // namespace

std::span<const uint32_t> code_ladder() {
  static const auto ladder = [] {
    std::array<uint32_t, kNumCodeLevels> levels{};
    for (size_t i = 0; i < levels.size(); ++i)
      levels[i] = static_cast<uint32_t>(kCodeLevels[i]) * (65536 / kLevelUnits);
    return levels;
  }();
  return ladder;
}

void sort_by_key(SortScratch& scratch, std::vector<uint32_t>& order) {
  std::vector<uint32_t>& keys = scratch.keys;
  const size_t count = keys.size();
  order.resize(count);
  scratch.other_order.resize(count);
  scratch.other_keys.resize(count);
  std::iota(order.begin(), order.end(), 0u);
  std::array<std::array<uint32_t, 256>, 4> first{};  // where each value of each byte begins
  for (const uint32_t key : keys) {
    ++first[0][key & 0xff], ++first[1][key >> 8 & 0xff], ++first[2][key >> 16 & 0xff], ++first[3][key >> 24];
  }
  for (int byte = 0; byte < 4; ++byte) {
    const int shift = 8 * byte;
    auto& at = first[byte];
    if (count == 0 || at[keys[0] >> shift & 0xff] == count) continue;  // all alike in this byte
    uint32_t sum = 0;
    for (uint32_t& slot : at) sum += std::exchange(slot, sum);
    for (size_t i = 0; i < count; ++i) {
      const uint32_t to = at[keys[i] >> shift & 0xff]++;
      scratch.other_keys[to] = keys[i];
      scratch.other_order[to] = order[i];
    }
    keys.swap(scratch.other_keys);
    order.swap(scratch.other_order);
  }
}

bool encode_row(std::span<const float> energy, uint8_t* packed) {
  thread_local RowScratch scratch;
  const int columns = static_cast<int>(energy.size());
  std::vector<uint32_t>& keys = scratch.sort.keys;
  keys.resize(energy.size());
  uint64_t total = 0;
  bool valid = true;
  for (size_t c = 0; c < energy.size(); ++c) {
    valid &= energy[c] >= 0 && energy[c] <= kLargest;  // false for NaN
    const auto fixed = static_cast<uint32_t>(std::nearbyintf((valid ? energy[c] : 0.0f) * kOne));
    total += fixed;
    keys[c] = kKeyMask - fixed;
  }
  if (!valid || total >= kMostTotal) {
    std::memset(packed, 0xff, static_cast<size_t>(packed_row_bytes(columns)));
    return false;
  }
  if (total == 0) {  // nothing attends anywhere: every block is worth as much as any other
    total = energy.size();
    std::fill(keys.begin(), keys.end(), kKeyMask - 1);
  }
  sort_by_key(scratch.sort, scratch.order);
  scratch.codes.resize(energy.size());
  const auto ladder = code_ladder();
  uint64_t before = 0;
  int code = 0;
  for (size_t rank = 0; rank < scratch.order.size(); ++rank) {
    while (code < kNumCodeLevels && ladder[code] * total <= before << 16) ++code;
    scratch.codes[scratch.order[rank]] = static_cast<uint8_t>(code);
    before += kKeyMask - scratch.sort.keys[rank];
  }
  pack(scratch.codes, columns, packed);
  return true;
}

void decode_row(const uint8_t* __restrict packed, int num_key_blocks, uint8_t* __restrict codes) {
  for (int i = 0; i < num_key_blocks / 2; ++i) {
    codes[2 * i] = packed[i] & 0xf;
    codes[2 * i + 1] = packed[i] >> 4;
  }
  if (num_key_blocks % 2 != 0) codes[num_key_blocks - 1] = packed[num_key_blocks / 2] & 0xf;
}

void encode_levels(const Tensor& energy, uint8_t* codes) {
  const int columns = static_cast<int>(energy.dim(-1));
  const int64_t rows = energy.size() / columns, row_bytes = packed_row_bytes(columns);
  constexpr int64_t kRowsPerChunk = 64;
  parallel_for(rows, kRowsPerChunk, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      encode_row({energy.f32() + row * columns, static_cast<size_t>(columns)}, codes + row * row_bytes);
    }
  });
}

bool all_rows_valid(const uint8_t* codes, int64_t num_rows, int num_key_blocks) {
  const int64_t row_bytes = packed_row_bytes(num_key_blocks);
  for (int64_t row = 0; row < num_rows; ++row) {
    const uint8_t* begin = codes + row * row_bytes;
    const bool has_zero =
        std::any_of(begin, begin + row_bytes, [](uint8_t pair) { return (pair & 0xf) == 0 || (pair >> 4) == 0; });
    if (!has_zero) return false;
  }
  return true;
}

Folded fold_energy(Device& device, CalibrationOps* ops, const Tensor& energy, Tensor& device_codes) {
  const std::vector<int64_t> shape{energy.dim(0), energy.dim(1), packed_row_bytes(static_cast<int>(energy.dim(2)))};
  if (device_codes.empty()) device_codes = device.empty(DType::kU8, shape);
  if (ops != nullptr && ops->encode_energy_levels(energy, code_ladder(), device_codes))
    return {device.to_host(device_codes), {}};
  return {{}, device.to_host(energy)};
}

}  // namespace calibatt
