#include "backend/cpu/patches.h"

#include "base/thread_pool.h"

namespace calibatt::cpu {
namespace {

/// Visits the cells of one token's patch: visit(offset into a latent channel, index of the cell in the patch).
template <class Visit>
void for_patch(const PatchLayout& layout, const std::vector<int64_t>& latent_shape, int64_t raster,
               const Visit& visit) {
  const auto [patch_frames, patch_height, patch_width] = layout.patch;
  const int64_t height = latent_shape[2], width = latent_shape[3];
  const int64_t columns = width / patch_width, rows = height / patch_height;
  const int64_t first_frame = raster / (rows * columns) * patch_frames;
  const int64_t first_row = raster / columns % rows * patch_height;
  const int64_t first_column = raster % columns * patch_width;
  int64_t cell = 0;
  for (int64_t frame = first_frame; frame < first_frame + patch_frames; ++frame) {
    for (int64_t row = first_row; row < first_row + patch_height; ++row) {
      for (int64_t column = first_column; column < first_column + patch_width; ++column) {
        visit((frame * height + row) * width + column, cell++);
      }
    }
  }
}

constexpr int64_t kTokensPerChunk = 128;

}  // namespace

void patchify(const Tensor& latents, const PatchLayout& layout, Tensor& tokens) {
  const int64_t channels = latents.dim(0), channel_size = latents.size() / channels;
  const int64_t patch_volume = int64_t{layout.patch[0]} * layout.patch[1] * layout.patch[2];
  const auto num_tokens = static_cast<int64_t>(layout.raster_of_position.size());
  CALIBATT_ASSERT(latents.rank() == 4 && num_tokens * patch_volume == channel_size && tokens.size() == latents.size());
  const float* from = latents.f32();
  float* to = tokens.f32();
  parallel_for(num_tokens, kTokensPerChunk, [&](int64_t begin, int64_t end, int) {
    for (int64_t token = begin; token < end; ++token) {
      float* row = to + token * channels * patch_volume;
      for_patch(layout, latents.shape(), layout.raster_of_position[token], [&](int64_t offset, int64_t cell) {
        for (int64_t c = 0; c < channels; ++c) row[c * patch_volume + cell] = from[c * channel_size + offset];
      });
    }
  });
}

void unpatchify(const Tensor& tokens, const PatchLayout& layout, Tensor& latents) {
  const int64_t channels = latents.dim(0), channel_size = latents.size() / channels;
  const int64_t patch_volume = int64_t{layout.patch[0]} * layout.patch[1] * layout.patch[2];
  const auto num_tokens = static_cast<int64_t>(layout.raster_of_position.size());
  CALIBATT_ASSERT(latents.rank() == 4 && num_tokens * patch_volume == channel_size && tokens.size() == latents.size());
  const float* from = tokens.f32();
  float* to = latents.f32();
  parallel_for(num_tokens, kTokensPerChunk, [&](int64_t begin, int64_t end, int) {
    for (int64_t token = begin; token < end; ++token) {
      const float* row = from + token * channels * patch_volume;
      for_patch(layout, latents.shape(), layout.raster_of_position[token], [&](int64_t offset, int64_t cell) {
        for (int64_t c = 0; c < channels; ++c) to[c * channel_size + offset] = row[cell * channels + c];
      });
    }
  });
}

}  // namespace calibatt::cpu
