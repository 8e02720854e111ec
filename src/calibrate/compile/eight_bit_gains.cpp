#include "calibrate/compile/eight_bit_gains.h"

#include <algorithm>
#include <cmath>
#include <span>

namespace calibatt {
namespace {

using Point = EightBitGains::Attention;

double in_density(std::span<const Point> points, double density) {
  if (density <= points.front().density) return points.front().gain;
  for (size_t i = 1; i < points.size(); ++i) {
    const Point &a = points[i - 1], &b = points[i];
    if (density > b.density) continue;
    return a.gain + (b.gain - a.gain) * (density - a.density) / (b.density - a.density);
  }
  return points.back().gain;
}

/// The points of one size from `begin` on.
std::span<const Point> of_size(const std::vector<Point>& points, size_t begin) {
  size_t end = begin;
  while (end < points.size() && points[end].tokens == points[begin].tokens) ++end;
  return {points.begin() + static_cast<std::ptrdiff_t>(begin), end - begin};
}

/// Everything but self-attention, of Wan 14B at 720p: e4m3 2.71 s for 1.36 s; int8 2.71 s for 1.33 s, of which .04 s
/// are the norm and rotation of queries and keys, that attention did in that run. Small Wan models gain less, which
/// nobody measured.
constexpr double kLayersE4M3 = 1.99, kLayersInt8 = 2.04;

/// Hopper, the only GPUs that compute anything in 8 bits here. From forwards of Wan 14B (docs/performance.md, "One
/// H200: whole forwards in 8 bits"). Self-attention, quantising included, but without norm and rotation: planned at
/// 720p 64.2 ms a layer for 50.7, at 480p 10.3 for 8.5; dense 163.7 for 113.5 and 30.7 for 21.1. At density .214 it is
/// single launches ("One H200: attention in 8 bits"). Nobody measured few tokens: that nothing is gained at 8,192 is
/// supposed.
EightBitGains hopper(DType layers) {
  return {layers == DType::kI8 ? kLayersInt8 : kLayersE4M3,
          {{8'192, 1, 1},
           {32'760, 0.321, 1.21},
           {32'760, 1, 1.45},
           {75'600, 0.214, 1.21},
           {75'600, 0.376, 1.27},
           {75'600, 1, 1.44}}};
}

/// The same of Mochi 1 at 848×480 × 163 frames: .294 s for .181 s ("One H200: linear layers in 8 bits"). In e4m3; int8
/// was not measured, and is taken to gain as much.
constexpr double kMochiLayers = 1.62;

}  // namespace

double EightBitGains::of_attention(int tokens, double density) const {
  if (attention.empty()) return 1;
  std::span<const Point> before = of_size(attention, 0);
  for (size_t begin = 0; begin < attention.size(); begin += before.size()) {
    const std::span<const Point> here = of_size(attention, begin);
    if (tokens <= here.front().tokens) {
      if (begin == 0) return in_density(here, density);
      const double low = before.front().tokens, high = here.front().tokens;
      const double share = std::log(tokens / low) / std::log(high / low);
      return (1 - share) * in_density(before, density) + share * in_density(here, density);
    }
    before = here;
  }
  return in_density(before, density);
}

EightBitParts EightBitGains::parts(int tokens) const {
  EightBitParts gaining{.attention = of_attention(tokens, 1) > 1, .layers = layers > 1};
  for (const Attention& each : attention) {
    gaining.attention = gaining.attention || of_attention(tokens, each.density) > 1;
  }
  return gaining;
}

EightBitGains eight_bit_gains(std::string_view backend, std::string_view transformer, DType layers) {
  if (backend != "cuda") return {};
  EightBitGains gains = hopper(layers);
  if (transformer == "MochiTransformer3DModel") gains.layers = kMochiLayers;
  return gains;
}

EightBitGains eight_bit_gains(int compute_capability, std::string_view transformer, DType layers) {
  constexpr int kHopper = 90;
  return compute_capability == kHopper ? eight_bit_gains("cuda", transformer, layers) : EightBitGains();
}

}  // namespace calibatt
