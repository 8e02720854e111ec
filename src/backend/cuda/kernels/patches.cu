#include <algorithm>

#include "backend/cuda/device/device.h"
#include "backend/cuda/kernels/patches.h"

namespace calibatt::cuda {
namespace {

constexpr int kThreads = 256;

/// PatchCall as a kernel takes it.
struct Layout {
  int64_t size, channel_size;  // elements in all and of one channel of the latents
  int channels, height, width, rows, columns, patch_frames, patch_height, patch_width;
  const int32_t* raster_of_position;

  __device__ int volume() const { return patch_frames * patch_height * patch_width; }

  /// Where the cell of a token's patch lies in a channel of the latents.
  __device__ int64_t offset(int64_t token, int cell) const {
    const int raster = raster_of_position[token];
    const int64_t frame = int64_t{raster / (rows * columns)} * patch_frames + cell / (patch_height * patch_width);
    const int64_t row = int64_t{raster / columns % rows} * patch_height + cell / patch_width % patch_height;
    const int64_t column = int64_t{raster % columns} * patch_width + cell % patch_width;
    return (frame * height + row) * width + column;
  }
};

/// Both: a thread per element of the tokens, whose rows are ordered (channel, cell) or (cell, channel).
__global__ void __launch_bounds__(kThreads)
    patchify_kernel(const __grid_constant__ Layout layout, const float* latents, float* tokens) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= layout.size) return;
  const int volume = layout.volume(), width = layout.channels * volume;
  const int64_t token = i / width;
  const int at = static_cast<int>(i - token * width);
  tokens[i] = latents[at / volume * layout.channel_size + layout.offset(token, at % volume)];
}

__global__ void __launch_bounds__(kThreads)
    unpatchify_kernel(const __grid_constant__ Layout layout, const float* tokens, float* latents) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= layout.size) return;
  const int width = layout.channels * layout.volume();
  const int64_t token = i / width;
  const int at = static_cast<int>(i - token * width);
  latents[at % layout.channels * layout.channel_size + layout.offset(token, at / layout.channels)] = tokens[i];
}

Layout make_layout(const PatchCall& call) {
  Layout layout{};
  layout.channel_size = call.frames * call.height * call.width;
  layout.size = layout.channel_size * call.channels;
  layout.channels = static_cast<int>(call.channels);
  layout.height = static_cast<int>(call.height);
  layout.width = static_cast<int>(call.width);
  layout.rows = layout.height / call.patch[1];
  layout.columns = layout.width / call.patch[2];
  layout.patch_frames = call.patch[0];
  layout.patch_height = call.patch[1];
  layout.patch_width = call.patch[2];
  layout.raster_of_position = call.raster_of_position;
  return layout;
}

unsigned num_blocks(const Layout& layout) {
  return static_cast<unsigned>((layout.size + kThreads - 1) / kThreads);
}

}  // namespace

void patchify(const PatchCall& call, const float* latents, float* tokens, cudaStream_t stream) {
  const Layout layout = make_layout(call);
  if (layout.size == 0) return;
  patchify_kernel<<<num_blocks(layout), kThreads, 0, stream>>>(layout, latents, tokens);
  check(cudaGetLastError(), "patchify: launch");
}

void unpatchify(const PatchCall& call, const float* tokens, float* latents, cudaStream_t stream) {
  const Layout layout = make_layout(call);
  if (layout.size == 0) return;
  unpatchify_kernel<<<num_blocks(layout), kThreads, 0, stream>>>(layout, tokens, latents);
  check(cudaGetLastError(), "unpatchify: launch");
}

}  // namespace calibatt::cuda
