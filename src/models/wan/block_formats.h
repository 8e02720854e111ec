#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "backend/stored_linear.h"
#include "model_settings/load_options.h"
#include "model_settings/wan_config.h"

namespace calibatt {

/// In which format each linear layer of the blocks is: that of the run's arithmetic or, where 8 bits are asked for and
/// the layer bears them, e4m3. Names are diffusers': "attn1.to_q". What is in no block (patch, time and text embedding,
/// modulation, final projection) is not asked here and never in 8 bits: docs/decisions/0007-eight-bit-linear-layers.md.
class WanBlockFormats {
 public:
  /// Throws Error(kUsage) for an entry of options.kept_layers that names no layer which would be in 8 bits.
  WanBlockFormats(const WanTransformerConfig& config, DType dtype, const ModelLoadOptions& options);

  LinearFormat of(int block, std::string_view layer) const;
  /// Of layers that are stacked: 8 bits where all of them have these.
  LinearFormat of_all(int block, const std::vector<std::string>& layers) const;
  /// Elements of the matrices that would be in 8 bits and are not; else of those that are.
  uint64_t elements(bool kept) const;

 private:
  int num_blocks_;
  uint64_t dim_, ffn_dim_;
  DType dtype_;
  bool eight_bits_;
  std::vector<std::string> kept_layers_;
};

}  // namespace calibatt
