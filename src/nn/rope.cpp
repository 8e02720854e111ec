#include "nn/rope.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "base/thread_pool.h"

namespace calibatt {
namespace {

/// Rotations of one axis, [index][channel], in the lane-wise form of RopeTable.
struct AxisTable {
  int channels = 0;
  std::vector<float> cos, signed_sin;

  AxisTable(int length, int axis_channels) : channels(axis_channels) {
    constexpr double kTheta = 10000;
    cos.resize(static_cast<size_t>(length) * static_cast<size_t>(channels));
    signed_sin.resize(cos.size());
    for (int index = 0; index < length; ++index) {
      for (int c = 0; c < channels; c += 2) {
        const double angle = index * (1.0 / std::pow(kTheta, static_cast<double>(c) / channels));
        const size_t at = static_cast<size_t>(index) * static_cast<size_t>(channels) + static_cast<size_t>(c);
        cos[at] = cos[at + 1] = static_cast<float>(std::cos(angle));
        signed_sin[at + 1] = static_cast<float>(std::sin(angle));
        signed_sin[at] = -signed_sin[at + 1];
      }
    }
  }

  float* copy_row(const std::vector<float>& table, int64_t index, float* to) const {
    std::memcpy(to, table.data() + index * channels, static_cast<size_t>(channels) * sizeof(float));
    return to + channels;
  }
};

/// The centres of `count` equal bins of [−stop, stop], step by step in float32 as torch's linspace makes their edges.
std::vector<float> bin_centres(double stop, int count) {
  const auto begin = static_cast<float>(-stop), end = static_cast<float>(stop);
  const float step = (end - begin) / static_cast<float>(count);
  const auto edge = [&](int i) {
    return i < (count + 1) / 2 ? begin + step * static_cast<float>(i) : end - step * static_cast<float>(count - i);
  };
  std::vector<float> centres;
  centres.reserve(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) centres.push_back((edge(i) + edge(i + 1)) / 2);
  return centres;
}

}  // namespace

std::array<int, 3> video_rope_split(int head_dim) {
  const int spatial = 2 * (head_dim / 6);
  return {head_dim - 2 * spatial, spatial, spatial};
}

RopeTable make_video_rope(std::array<int, 3> grid, int head_dim, std::span<const int32_t> raster_of_position) {
  const int frames = grid[0], height = grid[1], width = grid[2];
  const auto split = video_rope_split(head_dim);
  const AxisTable by_frame(frames, split[0]), by_row(height, split[1]), by_column(width, split[2]);
  const auto num_tokens = static_cast<int64_t>(raster_of_position.size());
  RopeTable rope{Tensor(DType::kF32, {num_tokens, head_dim}), Tensor(DType::kF32, {num_tokens, head_dim})};
  float* cos = rope.cos.f32();
  float* signed_sin = rope.signed_sin.f32();
  constexpr int64_t kTokensPerChunk = 512;
  parallel_for(num_tokens, kTokensPerChunk, [&](int64_t begin, int64_t end, int) {
    for (int64_t position = begin; position < end; ++position) {
      const int64_t raster = raster_of_position[position];
      const int64_t frame = raster / (height * width), row = raster / width % height, column = raster % width;
      float* to = cos + position * head_dim;
      to = by_frame.copy_row(by_frame.cos, frame, to);
      to = by_row.copy_row(by_row.cos, row, to);
      by_column.copy_row(by_column.cos, column, to);
      to = signed_sin + position * head_dim;
      to = by_frame.copy_row(by_frame.signed_sin, frame, to);
      to = by_row.copy_row(by_row.signed_sin, row, to);
      by_column.copy_row(by_column.signed_sin, column, to);
    }
  });
  return rope;
}

Tensor learned_rope_positions(std::array<int, 3> grid, std::span<const int32_t> raster_of_position) {
  constexpr double kArea = 192.0 * 192.0;
  const int height = grid[1], width = grid[2];
  const double scale = std::sqrt(kArea / (static_cast<double>(height) * width));
  const std::vector<float> rows = bin_centres(height * scale / 2, height),
                           columns = bin_centres(width * scale / 2, width);
  Tensor positions(DType::kF32, {static_cast<int64_t>(raster_of_position.size()), 3});
  float* to = positions.f32();
  for (const int64_t raster : raster_of_position) {
    const int64_t frame = raster / (int64_t{height} * width);
    *to++ = static_cast<float>(frame);
    *to++ = rows[static_cast<size_t>(raster / width % height)];
    *to++ = columns[static_cast<size_t>(raster % width)];
  }
  return positions;
}

}  // namespace calibatt
