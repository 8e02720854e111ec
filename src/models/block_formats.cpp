#include "models/block_formats.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace calibatt {
namespace {

/// Whether `part` is one or more whole components of a name between dots.
bool has_part(const std::string& name, const std::string& part) {
  return ("." + name + ".").find("." + part + ".") != std::string::npos;
}

/// An index alone says not of what.
bool begins_with_index(const std::string& entry) {
  return entry.find_first_not_of("0123456789") == entry.find('.');
}

}  // namespace

BlockFormats::BlockFormats(std::string blocks, int num_blocks, std::vector<LayerStack> stacks, DType dtype,
                           const ModelLoadOptions& options)
    : blocks_(std::move(blocks)),
      num_blocks_(num_blocks),
      stacks_(std::move(stacks)),
      dtype_(dtype),
      eight_bits_(options.eight_bit_layers),
      eight_bit_type_(options.eight_bit_type),
      kept_layers_(options.kept_layers) {
  check_kept_layers();
}

void BlockFormats::check_kept_layers() const {
  for (const std::string& entry : kept_layers_) {
    bool found = false;
    std::string names;
    for (const LayerStack& stack : stacks_) {
      if (!stack.bears_eight_bits) continue;
      for (const std::string& name : stack.names) {
        names += (names.empty() ? "" : ", ") + name;
        for (int block = 0; block < num_blocks_ && eight_bits_ && !begins_with_index(entry); ++block) {
          found = found || has_part(full_name(block, name), entry);
        }
      }
    }
    if (found) continue;
    throw Error(ErrorKind::kUsage, "--keep-layers: no layer \"" + entry + "\" would be in 8 bits; there are " + names +
                                       ", and whole blocks: " + blocks_ + "0 to " + blocks_ +
                                       std::to_string(num_blocks_ - 1));
  }
}

LinearFormat BlockFormats::of(int block, const std::vector<std::string>& names) const {
  const auto stack = std::ranges::find(stacks_, names, &LayerStack::names);
  CALIBATT_ASSERT(stack != stacks_.end());
  return format_of(block, *stack);
}

LinearFormat BlockFormats::format_of(int block, const LayerStack& stack) const {
  if (!eight_bits_ || !stack.bears_eight_bits) return dtype_;
  for (const std::string& layer : stack.names) {
    const std::string name = full_name(block, layer);
    if (std::ranges::any_of(kept_layers_, [&](const auto& part) { return has_part(name, part); })) return dtype_;
  }
  return LinearFormat::eight_bits(eight_bit_type_);
}

uint64_t BlockFormats::elements(bool kept) const {
  uint64_t elements = 0;
  for (int block = 0; block < num_blocks_; ++block) {
    for (const LayerStack& stack : stacks_) {
      if (stack.bears_eight_bits && format_of(block, stack).is_eight_bits() != kept) elements += stack.elements;
    }
  }
  return elements;
}

}  // namespace calibatt
