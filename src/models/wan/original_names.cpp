#include "models/wan/original_names.h"

#include <string_view>
#include <utility>

namespace calibatt {
namespace {

/// Beginnings of names, of the whole model and within a block; what follows (".weight") stays.
constexpr std::pair<std::string_view, std::string_view> kModelNames[] = {
    {"condition_embedder.text_embedder.linear_1", "text_embedding.0"},
    {"condition_embedder.text_embedder.linear_2", "text_embedding.2"},
    {"condition_embedder.time_embedder.linear_1", "time_embedding.0"},
    {"condition_embedder.time_embedder.linear_2", "time_embedding.2"},
    {"condition_embedder.time_proj", "time_projection.1"},
    {"scale_shift_table", "head.modulation"},
    {"proj_out", "head.head"},
};
constexpr std::pair<std::string_view, std::string_view> kBlockNames[] = {
    {"scale_shift_table", "modulation"},
    {"attn1.to_out.0", "self_attn.o"},
    {"attn1.to_", "self_attn."},
    {"attn1.", "self_attn."},
    {"attn2.to_out.0", "cross_attn.o"},
    {"attn2.to_", "cross_attn."},
    {"attn2.", "cross_attn."},
    {"norm2", "norm3"},  // the norm before cross-attention, the only one with weights
    {"ffn.net.0.proj", "ffn.0"},
    {"ffn.net.2", "ffn.2"},
};

template <class Table>
std::string replace_beginning(std::string_view name, const Table& table) {
  for (const auto& [ours, theirs] : table) {
    if (name.starts_with(ours)) return std::string(theirs) + std::string(name.substr(ours.size()));
  }
  return std::string(name);
}

}  // namespace

std::string original_wan_name(const std::string& diffusers_name) {
  constexpr std::string_view kBlocks = "blocks.";
  if (!diffusers_name.starts_with(kBlocks)) return replace_beginning(diffusers_name, kModelNames);
  const size_t end = diffusers_name.find('.', kBlocks.size());
  if (end == std::string::npos) return diffusers_name;
  return diffusers_name.substr(0, end + 1) +
         replace_beginning(std::string_view(diffusers_name).substr(end + 1), kBlockNames);
}

}  // namespace calibatt
