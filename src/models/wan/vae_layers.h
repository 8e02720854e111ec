#pragma once

#include "models/autoencoder/layers.h"
#include "models/wan/vae_config.h"

/// The parts of AutoencoderKLWan.
namespace calibatt::wan_vae {

/// Everything between the pixels (patches) and the latents' mean and log-variance.
autoencoder::Layers make_encoder(autoencoder::Builder& build, const WanVaeConfig& config);
/// Everything between the latents and the pixels (patches).
autoencoder::Layers make_decoder(autoencoder::Builder& build, const WanVaeConfig& config);

}  // namespace calibatt::wan_vae
