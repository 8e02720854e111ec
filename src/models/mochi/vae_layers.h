#pragma once

#include "models/autoencoder/layers.h"
#include "models/mochi/vae_config.h"

/// The parts of AutoencoderKLMochi's decoder.
namespace calibatt::mochi_vae {

/// How its residual blocks are.
autoencoder::Style style();

/// Everything between the latents and the pixels.
autoencoder::Layers make_decoder(autoencoder::Builder& build, const MochiVaeConfig& config);

}  // namespace calibatt::mochi_vae
