#include "bench/calibration/synthetic_energy.h"

#include <cmath>
#include <cstdlib>

#include "base/thread_pool.h"
#include "bench/clock.h"

namespace calibatt::bench {
namespace {

// A few bits of everything that a number depends on, well mixed (splitmix64).
uint64_t mixed(uint64_t value) {
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

// About normal: the sum of four 16-bit numbers.
float normal(uint64_t key) {
  const uint64_t bits = mixed(key);
  const auto sum = static_cast<float>((bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48));
  return (sum / 65536.0f - 2.0f) * 1.7320508f;
}

}  // namespace

void synthetic_energy(const AttentionGeometry& geometry, int prompt, int site, float* energy) {
  const int rows = geometry.num_query_blocks(), columns = geometry.num_key_blocks();
  const double blocks_per_frame = double{1} * geometry.height * geometry.width / geometry.block_k;
  parallel_for(int64_t{geometry.heads} * rows, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int head = static_cast<int>(i / rows), row = static_cast<int>(i % rows);
      float* out = energy + i * columns;
      const float band = head % 3 == 0 ? 3.0f : 1.0f, stripes = head % 3 == 1 ? 2.5f : 0.5f;
      float sum = 0;
      for (int c = 0; c < columns; ++c) {
        const auto distance = static_cast<float>(std::abs(row - c));
        const double frames = distance / blocks_per_frame;
        const auto off_stripe = static_cast<float>(std::abs(frames - std::round(frames)) * blocks_per_frame);
        const uint64_t key =
            (static_cast<uint64_t>(site) << 44) ^ (static_cast<uint64_t>(i) << 20) ^ static_cast<uint64_t>(c);
        const float common = normal(key), own = normal(key ^ (static_cast<uint64_t>(prompt + 1) << 52));
        const float sink =
            mixed(static_cast<uint64_t>(head * 1000 + site) ^ (static_cast<uint64_t>(c) << 32)) % 50 == 0;
        const float logit =
            band * std::exp(-distance / 20) + stripes * std::exp(-off_stripe / 2) + 2 * sink + common + 0.5f * own;
        sum += out[c] = std::exp(logit);
      }
      for (int c = 0; c < columns; ++c) out[c] /= sum;
    }
  });
}

std::string_view SyntheticDevice::attention(const AttentionCall& call) {
  if (call.block_energy == nullptr) return "";
  const double start = now(Clock::kCpu);
  synthetic_energy(geometry_, prompt_, site_, reinterpret_cast<float*>(inside(call.block_energy)));
  seconds_making_energies += (now(Clock::kCpu) - start) * num_threads();
  return "synthetic";
}

}  // namespace calibatt::bench
