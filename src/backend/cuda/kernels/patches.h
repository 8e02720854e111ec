#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>

/// Latent video ↔ tokens (TransformerOps::patchify, unpatchify) on device memory; each call enqueues one kernel.
namespace calibatt::cuda {

struct PatchCall {
  int64_t channels = 0, frames = 0, height = 0, width = 0;  ///< of the latents
  std::array<int, 3> patch{};                               ///< divides frames, height and width
  const int32_t* raster_of_position = nullptr;              ///< device memory, one entry per token
};
void patchify(const PatchCall& call, const float* latents, float* tokens, cudaStream_t stream);
void unpatchify(const PatchCall& call, const float* tokens, float* latents, cudaStream_t stream);

}  // namespace calibatt::cuda
