#include "models/lora_keys.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "models/original_names.h"

namespace calibatt {
namespace {

using enum LoraPart;

// Of kohya's and musubi's scripts, LightX2V, PEFT and diffusers.
constexpr std::pair<std::string_view, LoraPart> kEndings[] = {
    {".lora_down.weight", kDown},
    {".lora_A.weight", kDown},
    {".lora_A.default.weight", kDown},
    {".lora.down.weight", kDown},
    {".lora_up.weight", kUp},
    {".lora_B.weight", kUp},
    {".lora_B.default.weight", kUp},
    {".lora.up.weight", kUp},
    {".lora_up.bias", kUpBias},
    {".lora_B.bias", kUpBias},
    {".lora_B.default.bias", kUpBias},
    {".alpha", kAlpha},
    {".diff", kWeight},
    {".diff_b", kBias},
    {".diff_m", kModulation},
};

// Behind a layer's name, whatever follows: of LyCORIS and PEFT.
constexpr std::pair<std::string_view, std::string_view> kOtherKinds[] = {
    {".dora_scale", "DoRA"}, {".lora_magnitude_vector", "DoRA"},
    {".lora_mid.", "LoCon"}, {".hada_", "LoHa"},
    {".lokr_", "LoKr"},      {".oft_", "OFT"},
    {".boft_", "BOFT"}};

// May stand one before the other.
constexpr std::string_view kPrefixes[] = {
    "base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "module.", "lora_unet__",
    "lora_unet_",        "lora_transformer_",      "lycoris_"};

std::string flat(std::string name) {
  std::replace(name.begin(), name.end(), '.', '_');
  return name;
}

std::string without_ending(const std::string& name, std::string_view ending) {
  return name.ends_with(ending) ? name.substr(0, name.size() - ending.size()) : std::string();
}

}  // namespace

LoraKey parse_lora_key(const std::string& key) {
  LoraKey found;
  std::string_view rest = key;
  const auto take_prefix = [&] {
    for (const std::string_view prefix : kPrefixes) {
      if (!rest.starts_with(prefix)) continue;
      rest.remove_prefix(prefix.size());
      return true;
    }
    return false;
  };
  while (take_prefix()) {
  }
  found.layer = rest;
  for (const auto& [ending, part] : kEndings) {
    if (!rest.ends_with(ending)) continue;
    found.layer = rest.substr(0, rest.size() - ending.size());
    found.part = part;
    return found;
  }
  for (const auto& [marker, kind] : kOtherKinds) {
    const size_t at = rest.find(marker);
    if (at == std::string_view::npos) continue;
    return {std::string(rest.substr(0, at)), kUnsupported, std::string(kind)};
  }
  return found;
}

LoraTargets::LoraTargets(const MappedTensors& transformer) : transformer_(transformer) {
  for (const auto& [name, entry] : transformer.entries()) {
    for (const std::string_view ending : {".weight", ".bias"}) {
      const std::string layer = without_ending(name, ending);
      if (layer.empty()) continue;
      flat_[flat(layer)] = layer;
      flat_[flat(original_transformer_name(layer))] = layer;
    }
  }
}

std::string LoraTargets::find(const LoraKey& key) const {
  if (key.part == kModulation) {
    const std::string name = diffusers_transformer_name(key.layer + ".modulation");
    return transformer_.contains(name) ? name : std::string();
  }
  std::string layer = diffusers_transformer_name(key.layer);
  if (const auto found = flat_.find(key.layer); found != flat_.end()) layer = found->second;
  std::string name = layer + (key.part == kBias || key.part == kUpBias ? ".bias" : ".weight");
  if (transformer_.contains(name)) return name;
  // What is no layer's weight: "blocks.3.modulation.diff".
  return key.part == kWeight && transformer_.contains(layer) ? layer : std::string();
}

}  // namespace calibatt
