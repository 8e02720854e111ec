#include "attention_cases.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "base/half.h"
#include "sparsity/block_mask.h"

namespace calibatt {
namespace {

void fill_queries(std::vector<float>& rows, const AttentionCase& c, std::mt19937& random, bool keys) {
  std::normal_distribution<float> normal;
  const int tokens = keys ? c.keys() : c.num_queries;
  for (float& x : rows) x = normal(random);
  const float root = std::sqrt(static_cast<float>(c.head_dim));
  if (c.values == ValueKind::kLarge && !keys) {
    for (float& x : rows) x *= 25.0f;  // three standard deviations of a logit are then 75
  }
  if (c.values != ValueKind::kRising) return;
  // All queries point the same way, q = 1 + noise; key s has logit 80 · (2 s / tokens − 1) with it.
  for (int64_t i = 0; i < static_cast<int64_t>(rows.size()); ++i) {
    const int64_t token = i / c.head_dim % tokens;
    if (keys) {
      const float logit = 80.0f * (2.0f * static_cast<float>(token) / static_cast<float>(tokens) - 1.0f);
      rows[i] = logit / root + 0.1f * rows[i];
    } else {
      rows[i] = 1.0f + 0.02f * rows[i];
    }
  }
}

float rounded(float value, DType dtype) {
  if (dtype == DType::kBF16) return static_cast<float>(bfloat16(value));
  return dtype == DType::kF16 ? half_to_float(float_to_half(value)) : value;
}

void store(Tensor& tensor, int64_t index, float value) {
  switch (tensor.dtype()) {
    case DType::kBF16:
      tensor.data<bfloat16>()[index] = bfloat16(value);
      break;
    case DType::kF16:
      tensor.data<uint16_t>()[index] = float_to_half(value);
      break;
    default:
      tensor.f32()[index] = value;
  }
}

float load(const Tensor& tensor, int64_t index) {
  switch (tensor.dtype()) {
    case DType::kBF16:
      return static_cast<float>(tensor.data<bfloat16>()[index]);
    case DType::kF16:
      return half_to_float(tensor.data<uint16_t>()[index]);
    default:
      return tensor.f32()[index];
  }
}

/// Rows given as [heads, tokens, head_dim] into a view of `storage`.
ConstHeadsView place(const std::vector<float>& rows, const AttentionCase& c, int tokens, Tensor& storage,
                     int64_t offset, int64_t token_stride, int64_t head_stride) {
  for (int64_t head = 0; head < c.num_heads; ++head) {
    for (int64_t token = 0; token < tokens; ++token) {
      for (int64_t d = 0; d < c.head_dim; ++d) {
        store(storage, offset + token * token_stride + head * head_stride + d,
              rows[(head * tokens + token) * c.head_dim + d]);
      }
    }
  }
  const auto* data =
      static_cast<const char*>(storage.raw()) + offset * static_cast<int64_t>(dtype_size(storage.dtype()));
  return {data, storage.dtype(), tokens, token_stride, head_stride};
}

BlockIntervals make_intervals(MaskKind kind, int query_blocks, int key_blocks, std::mt19937& random) {
  BlockMask mask(query_blocks, key_blocks);
  std::bernoulli_distribution three_in_ten(0.3);
  std::uniform_int_distribution<int> any_block(0, key_blocks - 1);
  for (int r = 0; r < query_blocks; ++r) {
    const int diagonal = std::min(r * key_blocks / query_blocks, key_blocks - 1);
    for (int c = 0; c < key_blocks; ++c) {
      const bool kept = kind == MaskKind::kFull || (kind == MaskKind::kRandom && three_in_ten(random)) ||
                        (kind == MaskKind::kBand && std::abs(c - diagonal) <= 1) ||
                        (kind == MaskKind::kNotLast && c + 1 < key_blocks);
      mask.set(r, c, kept);
    }
    if (kind == MaskKind::kRandom || kind == MaskKind::kOneBlock) mask.set(r, any_block(random), true);
    if (kind == MaskKind::kNotLast && key_blocks == 1) mask.set(r, 0, true);
  }
  return BlockIntervals::from_mask(mask);
}

}  // namespace

AttentionProblem::AttentionProblem(const AttentionCase& attention_case, DType dtype, DType out_dtype, DType values)
    : case_(attention_case) {
  const AttentionCase& c = case_;
  std::mt19937 random(static_cast<uint32_t>(std::hash<std::string>()(c.name)));
  std::vector<float> q(int64_t{c.num_heads} * c.num_queries * c.head_dim),
      k(int64_t{c.num_heads} * c.keys() * c.head_dim);
  std::vector<float> v(k.size());
  fill_queries(q, c, random, false);
  fill_queries(k, c, random, true);
  std::normal_distribution<float> normal(0.1f, 1.0f);
  for (float& x : v) x = normal(random);
  for (std::vector<float>* rows : {&q, &k, &v}) {
    for (float& x : *rows) x = rounded(x, values);
  }

  place_inputs(q, k, v, dtype);
  out_ = Tensor::zeros(out_dtype, {c.num_queries, c.num_heads, c.head_dim + c.out_gap});
  call_.out = {out_.raw(), out_dtype, c.num_queries, int64_t{c.num_heads} * (c.head_dim + c.out_gap),
               c.head_dim + c.out_gap};
  call_.num_heads = c.num_heads;
  call_.head_dim = c.head_dim;
  call_.scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  call_.block_q = c.block_q;
  call_.block_k = c.block_k;
  make_schedules();
  make_key_bias(random);
  if (c.energy) {
    const auto blocks = [](int64_t tokens, int64_t block) { return (tokens + block - 1) / block; };
    energy_.resize(c.num_heads * blocks(c.num_queries, c.block_q) * blocks(c.keys(), c.block_k));
    call_.block_energy = energy_.data();
  }
  poison();
}

void AttentionProblem::place_inputs(const std::vector<float>& q, const std::vector<float>& k,
                                    const std::vector<float>& v, DType dtype) {
  const AttentionCase& c = case_;
  const int64_t width = int64_t{c.num_heads} * c.head_dim;
  if (c.layout == Layout::kInterleaved && c.keys() == c.num_queries) {
    q_ = k_ = v_ = Tensor::zeros(dtype, {c.num_queries, 3, c.num_heads, c.head_dim});
    call_.q = place(q, c, c.num_queries, q_, 0, 3 * width, c.head_dim);
    call_.k = place(k, c, c.keys(), q_, width, 3 * width, c.head_dim);
    call_.v = place(v, c, c.keys(), q_, 2 * width, 3 * width, c.head_dim);
  } else {
    const bool head_major = c.layout == Layout::kHeadMajor;
    const auto make = [&](Tensor& storage, const std::vector<float>& rows, int tokens) {
      storage = Tensor::zeros(dtype, {tokens, c.num_heads, c.head_dim});
      return place(rows, c, tokens, storage, 0, head_major ? c.head_dim : width,
                   head_major ? int64_t{tokens} * c.head_dim : c.head_dim);
    };
    call_.q = make(q_, q, c.num_queries);
    call_.k = make(k_, k, c.keys());
    call_.v = make(v_, v, c.keys());
  }
}

void AttentionProblem::make_key_bias(std::mt19937& random) {
  const AttentionCase& c = case_;
  if (c.key_bias == KeyBias::kLast) {
    key_bias_.assign(static_cast<size_t>(c.keys()), 0.0f);
    key_bias_.back() = std::log(450.0f);
    call_.key_bias = key_bias_;
  }
  if (c.key_bias == KeyBias::kCounts) {
    std::uniform_int_distribution<int> count(1, 9);
    for (int s = 0; s < c.keys(); ++s) {
      // Whole panels of the first keys are masked, and single keys later on.
      const bool masked = s < 9 || s % 7 == 0;
      key_bias_.push_back(masked ? -INFINITY : std::log(static_cast<float>(count(random))));
    }
    call_.key_bias = key_bias_;
  }
}

void AttentionProblem::make_schedules() {
  const AttentionCase& c = case_;
  if (c.mask == MaskKind::kNone && !c.anchors) return;
  std::mt19937 random(7);
  int num_computed = c.num_queries;
  if (c.anchors) {
    // Every third token, in an order that is not sorted; the others copy an arbitrary one.
    for (int token = 0; token < c.num_queries; token += 3) anchors_.query_tokens.push_back(token);
    std::ranges::shuffle(anchors_.query_tokens, random);
    num_computed = static_cast<int>(anchors_.query_tokens.size());
    std::uniform_int_distribution<int32_t> any(0, num_computed - 1);
    anchors_.source_of.resize(c.num_queries);
    for (int32_t& source : anchors_.source_of) source = any(random);
    for (int i = 0; i < num_computed; ++i) anchors_.source_of[anchors_.query_tokens[i]] = i;
  }
  const int query_blocks = (num_computed + c.block_q - 1) / c.block_q;
  const int key_blocks = (c.keys() + c.block_k - 1) / c.block_k;
  schedules_.resize(c.num_heads);
  intervals_.reserve(c.num_heads);
  constexpr MaskKind kMix[] = {MaskKind::kNone, MaskKind::kRandom, MaskKind::kBand, MaskKind::kOneBlock};
  for (int head = 0; head < c.num_heads; ++head) {
    const MaskKind kind = c.mask == MaskKind::kMixed ? kMix[head % 4] : c.mask;
    if (c.anchors) schedules_[head].anchors = &anchors_;
    if (kind == MaskKind::kNone) continue;
    intervals_.push_back(make_intervals(kind, query_blocks, key_blocks, random));
    schedules_[head].intervals = &intervals_.back();
    schedules_[head].summarize_skipped = c.summarize;
  }
  call_.heads = schedules_;
}

void AttentionProblem::poison() {
  for (int64_t i = 0; i < out_.size(); ++i) store(out_, i, NAN);
  std::ranges::fill(energy_, NAN);
}

int64_t AttentionProblem::num_touched_gaps() const {
  int64_t touched = 0;
  const int64_t row = case_.head_dim + case_.out_gap;
  for (int64_t i = 0; i < out_.size(); ++i) touched += i % row >= case_.head_dim && !std::isnan(load(out_, i));
  return touched;
}

float AttentionProblem::output(int64_t token, int head, int dim) const {
  return load(out_, (token * case_.num_heads + head) * (case_.head_dim + case_.out_gap) + dim);
}

std::vector<float> AttentionProblem::outputs() const {
  std::vector<float> rows;
  rows.reserve(int64_t{case_.num_heads} * case_.num_queries * case_.head_dim);
  for (int head = 0; head < case_.num_heads; ++head) {
    for (int token = 0; token < case_.num_queries; ++token) {
      for (int d = 0; d < case_.head_dim; ++d) rows.push_back(output(token, head, d));
    }
  }
  return rows;
}

bool AttentionProblem::is_poisoned() const {
  for (int64_t i = 0; i < out_.size(); ++i) {
    if (!std::isnan(load(out_, i))) return false;
  }
  return std::ranges::all_of(energy_, [](float x) { return std::isnan(x); });
}

}  // namespace calibatt
