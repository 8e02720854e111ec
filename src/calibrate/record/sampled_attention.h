#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/attention_call.h"

namespace calibatt {

/// One head's keys and values laid out for partial_attention: keys transposed per key block and padded, values
/// multiplied by a projection, and each block's summary token.
struct SampledKeys {
  int num_tokens = 0, block_k = 0, num_blocks = 0;
  int dim = 0;                        ///< of a key
  int padded_block = 0;               ///< block_k rounded up to a multiple of 16
  int padded_dim = 0;                 ///< of a value, rounded up to a multiple of 16 with zeros
  std::vector<float> keys;            ///< [num_blocks, dim, padded_block]
  std::vector<float> values;          ///< [num_blocks, padded_block, padded_dim], v · projection
  std::vector<float> summary_keys;    ///< [num_blocks, dim]: mean key
  std::vector<float> summary_values;  ///< [num_blocks, padded_dim]: mean projected value

  int block_size(int block) const { return block + 1 < num_blocks ? block_k : num_tokens - block * block_k; }
};

/// One token of one head as f32 → out [head_dim]. The view is F32 or BF16, in host memory.
void read_row(ConstHeadsView view, int64_t token, int head, int head_dim, float* out);

/// Reuses the memory of `keys`. projection: [head_dim, head_dim] row-major, or empty for none.
void prepare_keys(ConstHeadsView k, ConstHeadsView v, int head, int head_dim, int block_k,
                  std::span<const float> projection, SampledKeys& keys);

/// A query's attention, taken apart by key block. With l the logits, Z = Σ exp l over all keys:
struct PartialAttention {
  std::vector<float> mass;  ///< [queries, num_blocks]: Σ exp l / Z over the block; a query's sum is 1
  std::vector<float>
      summary_mass;  ///< [queries, num_blocks]: n·exp(l of the block's mean key) / Z; at most mass (Jensen)
  std::vector<float>
      value;  ///< [queries, num_blocks, padded_dim]: Σ exp(l)·v / Z over the block; a query's sum is its output
  std::vector<float> output;  ///< [queries, padded_dim]
};

/// queries: [num_queries, dim], to be multiplied by `scale`. `with_values` false: mass and summary_mass only.
void partial_attention(const SampledKeys& keys, std::span<const float> queries, int num_queries, float scale,
                       bool with_values, PartialAttention& result);

/// error[level] += weight · ‖output with only the first kept[level] blocks of `order` − output‖², for one query of
/// `partial`.
void add_level_errors(const SampledKeys& keys, const PartialAttention& partial, int query, std::span<const int> order,
                      std::span<const int> kept, bool summary, double weight, double* error);

/// harm[block] += weight · ‖first-order change of the output when this block alone is skipped‖², for one query of
/// `partial`.
void add_harm(const SampledKeys& keys, const PartialAttention& partial, int query, bool summary, float weight,
              float* harm);

}  // namespace calibatt
