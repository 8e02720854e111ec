#pragma once

#include <stdint.h>

/// The video autoencoder's decoder on the GPU behind a C interface, for bench/cuda/vae.py (ctypes). Functions that can
/// fail return a negative number or null and leave a message for calibatt_vae_error(). Not an API for anything else.
extern "C" {

/// Message of the calling thread's last failure.
const char* calibatt_vae_error(void);

/// Loads a folder with config.json and diffusion_pytorch_model.safetensors. architecture: "wan" or "mochi". The rest:
/// ClipOptions.
void* calibatt_vae_load(const char* architecture, const char* folder, int32_t is_bf16, int32_t fuse, int32_t candidates,
                        int32_t latent_frames);
void calibatt_vae_free(void* vae);

/// latents: host, [z, frames, height, width] F32, normalised. Of the two results on the host either may be null:
/// rgb [frames_out, 3 bytes interleaved], pixels [frames_out, 3, H, W] F32 in [-1, 1]. Returns once they are there.
int32_t calibatt_vae_decode(void* vae, const float* latents, int64_t frames, int64_t height, int64_t width,
                            uint8_t* rgb, float* pixels);

/// Most device memory in use since the last call (weights included), then what is not in use is given back.
int64_t calibatt_vae_peak_bytes(void* vae);

/// Which engines cuDNN runs, one line per shape seen so far; valid until the next call.
const char* calibatt_vae_report(void* vae);
}
