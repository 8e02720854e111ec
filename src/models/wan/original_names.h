#pragma once

#include <string>

namespace calibatt {

/// The transformer as Wan-AI publishes it (Wan2.1-T2V-14B and -1.3B without "-Diffusers") has the same tensors under
/// other names, and a config.json with other keys (WanTransformerConfig reads both).

/// The original name of a tensor that diffusers names so: "blocks.3.attn1.to_q.weight" → "blocks.3.self_attn.q.weight".
std::string original_wan_name(const std::string& diffusers_name);

/// The tensor by which original weights are known.
inline constexpr const char* kOriginalWanTensor = "blocks.0.self_attn.q.weight";

}  // namespace calibatt
