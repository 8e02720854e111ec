#include "models/mochi/vae_memory.h"

#include <algorithm>

#include "base/ceil_div.h"
#include "models/model_folder.h"

namespace calibatt {

// Level by level as make_decoder builds it. In a residual block its input, the padded input of a convolution with two
// frames of history, and what another made of it; between levels the linear layer's result and the new level's frames.
// Two frames of every causal convolution's input are kept from one latent frame to the next. Of ranks each has a share
// of the rows, and the first the pixels of a whole group.
uint64_t mochi_decoding_bytes(const MochiVaeConfig& config, const VideoSize& size, DType dtype, int num_ranks) {
  constexpr uint64_t kHistory = 2, kConvolutions = 2;  // frames of each; of a residual block
  const auto bytes = static_cast<uint64_t>(dtype_size(dtype));
  uint64_t histories = 0, widest = 0, frames = 1;
  auto height = static_cast<uint64_t>(ceil_div(size.height / config.pixels_per_latent(), num_ranks)),
       width = static_cast<uint64_t>(size.width / config.pixels_per_latent());
  for (int level = config.levels() - 1; level >= 0; --level) {
    const auto at = static_cast<size_t>(level);
    const auto channels = static_cast<uint64_t>(config.block_out_channels[at]);
    auto blocks = static_cast<uint64_t>(config.layers_per_block[at]);
    if (level == config.levels() - 1) blocks += static_cast<uint64_t>(config.layers_per_block.back());
    const uint64_t pixel_row = channels * bytes, frame = height * width * pixel_row,
                   padded_frame = (height + 2) * (width + 2) * pixel_row;
    histories += kConvolutions * blocks * kHistory * padded_frame;
    widest = std::max(widest, 2 * frames * frame + (frames + kHistory) * padded_frame);
    if (level == 0) break;
    const auto time = static_cast<uint64_t>(config.temporal_expansions[at - 1]),
               space = static_cast<uint64_t>(config.spatial_expansions[at - 1]),
               out_channels = static_cast<uint64_t>(config.block_out_channels[at - 1]);
    const uint64_t expanded = frames * time * height * space * width * space * out_channels * bytes;
    widest = std::max(widest, expanded + std::max(frames * frame, expanded));
    frames *= time;
    height *= space;
    width *= space;
  }
  const uint64_t gathered = num_ranks > 1 ? gathered_group_bytes(size, config.frames_per_latent()) : 0;
  return histories + widest + gathered;
}

}  // namespace calibatt
