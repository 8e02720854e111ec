#include "models/wan/block_formats.h"

#include <algorithm>

#include "base/error.h"

namespace calibatt {
namespace {

struct BlockLayer {
  std::string_view name;
  bool bears_eight_bits;
};
/// The keys and values of a prompt or a picture are computed once for all steps: 8 bits would save no time.
constexpr BlockLayer kLayers[] = {
    {"attn1.to_q", true},  {"attn1.to_k", true},     {"attn1.to_v", true},        {"attn1.to_out.0", true},
    {"attn2.to_q", true},  {"attn2.to_out.0", true}, {"ffn.net.0.proj", true},    {"ffn.net.2", true},
    {"attn2.to_k", false}, {"attn2.to_v", false},    {"attn2.add_k_proj", false}, {"attn2.add_v_proj", false},
};

/// Whether `part` is one or more whole components of a name between dots.
bool has_part(const std::string& name, const std::string& part) {
  return ("." + name + ".").find("." + part + ".") != std::string::npos;
}

/// An index alone says not of what.
bool begins_with_index(const std::string& entry) {
  return entry.find_first_not_of("0123456789") == entry.find('.');
}

std::string full_name(int block, std::string_view layer) {
  return "blocks." + std::to_string(block) + "." + std::string(layer);
}

}  // namespace

WanBlockFormats::WanBlockFormats(const WanTransformerConfig& config, DType dtype, const ModelLoadOptions& options)
    : num_blocks_(config.num_layers),
      dim_(static_cast<uint64_t>(config.dim())),
      ffn_dim_(static_cast<uint64_t>(config.ffn_dim)),
      dtype_(dtype),
      eight_bits_(options.eight_bit_layers),
      kept_layers_(options.kept_layers) {
  for (const std::string& entry : kept_layers_) {
    bool found = false;
    for (int block = 0; block < config.num_layers && eight_bits_ && !begins_with_index(entry); ++block) {
      found = found || std::ranges::any_of(kLayers, [&](const BlockLayer& layer) {
                return layer.bears_eight_bits && has_part(full_name(block, layer.name), entry);
              });
    }
    if (found) continue;
    std::string names;
    for (const BlockLayer& layer : kLayers) {
      if (layer.bears_eight_bits) names += (names.empty() ? "" : ", ") + std::string(layer.name);
    }
    throw Error(ErrorKind::kUsage, "no layer \"" + entry + "\" would be in 8 bits; there are " + names +
                                       ", and whole blocks: blocks.0 to blocks." +
                                       std::to_string(config.num_layers - 1));
  }
}

LinearFormat WanBlockFormats::of(int block, std::string_view layer) const {
  const auto* const known = std::ranges::find_if(kLayers, [&](const BlockLayer& each) { return each.name == layer; });
  CALIBATT_ASSERT(known != std::end(kLayers));
  if (!eight_bits_ || !known->bears_eight_bits) return dtype_;
  const std::string name = full_name(block, layer);
  const bool stays = std::ranges::any_of(kept_layers_, [&](const auto& part) { return has_part(name, part); });
  return stays ? LinearFormat(dtype_) : LinearFormat::e4m3();
}

LinearFormat WanBlockFormats::of_all(int block, const std::vector<std::string>& layers) const {
  for (const std::string& layer : layers) {
    const LinearFormat format = of(block, layer);
    if (!format.is_e4m3()) return format;
  }
  return LinearFormat::e4m3();
}

uint64_t WanBlockFormats::elements(bool kept) const {
  uint64_t elements = 0;
  for (int block = 0; block < num_blocks_; ++block) {
    for (const BlockLayer& layer : kLayers) {
      if (!layer.bears_eight_bits) continue;
      // As they are stacked.
      const bool is_self = layer.name == "attn1.to_q" || layer.name == "attn1.to_k" || layer.name == "attn1.to_v";
      const LinearFormat format =
          is_self ? of_all(block, {"attn1.to_q", "attn1.to_k", "attn1.to_v"}) : of(block, layer.name);
      if (format.is_e4m3() == kept) continue;
      elements += dim_ * (layer.name.starts_with("ffn") ? ffn_dim_ : dim_);
    }
  }
  return elements;
}

}  // namespace calibatt
