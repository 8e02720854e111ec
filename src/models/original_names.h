#pragma once

#include <string>

namespace calibatt {

/// Wan-AI's own names of tensors, as its original folders have them (Wan2.1-T2V-14B and -1.3B without "-Diffusers"),
/// turned into those of diffusers and transformers. Names that are not known stay as they are; those of a block keep
/// the block's number at least, so that loaders see what they would leave out.

/// The transformer: "blocks.3.self_attn.q.weight" → "blocks.3.attn1.to_q.weight".
std::string diffusers_transformer_name(const std::string& original);
/// The other way round: "blocks.3.attn1.to_q.weight" → "blocks.3.self_attn.q.weight".
std::string original_transformer_name(const std::string& ours);
/// The text encoder: "blocks.3.ffn.gate.0.weight" → "encoder.block.3.layer.1.DenseReluDense.wi_0.weight". Names of GGUF
/// files too: "enc.blk.3.ffn_gate.weight".
std::string transformers_umt5_name(const std::string& original);
/// The autoencoder: "decoder.upsamples.3.resample.1.weight" → "decoder.up_blocks.0.upsamplers.0.resample.1.weight".
/// num_res_blocks: of a level of the encoder; the decoder has one more, and numbers all layers in one row. Wan 2.2's
/// has its levels apart: "decoder.upsamples.0.upsamples.3.resample.1.weight" →
/// "decoder.up_blocks.0.upsampler.resample…".
std::string diffusers_vae_name(const std::string& original, int num_res_blocks);

}  // namespace calibatt
