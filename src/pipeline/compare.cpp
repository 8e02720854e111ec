#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <span>
#include <string>

#include "base/thread_pool.h"
#include "calibatt/counted.h"
#include "calibatt/error.h"
#include "calibatt/video.h"
#include "media/video_reader.h"
#include "media/video_writer.h"

namespace calibatt {

namespace {

std::string size_text(int frames, int height, int width) {
  return counted(frames, "frames") + " of " + std::to_string(width) + "×" + std::to_string(height);
}

[[noreturn]] void refuse_sizes(const std::string& a, const std::string& b) {
  throw Error(ErrorKind::kMismatch, "the videos differ in size: " + a + " against " + b +
                                        "; compare videos made with the same -W -H --video-frames");
}

void check_same_size(const VideoFrames& a, const VideoFrames& b) {
  if (a.frames != b.frames || a.height != b.height || a.width != b.width) {
    refuse_sizes(size_text(a.frames, a.height, a.width), size_text(b.frames, b.height, b.width));
  }
  if (a.frames == 0) throw Error(ErrorKind::kMismatch, "the videos have no frames");
}

// ITU-R BT.601 luma of one frame, 0–255.
std::vector<float> luma(const uint8_t* pixel, size_t num_pixels) {
  std::vector<float> result(num_pixels);
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

double psnr(double mean_square_error) {
  return mean_square_error == 0 ? std::numeric_limits<double>::infinity()
                                : 10 * std::log10(255.0 * 255.0 / mean_square_error);
}

/// Compares pairs of frames as they come.
class Comparison {
 public:
  Comparison(int height, int width) : height_(height), width_(width) {
    if (height <= 2 * kRadius || width <= 2 * kRadius) {
      throw Error(ErrorKind::kMismatch, "the videos are smaller than SSIM's 11×11 window: " + std::to_string(width) +
                                            "×" + std::to_string(height));
    }
  }

  /// So many pairs at a time keep the threads busy and need little memory.
  int batch_size() const {
    constexpr int64_t kBatchBytes = int64_t{256} << 20, kBytesPerPixel = 48;  // lumas and SSIM's temporaries
    const int64_t pixels = int64_t{height_} * width_;
    return static_cast<int>(std::clamp<int64_t>(kBatchBytes / (kBytesPerPixel * pixels), 1, num_threads()));
  }

  /// The next frames of both, in order.
  void add(std::span<const uint8_t* const> a, std::span<const uint8_t* const> b) {
    const size_t count = a.size(), pixels = static_cast<size_t>(height_) * static_cast<size_t>(width_);
    std::vector<std::vector<float>> luma_a(count), luma_b(count);
    std::vector<double> square_error(count), ssim(count);
    parallel_for(static_cast<int64_t>(count), 1, [&](int64_t begin, int64_t end, int) {
      for (auto t = static_cast<size_t>(begin); t < static_cast<size_t>(end); ++t) {
        double sum = 0;
        for (size_t i = 0; i < 3 * pixels; ++i) {
          const double difference = static_cast<double>(a[t][i]) - b[t][i];
          sum += difference * difference;
        }
        square_error[t] = sum / static_cast<double>(3 * pixels);
        luma_a[t] = luma(a[t], pixels);
        luma_b[t] = luma(b[t], pixels);
        ssim[t] = ssim_of_frame(luma_a[t], luma_b[t], height_, width_);
      }
    });
    square_error_.insert(square_error_.end(), square_error.begin(), square_error.end());
    ssim_.insert(ssim_.end(), ssim.begin(), ssim.end());
    for (size_t t = 0; t < count; ++t) {
      flicker_a_.add(std::move(luma_a[t]));
      flicker_b_.add(std::move(luma_b[t]));
    }
  }

  VideoComparison result() const {
    const auto frames = static_cast<double>(ssim_.size());
    VideoComparison result;
    double square_sum = 0;
    for (size_t t = 0; t < ssim_.size(); ++t) {
      square_sum += square_error_[t];
      result.ssim += ssim_[t] / frames;
      result.psnr_db_per_frame.push_back(psnr(square_error_[t]));
    }
    result.psnr_db = psnr(square_sum / frames);
    result.flicker_difference = flicker_b_.mean() - flicker_a_.mean();
    return result;
  }

 private:
  /// Mean change of a pixel from frame to frame.
  class Flicker {
   public:
    void add(std::vector<float> luma) {
      if (!previous_.empty()) {
        for (size_t i = 0; i < luma.size(); ++i) sum_ += std::abs(luma[i] - previous_[i]);
        count_ += luma.size();
      }
      previous_ = std::move(luma);
    }
    double mean() const { return count_ == 0 ? 0 : sum_ / static_cast<double>(count_); }

   private:
    std::vector<float> previous_;
    double sum_ = 0;
    size_t count_ = 0;
  };

  int height_, width_;
  std::vector<double> square_error_, ssim_;
  Flicker flicker_a_, flicker_b_;
};

void put_beside(const uint8_t* a, const uint8_t* b, size_t row_bytes, size_t rows, uint8_t* both) {
  for (size_t row = 0; row < rows; ++row) {
    std::copy_n(a + row * row_bytes, row_bytes, both + 2 * row * row_bytes);
    std::copy_n(b + row * row_bytes, row_bytes, both + (2 * row + 1) * row_bytes);
  }
}

/// Frames of a file, some at a time.
struct FrameBatch {
  std::vector<std::vector<uint8_t>> frames;
  std::vector<const uint8_t*> pointers;

  void read(VideoReader& reader, int count) {
    frames.resize(static_cast<size_t>(count));
    pointers.clear();
    for (auto& frame : frames) {
      if (!reader.next(frame)) break;
      pointers.push_back(frame.data());
    }
  }
};

int frames_left(VideoReader& reader) {
  int count = 0;
  for (std::vector<uint8_t> frame; reader.next(frame);) ++count;
  return count;
}

}  // namespace

VideoComparison compare_videos(const VideoFrames& a, const VideoFrames& b) {
  check_same_size(a, b);
  Comparison comparison(a.height, a.width);
  for (int t = 0; t < a.frames;) {
    std::vector<const uint8_t*> frames_a, frames_b;
    for (int i = 0; i < comparison.batch_size() && t < a.frames; ++i, ++t) {
      const size_t offset = static_cast<size_t>(t) * a.frame_bytes();
      frames_a.push_back(a.rgb.data() + offset);
      frames_b.push_back(b.rgb.data() + offset);
    }
    comparison.add(frames_a, frames_b);
  }
  return comparison.result();
}

FileComparison compare_video_files(const std::string& a, const std::string& b, const std::string& side_by_side_path,
                                   double fps) {
  VideoReader reader_a(a), reader_b(b);
  FrameBatch batch_a, batch_b;
  batch_a.read(reader_a, 1);
  batch_b.read(reader_b, 1);
  const int height = reader_a.height(), width = reader_a.width();
  if (reader_b.height() != height || reader_b.width() != width) {
    refuse_sizes(std::to_string(width) + "×" + std::to_string(height),
                 std::to_string(reader_b.width()) + "×" + std::to_string(reader_b.height()));
  }
  Comparison comparison(height, width);
  std::unique_ptr<VideoWriter> writer;
  const size_t row_bytes = static_cast<size_t>(width) * 3, rows = static_cast<size_t>(height);
  std::vector<uint8_t> both(2 * row_bytes * rows);
  if (!side_by_side_path.empty()) writer = std::make_unique<VideoWriter>(side_by_side_path, height, 2 * width, fps);
  int frames = 0;
  while (!batch_a.pointers.empty() && batch_a.pointers.size() == batch_b.pointers.size()) {
    comparison.add(batch_a.pointers, batch_b.pointers);
    for (size_t t = 0; writer && t < batch_a.pointers.size(); ++t) {
      put_beside(batch_a.pointers[t], batch_b.pointers[t], row_bytes, rows, both.data());
      writer->add(both.data());
    }
    frames += static_cast<int>(batch_a.pointers.size());
    batch_a.read(reader_a, comparison.batch_size());
    batch_b.read(reader_b, comparison.batch_size());
  }
  const auto more_a = static_cast<int>(batch_a.pointers.size()), more_b = static_cast<int>(batch_b.pointers.size());
  if (more_a != more_b) {
    refuse_sizes(size_text(frames + more_a + frames_left(reader_a), height, width),
                 size_text(frames + more_b + frames_left(reader_b), height, width));
  }
  if (writer) writer->finish();
  return {comparison.result(), frames, height, width};
}

VideoFrames side_by_side(const VideoFrames& a, const VideoFrames& b) {
  check_same_size(a, b);
  VideoFrames result{a.frames, a.height, 2 * a.width, std::vector<uint8_t>(2 * a.rgb.size())};
  put_beside(a.rgb.data(), b.rgb.data(), static_cast<size_t>(a.width) * 3, static_cast<size_t>(a.frames) * a.height,
             result.rgb.data());
  return result;
}

}  // namespace calibatt
