#pragma once

#include <map>
#include <string>

#include "io/mapped_tensors.h"

namespace calibatt {

/// What a tensor of a LoRA file is to the layer whose name stands before it.
enum class LoraPart {
  kUnknown,
  kDown,        ///< [rank, in]
  kUp,          ///< [out, rank]
  kUpBias,      ///< [out], scaled as the product of the matrices is
  kAlpha,       ///< one number
  kWeight,      ///< difference of the layer's weight
  kBias,        ///< difference of its bias
  kModulation,  ///< difference of a block's or the head's modulation
  kUnsupported  ///< of a kind that is not read, and without which the rest means something else
};

struct LoraKey {
  std::string layer;  ///< without prefixes; as the file spells it
  LoraPart part = LoraPart::kUnknown;
  std::string kind = {};  ///< of kUnsupported: "DoRA", "LoHa", …
};
/// "diffusion_model.blocks.3.self_attn.q.lora_down.weight" → {"blocks.3.self_attn.q", kDown}
LoraKey parse_lora_key(const std::string& key);

/// Finds a transformer's tensors by the names that LoRA files give its layers: Wan-AI's, diffusers', or either with
/// underscores in place of dots.
class LoraTargets {
 public:
  explicit LoraTargets(const MappedTensors& transformer);
  /// The tensor that a part of this layer changes; empty: there is none.
  std::string find(const LoraKey& key) const;

 private:
  const MappedTensors& transformer_;
  std::map<std::string, std::string> flat_;  ///< layer with underscores → layer of ours
};

}  // namespace calibatt
