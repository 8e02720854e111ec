#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/dtype.h"
#include "sparsity/block_intervals.h"
#include "sparsity/geometry.h"

namespace calibatt {

/// A strided [tokens, heads, head_dim] array; head_dim is contiguous. Strides are in elements.
template <class Void>
struct BasicHeadsView {
  Void* data = nullptr;
  DType dtype = DType::kF32;  ///< kF32, kBF16, or kF16 where Backend::has_fp16
  int64_t num_tokens = 0;
  int64_t token_stride = 0;  ///< elements from one token to the next
  int64_t head_stride = 0;   ///< elements from one head to the next
};
using HeadsView = BasicHeadsView<void>;
using ConstHeadsView = BasicHeadsView<const void>;
inline ConstHeadsView as_const(const HeadsView& view) {
  return {view.data, view.dtype, view.num_tokens, view.token_stride, view.head_stride};
}

/// How one head is computed. The default is dense.
struct HeadSchedule {
  /// Kept key blocks per query block; null: all. Query blocks are those of `anchors->query_tokens` when anchors are
  /// given.
  const BlockIntervals* intervals = nullptr;
  /// Each skipped key block still takes part through one summary token: the mean of its keys and of its values, with
  /// log(number of its tokens) added to the logit. Needs intervals.
  bool summarize_skipped = false;
  /// Only these tokens are queries; every other token receives the output row of its source. Null: every token is a
  /// query.
  const AnchorRows* anchors = nullptr;
};

/// The schedules of one call's heads, made (decoded from a plan, say) when first asked for. One object per schedule:
/// backends that keep what they made of it know it by its address. Safe to use from several threads.
class ScheduleSource {
 public:
  virtual ~ScheduleSource() = default;
  /// One per head, valid as long as the object lives. Throws, every time, when they cannot be made.
  virtual std::span<const HeadSchedule> heads() const = 0;
  /// What each head costs beside the others, in any unit, known without making the schedules; empty: they are alike, as
  /// far as is known. Ranks that share the heads of a call deal them by it (attention/sequence_parallel.h), so equal
  /// schedules give equal numbers everywhere.
  virtual std::vector<double> head_costs() const { return {}; }
};

class Tensor;
struct RopeTable;

/// Queries and keys of one call as their projection left them, and what TransformerOps::norm_and_rotate is to make of
/// them before they meet.
struct QueryKeyNorm {
  HeadsView query, key;                                         ///< may be written to
  const Tensor *query_weight = nullptr, *key_weight = nullptr;  ///< null: no norm
  float eps = 0;
  const RopeTable* rope = nullptr;  ///< null: no rotation
};

/// One attention call of one sample: out[t, h, :] = Σ_s softmax_s(scale · q[t,h]·k[s,h] + key_bias[s]) v[s, h, :].
struct AttentionCall {
  ConstHeadsView q, k, v;  ///< one dtype for all three
  HeadsView out;           ///< same dtype as q, or kF32
  int num_heads = 1;
  int head_dim = 64;
  float scale = 1.0f;  ///< usually 1/√head_dim
  int block_q = 64, block_k = 64;

  /// One entry per head, or empty: all heads dense.
  std::span<const HeadSchedule> heads;
  /// Where `heads` come from, for backends that were told of it before (AttentionEngine::prefetch_schedule); or null.
  const ScheduleSource* schedule = nullptr;

  /// Added to the logits of key s, for all heads and queries: [k.num_tokens], or empty; −∞: the key takes no part.
  /// Every backend takes a finite bias of the last key alone, which is what cross-attention to a padded prompt needs (n
  /// equal padding rows are one row with bias log n); others may be refused with Error(kUsage). Refused everywhere for
  /// heads with intervals or anchors: what a bias would do to a skipped block's summary is not defined. Joint
  /// attention does without, because text that pads a prompt is left out of q, k and v, not masked
  /// (sparsity/text_extension.h appends the text that is there to a plan's blocks).
  std::span<const float> key_bias;

  /// When not null: receives the block energy E[h, r, c] (Eq. 5: mean over the queries of block r of the softmax mass
  /// they put on key block c), [num_heads, num_query_blocks, num_key_blocks] f32, in the same pass. Dense heads only.
  float* block_energy = nullptr;

  /// To be computed in 8 bits, where the backend can: it refuses the call otherwise (AttentionEngine::attention_kernel
  /// says so beforehand). Calls with block_energy are computed in the inputs' bits all the same, for what is measured
  /// decides about other runs.
  bool eight_bits = false;

  /// Null: q and k are ready. Else they are the query and key of this, on which the norm and the rotation are still to
  /// be done; what they hold after the call nobody knows. Only engines that take it (AttentionEngine::takes_norm) may
  /// be given such a call.
  const QueryKeyNorm* norm = nullptr;
};

}  // namespace calibatt
