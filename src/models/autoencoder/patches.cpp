#include "models/autoencoder/patches.h"

#include <algorithm>
#include <vector>

#include "base/thread_pool.h"

namespace calibatt::autoencoder {
namespace {

/// How the channels of a patch are ordered: colour, column, row (diffusers' patchify).
int patch_channel(int color, int row, int column, int patch) {
  return (color * patch + column) * patch + row;
}

}  // namespace

Tensor gather_pixels(const Tensor& video, int patch, int64_t begin, int64_t count) {
  const int64_t height = video.dim(2) / patch, width = video.dim(3) / patch, channels = kColors * patch * patch;
  Tensor group(DType::kF32, {height, count, width, channels});
  parallel_for(height, 4, [&](int64_t row_begin, int64_t row_end, int) {
    for (int64_t row = row_begin; row < row_end; ++row) {
      for (int64_t frame = 0; frame < count; ++frame) {
        float* const to = group.f32() + (row * count + frame) * width * channels;
        for (int color = 0; color < kColors; ++color) {
          for (int y = 0; y < patch; ++y) {
            const float* from =
                video.f32() + (((begin + frame) * kColors + color) * height * patch + row * patch + y) * width * patch;
            for (int64_t column = 0; column < width; ++column) {
              for (int x = 0; x < patch; ++x) to[column * channels + patch_channel(color, y, x, patch)] = *from++;
            }
          }
        }
      }
    }
  });
  return group;
}

bool scatter_pixels(const Tensor& group, int patch, Tensor& pixels) {
  const int64_t height = group.dim(0), frames = group.dim(1), width = group.dim(2), channels = group.dim(3);
  const int64_t count = pixels.dim(0), left_out = frames - count;
  std::vector<char> row_is_sound(static_cast<size_t>(height));
  parallel_for(height, 4, [&](int64_t row_begin, int64_t row_end, int) {
    for (int64_t row = row_begin; row < row_end; ++row) {
      bool sound = true;
      for (int64_t frame = 0; frame < count; ++frame) {
        const float* const from = group.f32() + (row * frames + left_out + frame) * width * channels;
        for (int color = 0; color < kColors; ++color) {
          for (int y = 0; y < patch; ++y) {
            float* to = pixels.f32() + ((frame * kColors + color) * height * patch + row * patch + y) * width * patch;
            for (int64_t column = 0; column < width; ++column) {
              for (int x = 0; x < patch; ++x) {
                const float value = from[column * channels + patch_channel(color, y, x, patch)];
                sound &= value == value;
                *to++ = std::clamp(value, -1.0f, 1.0f);
              }
            }
          }
        }
      }
      row_is_sound[static_cast<size_t>(row)] = sound;
    }
  });
  return std::all_of(row_is_sound.begin(), row_is_sound.end(), [](char sound) { return sound != 0; });
}

}  // namespace calibatt::autoencoder
