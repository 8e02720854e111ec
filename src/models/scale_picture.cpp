#include "models/scale_picture.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

#include "base/error.h"
#include "base/thread_pool.h"

namespace calibatt {
namespace {

constexpr int kPictureColors = 3;
// Weights are whole numbers of this many bits behind the point, so that sums are the same on every processor.
constexpr int kBits = 22;

/// The inputs that one output is made of, from `first` on.
struct Taps {
  int first = 0;
  std::vector<int32_t> weights;
};

double sinc(double x) {
  return x == 0 ? 1 : std::sin(std::numbers::pi * x) / (std::numbers::pi * x);
}

/// Half its width, where it is not widened.
double reach_of(PictureFilter filter) {
  return filter == PictureFilter::kLanczos ? 3 : 2;
}

double value_of(PictureFilter filter, double x) {
  x = std::abs(x);
  if (x >= reach_of(filter)) return 0;
  if (filter == PictureFilter::kLanczos) return sinc(x) * sinc(x / reach_of(filter));
  constexpr double kA = -0.5;  // Keys 1981
  return x < 1 ? ((kA + 2) * x - (kA + 3)) * x * x + 1 : (((x - 5) * x + 8) * x - 4) * kA;
}

std::vector<Taps> taps_of(int from, int to, PictureFilter filter) {
  const double scale = static_cast<double>(from) / to, width = std::max(scale, 1.0), reach = reach_of(filter) * width;
  std::vector<Taps> all(static_cast<size_t>(to));
  for (int i = 0; i < to; ++i) {
    const double centre = (i + 0.5) * scale;
    Taps& taps = all[static_cast<size_t>(i)];
    taps.first = std::max(0, static_cast<int>(std::floor(centre - reach + 0.5)));
    const int end = std::min(from, static_cast<int>(std::floor(centre + reach + 0.5)));
    std::vector<double> weights;
    double sum = 0;
    for (int at = taps.first; at < end; ++at) {
      weights.push_back(value_of(filter, (at + 0.5 - centre) / width));
      sum += weights.back();
    }
    for (const double weight : weights) {
      taps.weights.push_back(static_cast<int32_t>(std::lround(weight / sum * (1 << kBits))));
    }
  }
  return all;
}

/// Σ weight · byte over every `stride`-th byte.
uint8_t weighted(const uint8_t* bytes, int64_t stride, const Taps& taps) {
  int64_t sum = 1 << (kBits - 1);  // rounds
  for (const int32_t weight : taps.weights) {
    sum += int64_t{weight} * *bytes;
    bytes += stride;
  }
  return static_cast<uint8_t>(std::clamp<int64_t>(sum >> kBits, 0, 255));
}

Picture with_columns(const Picture& picture, int width, PictureFilter filter) {
  Picture result{picture.height, width, {}, picture.source};
  result.rgb.resize(static_cast<size_t>(picture.height) * static_cast<size_t>(width) * kPictureColors);
  const std::vector<Taps> taps = taps_of(picture.width, width, filter);
  parallel_for(picture.height, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const uint8_t* from = picture.rgb.data() + row * picture.width * kPictureColors;
      uint8_t* to = result.rgb.data() + row * width * kPictureColors;
      for (const Taps& each : taps) {
        for (int color = 0; color < kPictureColors; ++color)
          *to++ = weighted(from + each.first * kPictureColors + color, kPictureColors, each);
      }
    }
  });
  return result;
}

Picture with_rows(const Picture& picture, int height, PictureFilter filter) {
  Picture result{height, picture.width, {}, picture.source};
  const int64_t stride = int64_t{picture.width} * kPictureColors;
  result.rgb.resize(static_cast<size_t>(height * stride));
  const std::vector<Taps> taps = taps_of(picture.height, height, filter);
  parallel_for(height, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      const Taps& each = taps[static_cast<size_t>(row)];
      const uint8_t* from = picture.rgb.data() + each.first * stride;
      uint8_t* to = result.rgb.data() + row * stride;
      for (int64_t at = 0; at < stride; ++at) to[at] = weighted(from + at, stride, each);
    }
  });
  return result;
}

}  // namespace

Picture scaled_picture(const Picture& picture, int height, int width, PictureFilter filter) {
  CALIBATT_ASSERT(height > 0 && width > 0 && picture.height > 0 && picture.width > 0);
  Picture result = picture;
  if (width != result.width) result = with_columns(result, width, filter);
  if (height != result.height) result = with_rows(result, height, filter);
  return result;
}

}  // namespace calibatt
