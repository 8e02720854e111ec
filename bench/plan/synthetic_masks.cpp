#include "plan/synthetic_masks.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace calibatt::bench {
namespace {

// splitmix64's mixing: any number to a random one, the same everywhere.
uint64_t mixed(uint64_t z) {
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

double unit(uint64_t bits) {
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

// A number of [0, 1) for each block, which is drawn anew every 1 / drift steps, at another step for every block.
class Chances {
 public:
  Chances(uint64_t seed, int step, double drift)
      : seed_(mixed(seed + 0x9e3779b97f4a7c15u)), step_(step), period_(std::max(1.0, 1 / std::max(drift, 1e-9))) {}
  double at(uint64_t block) const {
    const uint64_t hash = mixed(seed_ + block * 0x9e3779b97f4a7c15u);
    if (period_ == 1) return unit(mixed(hash + static_cast<uint64_t>(step_)));
    const double phase = unit(mixed(~hash)) * period_;
    return unit(mixed(hash + static_cast<uint64_t>((step_ + phase) / period_)));
  }

 private:
  uint64_t seed_;
  int step_;
  double period_;
};

}  // namespace

MaskKind parse_mask_kind(const std::string& name) {
  if (name == "band") return MaskKind::kBand;
  if (name == "stripe") return MaskKind::kStripe;
  if (name == "random") return MaskKind::kRandom;
  throw Error(ErrorKind::kUsage, "\"" + name + "\" is no kind of mask; there are band, stripe and random");
}

BlockIntervals synthetic_mask(MaskKind kind, const AttentionGeometry& geometry, const MaskOptions& options, int step,
                              uint64_t seed) {
  const int rows = geometry.num_query_blocks(), columns = geometry.num_key_blocks();
  const double tokens = geometry.num_tokens(), frame = geometry.height * geometry.width;
  // The share of a square that a band of half width w (as a share of its side) covers is 2w − w².
  const double half_band = (1 - std::sqrt(1 - options.density)) * tokens, half_stripe = options.density * frame / 2;
  const Chances chances(seed, step, options.drift);
  std::vector<uint32_t> offsets{0};
  std::vector<BlockInterval> intervals;
  std::vector<uint8_t> kept(static_cast<size_t>(columns));
  const auto block_number = [&](int r, int c) {
    return static_cast<uint64_t>(r) * static_cast<uint64_t>(columns) + static_cast<uint64_t>(c);
  };
  for (int r = 0; r < rows; ++r) {
    const double query = (r + 0.5) * geometry.block_q;
    const int own_keys = std::min(columns - 1, static_cast<int>(query) / geometry.block_k);
    for (int c = 0; c < columns; ++c) {
      if (c == own_keys) {
        kept[static_cast<size_t>(c)] = 1;
        continue;
      }
      if (kind == MaskKind::kRandom) {
        kept[static_cast<size_t>(c)] = chances.at(block_number(r, c)) < options.density;
        continue;
      }
      const double distance = std::abs((c + 0.5) * geometry.block_k - query);
      const double to_frame = std::abs(distance - std::round(distance / frame) * frame);
      bool keep = kind == MaskKind::kBand ? distance <= half_band : to_frame <= half_stripe;
      if (options.noise > 0) keep ^= chances.at(block_number(r, c)) < options.noise;
      kept[static_cast<size_t>(c)] = keep;
    }
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

SyntheticLayers::SyntheticLayers(std::vector<MaskKind> mix, const AttentionGeometry& geometry,
                                 const MaskOptions& options)
    : mix_(std::move(mix)), geometry_(geometry), options_(options), fixed_(mix_.size()) {
  for (size_t i = 0; i < mix_.size(); ++i) {
    if (mix_[i] != MaskKind::kRandom && options.noise == 0 && options.spread == 0) {
      fixed_[i] = synthetic_mask(mix_[i], geometry, options, 0, 0);
    }
  }
}

PlanLayer SyntheticLayers::layer(int step, int layer) const {
  PlanLayer heads(static_cast<size_t>(geometry_.heads));
  for (size_t head = 0; head < heads.size(); ++head) {
    const size_t i = head % mix_.size();
    if (fixed_[i]) {
      heads[head].intervals = *fixed_[i];
      continue;
    }
    const uint64_t seed = static_cast<uint64_t>(layer) * heads.size() + head;
    MaskOptions options = options_;
    options.density = std::min(1.0, options.density * (1 + options.spread * (2 * unit(mixed(~seed)) - 1)));
    heads[head].intervals = synthetic_mask(mix_[i], geometry_, options, step, seed);
  }
  return heads;
}

}  // namespace calibatt::bench
