#include "calibrate/profile/harm_code.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "base/error.h"
#include "calibrate/profile/level_code.h"

namespace calibatt {
namespace {

constexpr uint32_t kInfinity = 0x7f80;  // bits of a bf16; those of finite numbers ≥ 0 are below, and rise with them
constexpr int64_t kPercent = 100;

// The ladder in whole hundredths, so that ranks are compared exactly.
std::array<int64_t, kNumHarmRungs - 1> ladder_in_percent() {
  std::array<int64_t, kNumHarmRungs - 1> ladder{};
  for (size_t i = 0; i < ladder.size(); ++i) ladder[i] = std::llround(kDensityLevels[i] * kPercent);
  return ladder;
}

// How many blocks have each value; empty where one is no harm.
std::vector<uint32_t> counted(std::span<const bfloat16> harm) {
  std::vector<uint32_t> count(kInfinity, 0);
  for (const bfloat16 value : harm) {
    if (value.bits >= kInfinity) return {};
    ++count[value.bits];
  }
  return count;
}

// Of each value that occurs its code, by the number of blocks with a greater one.
std::vector<uint8_t> codes_of_values(const std::vector<uint32_t>& count, int64_t num_blocks) {
  static const auto ladder = ladder_in_percent();
  std::vector<uint8_t> codes(count.size());
  int64_t before = 0;
  uint8_t code = 0;
  for (size_t value = count.size(); value-- > 0;) {
    if (count[value] == 0) continue;
    while (code < ladder.size() && ladder[code] * num_blocks <= before * kPercent) ++code;
    codes[value] = code;
    before += count[value];
  }
  return codes;
}

void mean_of_rungs(const std::vector<uint32_t>& count, const std::vector<uint8_t>& code_of, float* rung_harm) {
  std::array<double, kNumHarmRungs> sum{}, blocks{};
  for (size_t value = 0; value < count.size(); ++value) {
    if (count[value] == 0) continue;
    const auto number = std::bit_cast<float>(static_cast<uint32_t>(value) << 16);
    sum[code_of[value]] += double{number} * count[value];
    blocks[code_of[value]] += count[value];
  }
  for (size_t rung = 0; rung < sum.size(); ++rung) {
    rung_harm[rung] = blocks[rung] > 0 ? static_cast<float>(sum[rung] / blocks[rung]) : 0.0f;
  }
}

}  // namespace

bool encode_harm(std::span<const bfloat16> harm, int num_key_blocks, uint8_t* codes, float* rung_harm) {
  CALIBATT_ASSERT(num_key_blocks >= 1 && harm.size() % static_cast<size_t>(num_key_blocks) == 0);
  const std::vector<uint32_t> count = counted(harm);
  if (count.empty()) return false;
  const std::vector<uint8_t> code_of = codes_of_values(count, static_cast<int64_t>(harm.size()));
  mean_of_rungs(count, code_of, rung_harm);
  const int64_t rows = static_cast<int64_t>(harm.size()) / num_key_blocks, row_bytes = packed_row_bytes(num_key_blocks);
  for (int64_t r = 0; r < rows; ++r) {
    const bfloat16* row = harm.data() + r * num_key_blocks;
    uint8_t* packed = codes + r * row_bytes;
    const auto code_at = [&](int c) { return code_of[row[c].bits]; };
    for (int c = 0; c + 1 < num_key_blocks; c += 2) {
      packed[c / 2] = static_cast<uint8_t>(code_at(c) | code_at(c + 1) << 4);
    }
    if (num_key_blocks % 2 != 0) packed[num_key_blocks / 2] = static_cast<uint8_t>(code_at(num_key_blocks - 1) | 0xf0);
  }
  return true;
}

bool harm_rungs(std::span<const bfloat16> harm, const AttentionGeometry& geometry, uint8_t* rungs) {
  const std::vector<uint32_t> count = counted(harm);
  if (count.empty()) return false;
  const std::vector<uint8_t> code_of = codes_of_values(count, static_cast<int64_t>(harm.size()));
  const auto columns = static_cast<size_t>(geometry.num_key_blocks());
  for (int r = 0; r < geometry.num_query_blocks(); ++r) {
    const std::span<const bfloat16> row = harm.subspan(static_cast<size_t>(r) * columns, columns);
    uint8_t* rung = rungs + static_cast<size_t>(r) * columns;
    for (size_t c = 0; c < columns; ++c) rung[c] = code_of[row[c].bits];
    rung[std::ranges::max_element(row, {}, &bfloat16::bits) - row.begin()] = 0;
    const int first = r * geometry.block_q, last = first + geometry.query_block_size(r) - 1;
    for (int c = first / geometry.block_k; c <= last / geometry.block_k; ++c) rung[c] = 0;
  }
  return true;
}

std::vector<float> restored_harm(const ProfileHeader& header, std::span<const PromptProfile* const> prompts,
                                 size_t site_head) {
  const AttentionGeometry& g = header.geometry;
  const int rows = g.num_query_blocks(), columns = g.num_key_blocks();
  const auto heads = static_cast<size_t>(g.heads);
  const size_t per_entry = static_cast<size_t>(header.num_layers) * heads;
  const size_t count = per_entry * static_cast<size_t>(header.num_recorded_steps());
  const int64_t row_bytes = packed_row_bytes(columns);
  std::vector<float> harm(static_cast<size_t>(rows) * static_cast<size_t>(columns), 0.0f);
  for_each_neighbouring_step(site_head, per_entry, count, [&](size_t neighbour, float share) {
    const int entry = static_cast<int>(neighbour / per_entry), layer = static_cast<int>(neighbour % per_entry / heads);
    for (const PromptProfile* prompt : prompts) {
      const uint8_t* packed =
          site_levels(header, *prompt, entry, layer) + static_cast<int64_t>(neighbour % heads) * rows * row_bytes;
      std::array<float, kNumHarmRungs> of_rung{};
      const float* rung_harm = prompt->rung_harm.f32() + neighbour * kNumHarmRungs;
      for (size_t i = 0; i < of_rung.size(); ++i)
        of_rung[i] = share * rung_harm[i] / static_cast<float>(prompts.size());
      float* sum = harm.data();
      for (int r = 0; r < rows; ++r, packed += row_bytes, sum += columns) {
        for (int c = 0; c < columns; ++c) sum[c] += of_rung[packed[c / 2] >> (c % 2 * 4) & 0xf];
      }
    }
  });
  return harm;
}

}  // namespace calibatt
