#pragma once

#include <string>

#include "model_settings/component.h"

namespace calibatt {

/// The models of a checkpoint in either layout: `path` is a folder in diffusers' layout, or what Wan-AI's original
/// folders (Wan2.1-T2V-14B, -1.3B and Wan2.2-TI2V-5B without "-Diffusers") have instead. Those say little about the
/// text encoder and nothing about the autoencoder; their settings are taken from the shapes of the tensors, and where
/// shapes do not tell, from Wan-AI's code (github.com/Wan-Video/Wan2.1). Throw Error(kNotFound / kUnreadable / kFormat)
/// naming file, tensor or key.

/// With the options' overlay. Original: the same folder with Wan-AI's names and a config.json of WanModel. Or one
/// safetensors file, under either names, with the prefixes that programs put before them, also among other models: its
/// settings come from the shapes and, where they do not tell, from the config.json in options.settings, of a model of
/// the same width, or are Wan's.
Component open_transformer(const std::string& path, const ModelLoadOptions& options = {});

/// Original: models_t5_umt5-xxl-enc-bf16.pth. Not in the shapes: the largest distance of the relative positions (128)
/// and the norms' epsilon (1e-6). A safetensors file may have transformers' names, as ComfyUI's do.
Component open_text_encoder(const std::string& path, const ModelLoadOptions& options = {});

/// Original: Wan2.1_VAE.pth, Wan2.2_VAE.pth. Not in the shapes: mean and deviation of the latents, known for the 16
/// channels of Wan 2.1 and the 48 of Wan 2.2 TI2V-5B; other numbers of channels are refused. A safetensors file may
/// have diffusers' names; then its config.json is that in options.settings.
Component open_vae(const std::string& path, const ModelLoadOptions& options = {});

/// Whether a config.json is that of Wan-AI's WanModel.
bool is_original_config(const JsonConfig& config);
/// And of the one of Wan 2.2 that makes videos of text as of images (TI2V-5B).
bool is_ti2v_config(const JsonConfig& config);

}  // namespace calibatt
