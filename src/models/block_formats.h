#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backend/stored_linear.h"
#include "model_settings/load_options.h"

namespace calibatt {

/// Linear layers of a transformer's block that are stacked and computed as one; most stacks are of one layer.
struct LayerStack {
  std::vector<std::string> names;  ///< diffusers': "attn1.to_q"
  uint64_t elements = 0;           ///< of all their matrices
  bool bears_eight_bits = false;
};

/// In which format each linear layer of the blocks is: that of the run's arithmetic or, where 8 bits are asked for and
/// the layer bears them, such. What is in no block (patch, time and text embedding, final projection) is not asked here
/// and never in 8 bits: docs/decisions/0007-eight-bit-linear-layers.md.
class BlockFormats {
 public:
  /// blocks: what the names of the blocks begin with ("blocks."). stacks: of a block; not all blocks need have those
  /// that bear no 8 bits. Throws Error(kUsage) for an entry of options.kept_layers that names no layer which would be
  /// in 8 bits.
  BlockFormats(std::string blocks, int num_blocks, std::vector<LayerStack> stacks, DType dtype,
               const ModelLoadOptions& options);

  /// Of a stack, by its names: 8 bits where all of its layers may have these.
  LinearFormat of(int block, const std::vector<std::string>& names) const;
  /// Elements of the matrices that would be in 8 bits and are not; else of those that are.
  uint64_t elements(bool kept) const;

 private:
  LinearFormat format_of(int block, const LayerStack& stack) const;
  void check_kept_layers() const;
  std::string full_name(int block, const std::string& layer) const {
    return blocks_ + std::to_string(block) + "." + layer;
  }

  std::string blocks_;
  int num_blocks_;
  std::vector<LayerStack> stacks_;
  DType dtype_;
  bool eight_bits_;
  DType eight_bit_type_;
  std::vector<std::string> kept_layers_;
};

}  // namespace calibatt
