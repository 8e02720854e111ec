#pragma once

#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "backend/attention_call.h"
#include "base/tensor.h"

namespace calibatt {

/// Which blocks the heads of a case keep.
enum class MaskKind {
  kNone,      ///< no intervals: dense
  kRandom,    ///< three in ten, anywhere
  kBand,      ///< around the diagonal
  kOneBlock,  ///< a single key block per query block
  kFull,      ///< intervals that keep everything
  kNotLast,   ///< everything but the last, possibly partial, key block
  kMixed,     ///< head 0 dense, head 1 random, head 2 band, …
};

enum class ValueKind {
  kNormal,  ///< logits of order 1
  kLarge,   ///< logits between about −80 and 80
  kRising,  ///< the largest logit grows from key to key, from −80 to 80: every block raises the maximum
};

enum class Layout {
  kTokenMajor,   ///< [tokens, heads, head_dim]
  kInterleaved,  ///< q, k, v of one token behind each other in one buffer
  kHeadMajor,    ///< [heads, tokens, head_dim]
};

enum class KeyBias {
  kNone,
  kCounts,  ///< logs of counts, and some −inf
  kLast,    ///< the last key counts 450 times: text padding
};

/// One attention problem, as data.
struct AttentionCase {
  std::string name;
  int num_queries = 64;
  int num_keys = 0;  ///< 0: as many as queries
  int num_heads = 2;
  int head_dim = 64;
  int block_q = 64, block_k = 64;
  MaskKind mask = MaskKind::kNone;
  bool summarize = false;
  bool anchors = false;  ///< every third token is computed, the others copy one of them
  KeyBias key_bias = KeyBias::kNone;
  bool energy = false;
  ValueKind values = ValueKind::kNormal;
  Layout layout = Layout::kTokenMajor;
  int out_gap = 5;  ///< unused elements behind each output row

  int keys() const { return num_keys ? num_keys : num_queries; }
};

/// googletest prints a parameter's name instead of its bytes.
inline void PrintTo(const AttentionCase& attention_case, std::ostream* out) {
  *out << attention_case.name;
}

const std::vector<AttentionCase>& attention_cases();
/// What models need: every kernel takes it in the first of its types, and 16-bit kernels of a GPU are fast there.
bool is_usual(const AttentionCase& attention_case);

/// A case with its tensors in host memory: the call points into it.
class AttentionProblem {
 public:
  /// Inputs and outputs of these types (F32, BF16, F16). `values`: what the inputs are rounded to first, so that an F32
  /// problem can hold exactly what a problem of that type holds.
  AttentionProblem(const AttentionCase& attention_case, DType dtype, DType out_dtype, DType values);
  AttentionProblem(const AttentionCase& attention_case, DType dtype, DType out_dtype)
      : AttentionProblem(attention_case, dtype, out_dtype, dtype) {}
  AttentionProblem(const AttentionProblem&) = delete;

  const AttentionCase& attention_case() const { return case_; }
  AttentionCall& call() { return call_; }

  /// NaN in every output, and in the gaps between output rows.
  void poison();
  /// Elements of the output tensor outside the rows of the call that are no longer poison.
  int64_t num_touched_gaps() const;
  float output(int64_t token, int head, int dim) const;
  std::vector<float> outputs() const;  ///< [heads, tokens, head_dim]
  const std::vector<float>& energy() const { return energy_; }
  std::vector<float>& energy() { return energy_; }
  bool is_poisoned() const;  ///< whether nothing at all was written

  /// What the views of the call point into; one tensor may hold several of them.
  const Tensor& q_storage() const { return q_; }
  const Tensor& k_storage() const { return k_; }
  const Tensor& v_storage() const { return v_; }
  Tensor& out_storage() { return out_; }

 private:
  void place_inputs(const std::vector<float>& q, const std::vector<float>& k, const std::vector<float>& v, DType dtype);
  void make_key_bias(std::mt19937& random);
  void make_schedules();

  AttentionCase case_;
  Tensor q_, k_, v_, out_;
  std::vector<BlockIntervals> intervals_;
  AnchorRows anchors_;
  std::vector<HeadSchedule> schedules_;
  std::vector<float> key_bias_, energy_;
  AttentionCall call_;
};

}  // namespace calibatt
