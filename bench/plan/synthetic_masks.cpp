#include "plan/synthetic_masks.h"

#include <algorithm>
#include <cmath>

namespace calibatt::bench {
namespace {

// splitmix64: good enough for masks, and the same everywhere.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed ^ 0x2545f4914f6cdd1du) {
    state_ = next() ^ next() << 1;  // neighbouring seeds must not give the same numbers a little later
  }
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  // True with this probability, in steps of 1/65536.
  bool chance(uint32_t of_65536) {
    if (left_ == 0) {
      bits_ = next();
      left_ = 4;
    }
    const bool result = (bits_ & 0xffff) < of_65536;
    bits_ >>= 16;
    --left_;
    return result;
  }

 private:
  uint64_t state_, bits_ = 0;
  int left_ = 0;
};

uint32_t of_65536(double share) {
  return static_cast<uint32_t>(std::lround(share * 65536));
}

}  // namespace

MaskKind parse_mask_kind(const std::string& name) {
  if (name == "band") return MaskKind::kBand;
  if (name == "stripe") return MaskKind::kStripe;
  if (name == "random") return MaskKind::kRandom;
  throw Error(ErrorKind::kUsage, "\"" + name + "\" is no kind of mask; there are band, stripe and random");
}

BlockIntervals synthetic_mask(MaskKind kind, const AttentionGeometry& geometry, double density, double noise,
                              uint64_t seed) {
  const int rows = geometry.num_query_blocks(), columns = geometry.num_key_blocks();
  const double tokens = geometry.num_tokens(), frame = geometry.height * geometry.width;
  // The share of a square that a band of half width w (as a share of its side) covers is 2w − w².
  const double half_band = (1 - std::sqrt(1 - density)) * tokens, half_stripe = density * frame / 2;
  Random random(seed);
  const uint32_t kept_chance = of_65536(density), noise_chance = of_65536(noise);
  std::vector<uint32_t> offsets{0};
  std::vector<BlockInterval> intervals;
  std::vector<uint8_t> kept(static_cast<size_t>(columns));
  for (int r = 0; r < rows; ++r) {
    const double query = (r + 0.5) * geometry.block_q;
    for (int c = 0; c < columns; ++c) {
      if (kind == MaskKind::kRandom) {
        kept[static_cast<size_t>(c)] = random.chance(kept_chance);
        continue;
      }
      const double distance = std::abs((c + 0.5) * geometry.block_k - query);
      const double to_frame = std::abs(distance - std::round(distance / frame) * frame);
      bool keep = kind == MaskKind::kBand ? distance <= half_band : to_frame <= half_stripe;
      if (noise_chance > 0) keep ^= random.chance(noise_chance);
      kept[static_cast<size_t>(c)] = keep;
    }
    kept[static_cast<size_t>(std::min(columns - 1, static_cast<int>(query) / geometry.block_k))] = 1;  // its own keys
    for (int c = 0; c < columns;) {
      if (kept[static_cast<size_t>(c)] == 0) {
        ++c;
        continue;
      }
      const int begin = c;
      while (c < columns && kept[static_cast<size_t>(c)] != 0) ++c;
      intervals.push_back({static_cast<uint32_t>(begin), static_cast<uint32_t>(c)});
    }
    offsets.push_back(static_cast<uint32_t>(intervals.size()));
  }
  return BlockIntervals(columns, std::move(offsets), std::move(intervals));
}

PlanLayer synthetic_layer(const std::vector<MaskKind>& mix, const AttentionGeometry& geometry, double density,
                          double noise, uint64_t seed) {
  PlanLayer heads(static_cast<size_t>(geometry.heads));
  for (size_t head = 0; head < heads.size(); ++head) {
    heads[head].intervals =
        synthetic_mask(mix[head % mix.size()], geometry, density, noise, seed * heads.size() + head);
  }
  return heads;
}

}  // namespace calibatt::bench
