#include "backend/cpu/group_norm.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "backend/cpu/clip_kernels.h"
#include "base/error.h"
#include "base/thread_pool.h"

namespace calibatt::cpu {
namespace {

struct Sums {
  double values = 0, squares = 0;
};

/// What becomes of a channel of a frame: x · factor + shift.
struct Affine {
  std::vector<float> factor, shift;  // [frames · channels]
};

/// Of every (row, frame, group): in float32 along the row, in float64 over what is added up later.
std::vector<Sums> sum_rows(const ClipView& in, const Tensor* offset, int groups) {
  const int64_t size = in.channels / groups;
  std::vector<Sums> sums(static_cast<size_t>(in.height * in.frames * groups));
  parallel_for(in.height, 1, [&](int64_t begin, int64_t end, int) {
    std::vector<float> values(static_cast<size_t>(in.channels)), squares(values.size());
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t frame = 0; frame < in.frames; ++frame) {
        sum_channels({in.at(row, frame), in.dtype}, in.width, values, squares);
        for (int64_t c = 0; c < in.channels; ++c) {
          const double shift = offset != nullptr ? offset->f32()[c] : 0, value = values[static_cast<size_t>(c)];
          Sums& sum = sums[static_cast<size_t>((row * in.frames + frame) * groups + c / size)];
          sum.values += value + shift * static_cast<double>(in.width);
          sum.squares += squares[static_cast<size_t>(c)] + shift * (2 * value + shift * static_cast<double>(in.width));
        }
      }
    }
  });
  return sums;
}

/// Of every (frame, group).
std::vector<Sums> sum_frames(const ClipView& in, const Tensor* offset, int groups) {
  const std::vector<Sums> rows = sum_rows(in, offset, groups);
  std::vector<Sums> sums(static_cast<size_t>(in.frames * groups));
  for (size_t part = 0; part < rows.size(); ++part) {
    Sums& sum = sums[part % sums.size()];
    sum.values += rows[part].values;
    sum.squares += rows[part].squares;
  }
  return sums;
}

/// Every rank's, added up in the same order everywhere.
std::vector<Sums> sum_ranks(const std::vector<Sums>& own, Communicator& ranks) {
  std::vector<std::vector<Sums>> all(static_cast<size_t>(ranks.size()), own);
  std::vector<Piece> receive;
  receive.reserve(all.size());
  for (std::vector<Sums>& each : all) receive.push_back({each.data(), each.size() * sizeof(Sums)});
  ranks.all_gather({own.data(), own.size() * sizeof(Sums)}, receive);
  std::vector<Sums> sums(own.size());
  for (const std::vector<Sums>& each : all) {
    for (size_t i = 0; i < sums.size(); ++i) {
      sums[i].values += each[i].values;
      sums[i].squares += each[i].squares;
    }
  }
  return sums;
}

Affine measure(const ClipView& in, const Tensor* offset, const GroupNorm& norm) {
  std::vector<Sums> sums = sum_frames(in, offset, norm.groups);
  if (norm.ranks != nullptr) sums = sum_ranks(sums, *norm.ranks);
  const int64_t size = in.channels / norm.groups;
  const auto count = static_cast<double>(norm.height(in) * in.width * size);
  Affine affine;
  affine.factor.resize(static_cast<size_t>(in.frames * in.channels));
  affine.shift.resize(affine.factor.size());
  for (int64_t frame = 0; frame < in.frames; ++frame) {
    for (int64_t group = 0; group < norm.groups; ++group) {
      const Sums& sum = sums[static_cast<size_t>(frame * norm.groups + group)];
      const double mean = sum.values / count, square = sum.squares / count;
      const double variance = square > mean * mean ? square - mean * mean : square - square;  // NaN stays NaN
      const double scale = 1 / std::sqrt(variance + static_cast<double>(norm.epsilon));
      for (int64_t c = group * size; c < (group + 1) * size; ++c) {
        const double factor = scale * norm.gamma.f32()[c], shift = offset != nullptr ? offset->f32()[c] : 0;
        affine.factor[static_cast<size_t>(frame * in.channels + c)] = static_cast<float>(factor);
        affine.shift[static_cast<size_t>(frame * in.channels + c)] =
            static_cast<float>(norm.beta.f32()[c] + (shift - mean) * factor);
      }
    }
  }
  return affine;
}

/// Copies the first and the last of the pixels inside into the columns left and right of them.
void repeat_columns(const ClipView& out, int64_t row, int64_t frame, int64_t border) {
  const auto pixel_bytes = static_cast<size_t>(out.channels) * dtype_size(out.dtype);
  char* const first = static_cast<char*>(out.at(row, frame)) + static_cast<size_t>(border) * pixel_bytes;
  char* const last = first + static_cast<size_t>(out.width - 2 * border - 1) * pixel_bytes;
  for (size_t i = 1; i <= static_cast<size_t>(border); ++i) {
    std::memcpy(first - i * pixel_bytes, first, pixel_bytes);
    std::memcpy(last + i * pixel_bytes, last, pixel_bytes);
  }
}

}  // namespace

void group_norm(const ClipView& in, const Tensor* offset, const GroupNorm& norm, bool silu, const ClipView& out) {
  const int64_t border = (out.height - in.height) / 2;
  CALIBATT_ASSERT(border >= 0 && out.height == in.height + 2 * border && out.width == in.width + 2 * border &&
                  out.frames == in.frames && out.channels == in.channels);
  CALIBATT_ASSERT(in.channels % norm.groups == 0 && norm.gamma.size() == in.channels &&
                  norm.beta.size() == in.channels);
  CALIBATT_ASSERT(offset == nullptr || offset->size() == in.channels);
  const Affine affine = measure(in, offset, norm);
  const auto channels = static_cast<size_t>(in.channels);
  const size_t pixel_bytes = channels * dtype_size(out.dtype);
  parallel_for(in.height, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t frame = 0; frame < in.frames; ++frame) {
        const size_t at = static_cast<size_t>(frame) * channels;
        char* const to = static_cast<char*>(out.at(row + border, frame)) + static_cast<size_t>(border) * pixel_bytes;
        scale_shift_pixels({in.at(row, frame), in.dtype}, {to, out.dtype}, in.width, {&affine.factor[at], channels},
                           {&affine.shift[at], channels}, silu);
        repeat_columns(out, row + border, frame, border);
      }
    }
  });
  const size_t row_bytes = static_cast<size_t>(out.frames * out.width) * pixel_bytes;
  for (int64_t i = 0; i < border; ++i) {
    std::memcpy(out.at(i, 0), out.at(border, 0), row_bytes);
    std::memcpy(out.at(out.height - 1 - i, 0), out.at(out.height - 1 - border, 0), row_bytes);
  }
}

}  // namespace calibatt::cpu
