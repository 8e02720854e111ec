#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>

#include "base/thread_pool.h"
#include "calibatt/error.h"
#include "calibatt/video.h"

namespace calibatt {

namespace {

std::string size_text(const VideoFrames& video) {
  return std::to_string(video.frames) + " frames of " + std::to_string(video.width) + "×" +
         std::to_string(video.height);
}

void check_same_size(const VideoFrames& a, const VideoFrames& b) {
  if (a.frames != b.frames || a.height != b.height || a.width != b.width) {
    throw Error(ErrorKind::kMismatch, "the videos differ in size: " + size_text(a) + " against " + size_text(b) +
                                          "; compare videos made with the same -W -H --video-frames");
  }
  if (a.frames == 0) throw Error(ErrorKind::kMismatch, "the videos have no frames");
}

// ITU-R BT.601 luma of one frame, 0–255.
std::vector<float> luma(const VideoFrames& video, int frame) {
  const uint8_t* pixel = video.rgb.data() + static_cast<size_t>(frame) * video.frame_bytes();
  std::vector<float> result(video.frame_bytes() / 3);
  for (float& value : result) {
    value = 0.299f * pixel[0] + 0.587f * pixel[1] + 0.114f * pixel[2];
    pixel += 3;
  }
  return result;
}

constexpr int kRadius = 5;  // of SSIM's 11×11 window

std::array<float, 2 * kRadius + 1> gaussian_window() {
  std::array<float, 2 * kRadius + 1> window{};
  float sum = 0;
  for (int i = -kRadius; i <= kRadius; ++i)
    sum += window[i + kRadius] = std::exp(-static_cast<float>(i * i) / (2 * 1.5f * 1.5f));
  for (float& weight : window) weight /= sum;
  return window;
}

// Separable Gaussian filter over the positions where the window fits: [height − 10, width − 10].
std::vector<float> filtered(const std::vector<float>& image, int height, int width) {
  static const auto window = gaussian_window();
  const int out_height = height - 2 * kRadius, out_width = width - 2 * kRadius;
  std::vector<float> rows(static_cast<size_t>(height) * out_width, 0.0f),
      result(static_cast<size_t>(out_height) * out_width, 0.0f);
  for (int y = 0; y < height; ++y) {
    for (int tap = 0; tap < 2 * kRadius + 1; ++tap) {
      const float* in = &image[static_cast<size_t>(y) * width + tap];
      float* out = &rows[static_cast<size_t>(y) * out_width];
      for (int x = 0; x < out_width; ++x) out[x] += window[tap] * in[x];
    }
  }
  for (int y = 0; y < out_height; ++y) {
    for (int tap = 0; tap < 2 * kRadius + 1; ++tap) {
      const float* in = &rows[static_cast<size_t>(y + tap) * out_width];
      float* out = &result[static_cast<size_t>(y) * out_width];
      for (int x = 0; x < out_width; ++x) out[x] += window[tap] * in[x];
    }
  }
  return result;
}

double ssim_of_frame(const std::vector<float>& a, const std::vector<float>& b, int height, int width) {
  const auto product = [](const std::vector<float>& x, const std::vector<float>& y) {
    std::vector<float> result(x.size());
    for (size_t i = 0; i < x.size(); ++i) result[i] = x[i] * y[i];
    return result;
  };
  const auto mean_a = filtered(a, height, width), mean_b = filtered(b, height, width);
  const auto square_a = filtered(product(a, a), height, width), square_b = filtered(product(b, b), height, width);
  const auto cross = filtered(product(a, b), height, width);
  constexpr double kC1 = (0.01 * 255) * (0.01 * 255), kC2 = (0.03 * 255) * (0.03 * 255);
  double sum = 0;
  for (size_t i = 0; i < mean_a.size(); ++i) {
    const double ma = mean_a[i], mb = mean_b[i];
    const double variance_a = square_a[i] - ma * ma, variance_b = square_b[i] - mb * mb,
                 covariance = cross[i] - ma * mb;
    sum += (2 * ma * mb + kC1) * (2 * covariance + kC2) / ((ma * ma + mb * mb + kC1) * (variance_a + variance_b + kC2));
  }
  return sum / static_cast<double>(mean_a.size());
}

double flicker(const std::vector<std::vector<float>>& lumas) {
  double sum = 0;
  size_t count = 0;
  for (size_t t = 1; t < lumas.size(); ++t) {
    for (size_t i = 0; i < lumas[t].size(); ++i) sum += std::abs(lumas[t][i] - lumas[t - 1][i]);
    count += lumas[t].size();
  }
  return count == 0 ? 0 : sum / static_cast<double>(count);
}

double psnr(double mean_square_error) {
  return mean_square_error == 0 ? std::numeric_limits<double>::infinity()
                                : 10 * std::log10(255.0 * 255.0 / mean_square_error);
}

}  // namespace

VideoComparison compare_videos(const VideoFrames& a, const VideoFrames& b) {
  check_same_size(a, b);
  if (a.height <= 2 * kRadius || a.width <= 2 * kRadius) {
    throw Error(ErrorKind::kMismatch, "the videos are smaller than SSIM's 11×11 window: " + size_text(a));
  }
  const auto frames = static_cast<size_t>(a.frames);
  std::vector<std::vector<float>> luma_a(frames), luma_b(frames);
  std::vector<double> square_error(frames), ssim(frames);
  parallel_for(a.frames, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const auto frame = static_cast<size_t>(t);
      const size_t offset = frame * a.frame_bytes();
      double sum = 0;
      for (size_t i = 0; i < a.frame_bytes(); ++i) {
        const double difference = static_cast<double>(a.rgb[offset + i]) - b.rgb[offset + i];
        sum += difference * difference;
      }
      square_error[frame] = sum / static_cast<double>(a.frame_bytes());
      luma_a[frame] = luma(a, static_cast<int>(t));
      luma_b[frame] = luma(b, static_cast<int>(t));
      ssim[frame] = ssim_of_frame(luma_a[frame], luma_b[frame], a.height, a.width);
    }
  });

  VideoComparison result;
  double square_sum = 0;
  for (size_t t = 0; t < frames; ++t) {
    square_sum += square_error[t];
    result.ssim += ssim[t] / static_cast<double>(frames);
    result.psnr_db_per_frame.push_back(psnr(square_error[t]));
  }
  result.psnr_db = psnr(square_sum / static_cast<double>(frames));
  result.flicker_difference = flicker(luma_b) - flicker(luma_a);
  return result;
}

VideoFrames side_by_side(const VideoFrames& a, const VideoFrames& b) {
  check_same_size(a, b);
  VideoFrames result{a.frames, a.height, 2 * a.width, std::vector<uint8_t>(2 * a.rgb.size())};
  const size_t row_bytes = static_cast<size_t>(a.width) * 3, rows = static_cast<size_t>(a.frames) * a.height;
  for (size_t row = 0; row < rows; ++row) {
    std::copy_n(a.rgb.data() + row * row_bytes, row_bytes, result.rgb.data() + 2 * row * row_bytes);
    std::copy_n(b.rgb.data() + row * row_bytes, row_bytes, result.rgb.data() + (2 * row + 1) * row_bytes);
  }
  return result;
}

}  // namespace calibatt
