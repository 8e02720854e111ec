#include "attention_cases.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "base/half.h"
#include "sparsity/block_mask.h"

namespace calibatt {
namespace {

std::vector<AttentionCase> make_cases() {
  using enum MaskKind;
  using enum ValueKind;
  std::vector<AttentionCase> cases = {
      // Token counts around the vector, panel, block and tile sizes.
      {.name = "one_token", .num_queries = 1},
      {.name = "seven", .num_queries = 7},
      {.name = "sixty_three", .num_queries = 63, .num_heads = 3},
      {.name = "sixty_five", .num_queries = 65, .layout = Layout::kInterleaved},
      {.name = "thousand", .num_queries = 1000, .num_heads = 3, .layout = Layout::kInterleaved},
      {.name = "wan_default_plus_text", .num_queries = 4352 + 77, .num_heads = 1, .layout = Layout::kInterleaved},
      {.name = "block_minus_one", .num_queries = 127, .head_dim = 128, .block_q = 128, .block_k = 128},
      {.name = "block_exactly", .num_queries = 128, .head_dim = 128, .block_q = 128, .block_k = 128},
      {.name = "block_plus_one", .num_queries = 129, .head_dim = 128, .block_q = 128, .block_k = 128},
      {.name = "one_row_many_keys", .num_queries = 1, .num_keys = 20011, .num_heads = 1, .head_dim = 128},
      // Head dims.
      {.name = "dim_16", .num_queries = 130, .head_dim = 16},
      {.name = "dim_40", .num_queries = 131, .head_dim = 40, .layout = Layout::kHeadMajor},
      {.name = "dim_96", .num_queries = 132, .num_heads = 1, .head_dim = 96},
      {.name = "dim_128", .num_queries = 197, .num_heads = 5, .head_dim = 128, .layout = Layout::kInterleaved},
      {.name = "dim_192", .num_queries = 70, .head_dim = 192},
      {.name = "dim_1", .num_queries = 33, .head_dim = 1},
      {.name = "dim_37", .num_queries = 67, .head_dim = 37},
      // Cross attention.
      {.name = "few_keys", .num_queries = 300, .num_keys = 11, .num_heads = 4},
      {.name = "few_queries", .num_queries = 3, .num_keys = 500},
      {.name = "cross_512", .num_queries = 700, .num_keys = 512, .num_heads = 3, .head_dim = 128},
      {.name = "key_bias", .num_queries = 200, .num_keys = 77, .num_heads = 4, .key_bias = KeyBias::kCounts},
      {.name = "key_bias_long",
       .num_queries = 64,
       .num_keys = 640,
       .key_bias = KeyBias::kCounts,
       .layout = Layout::kHeadMajor},
      {.name = "last_bias",
       .num_queries = 300,
       .num_keys = 61,
       .num_heads = 3,
       .head_dim = 128,
       .key_bias = KeyBias::kLast},
      {.name = "last_bias_one_key", .num_queries = 70, .num_keys = 1, .key_bias = KeyBias::kLast},
      {.name = "last_bias_whole_chunk", .num_queries = 130, .num_keys = 64, .key_bias = KeyBias::kLast},
      {.name = "last_bias_chunks",
       .num_queries = 130,
       .num_keys = 256,
       .head_dim = 128,
       .key_bias = KeyBias::kLast,
       .layout = Layout::kInterleaved},
      {.name = "last_bias_partial_chunk",
       .num_queries = 65,
       .num_keys = 195,
       .key_bias = KeyBias::kLast,
       .layout = Layout::kHeadMajor},
      {.name = "last_bias_odd_chunks", .num_queries = 200, .num_keys = 192, .key_bias = KeyBias::kLast},
      {.name = "last_bias_dim_40", .num_queries = 65, .num_keys = 100, .head_dim = 40, .key_bias = KeyBias::kLast},
      // Plans.
      {.name = "planned_random", .num_queries = 1000, .num_heads = 3, .mask = kRandom, .layout = Layout::kInterleaved},
      {.name = "planned_band_128", .num_queries = 1000, .head_dim = 128, .block_q = 128, .block_k = 128, .mask = kBand},
      {.name = "planned_one_block", .num_queries = 513, .mask = kOneBlock},
      {.name = "planned_full", .num_queries = 320, .mask = kFull},
      {.name = "planned_not_last", .num_queries = 257, .mask = kNotLast},
      {.name = "planned_mixed_heads", .num_queries = 700, .num_heads = 4, .mask = kMixed, .layout = Layout::kHeadMajor},
      {.name = "planned_uneven_blocks", .num_queries = 500, .block_q = 128, .block_k = 32, .mask = kRandom},
      {.name = "planned_odd_blocks", .num_queries = 500, .head_dim = 40, .block_q = 50, .block_k = 27, .mask = kRandom},
      {.name = "planned_wide_blocks", .num_queries = 600, .block_q = 16, .block_k = 200, .mask = kRandom},
      {.name = "planned_blocks_exceed_tokens", .num_queries = 40, .block_q = 128, .block_k = 128, .mask = kFull},
      {.name = "planned_cross", .num_queries = 200, .num_keys = 450, .mask = kRandom},
      {.name = "planned_long", .num_queries = 4352 + 77, .num_heads = 1, .mask = kRandom},
      {.name = "planned_one_token", .num_queries = 1, .mask = kFull},
      {.name = "planned_block_minus_one",
       .num_queries = 127,
       .head_dim = 128,
       .block_q = 128,
       .block_k = 128,
       .mask = kFull},
      {.name = "planned_block_plus_one",
       .num_queries = 129,
       .num_heads = 4,
       .head_dim = 128,
       .block_q = 128,
       .block_k = 128,
       .mask = kOneBlock},
      {.name = "planned_fine_keys", .num_queries = 777, .head_dim = 128, .block_q = 128, .mask = kRandom},
      {.name = "planned_long_query_blocks",
       .num_queries = 900,
       .head_dim = 128,
       .block_q = 256,
       .block_k = 128,
       .mask = kRandom},
      {.name = "planned_mixed_heads_128",
       .num_queries = 700,
       .num_heads = 4,
       .head_dim = 128,
       .block_q = 128,
       .block_k = 128,
       .mask = kMixed,
       .layout = Layout::kInterleaved},
      // Summary tokens.
      {.name = "summary_random", .num_queries = 1000, .num_heads = 3, .mask = kRandom, .summarize = true},
      {.name = "summary_partial_tail_skipped", .num_queries = 257, .mask = kNotLast, .summarize = true},
      {.name = "summary_one_block_128",
       .num_queries = 900,
       .head_dim = 128,
       .block_q = 128,
       .block_k = 128,
       .mask = kOneBlock,
       .summarize = true},
      {.name = "summary_many_blocks",
       .num_queries = 1100,
       .block_q = 32,
       .block_k = 8,
       .mask = kRandom,
       .summarize = true},
      // 66 and 151 summaries: more than one chunk of 64 of them, and the last of one token.
      {.name = "summary_two_chunks",
       .num_queries = 70,
       .num_keys = 4200,
       .num_heads = 1,
       .mask = kRandom,
       .summarize = true},
      {.name = "summary_three_chunks",
       .num_queries = 140,
       .num_keys = 9601,
       .num_heads = 1,
       .head_dim = 128,
       .block_q = 128,
       .mask = kRandom,
       .summarize = true},
      {.name = "summary_nothing_skipped", .num_queries = 200, .mask = kFull, .summarize = true},
      {.name = "summary_mixed_heads", .num_queries = 400, .num_heads = 4, .mask = kMixed, .summarize = true},
      // Anchors.
      {.name = "anchors", .num_queries = 500, .num_heads = 3, .anchors = true, .layout = Layout::kInterleaved},
      {.name = "anchors_planned", .num_queries = 1000, .mask = kRandom, .anchors = true},
      {.name = "anchors_planned_summary",
       .num_queries = 777,
       .head_dim = 128,
       .mask = kBand,
       .summarize = true,
       .anchors = true,
       .layout = Layout::kHeadMajor},
      {.name = "anchors_mixed_heads_128",
       .num_queries = 1000,
       .num_heads = 4,
       .head_dim = 128,
       .block_q = 128,
       .block_k = 128,
       .mask = kMixed,
       .summarize = true,
       .anchors = true},
      // Block energy.
      {.name = "energy", .num_queries = 1000, .num_heads = 3, .energy = true},
      {.name = "energy_128", .num_queries = 1000, .head_dim = 128, .block_q = 128, .block_k = 128, .energy = true},
      {.name = "energy_fine_keys", .num_queries = 515, .head_dim = 128, .block_q = 128, .energy = true},
      {.name = "energy_wide_keys", .num_queries = 700, .head_dim = 128, .block_q = 128, .block_k = 256, .energy = true},
      {.name = "energy_block_plus_one",
       .num_queries = 129,
       .head_dim = 128,
       .block_q = 128,
       .block_k = 128,
       .energy = true},
      {.name = "energy_uneven", .num_queries = 500, .block_q = 100, .block_k = 48, .energy = true},
      {.name = "energy_one_token", .num_queries = 1, .energy = true},
      {.name = "energy_cross", .num_queries = 100, .num_keys = 333, .energy = true},
      {.name = "energy_key_bias", .num_queries = 100, .num_keys = 333, .key_bias = KeyBias::kCounts, .energy = true},
      {.name = "energy_last_bias", .num_queries = 100, .num_keys = 333, .key_bias = KeyBias::kLast, .energy = true},
      {.name = "energy_last_bias_128",
       .num_queries = 100,
       .num_keys = 384,
       .head_dim = 128,
       .block_k = 128,
       .key_bias = KeyBias::kLast,
       .energy = true},
      {.name = "energy_long", .num_queries = 4352 + 77, .num_heads = 1, .energy = true},
      // Large logits: the running maximum moves far and often.
      {.name = "large_logits", .num_queries = 500, .values = kLarge},
      {.name = "rising_logits", .num_queries = 500, .values = kRising},
      {.name = "rising_logits_planned", .num_queries = 500, .mask = kRandom, .summarize = true, .values = kRising},
      {.name = "rising_logits_128", .num_queries = 500, .head_dim = 128, .values = kRising},
      {.name = "rising_logits_energy", .num_queries = 500, .energy = true, .values = kRising},
      {.name = "large_logits_energy_128",
       .num_queries = 400,
       .head_dim = 128,
       .block_q = 128,
       .block_k = 128,
       .energy = true,
       .values = kLarge},
  };
  return cases;
}

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

const std::vector<AttentionCase>& attention_cases() {
  static const std::vector<AttentionCase> cases = make_cases();
  return cases;
}

bool is_usual(const AttentionCase& c) {
  return (c.head_dim == 64 || c.head_dim == 128) && c.key_bias != KeyBias::kCounts &&
         (c.block_k == 64 || c.block_k == 128) && c.block_q <= 256 && (!c.energy || c.block_q <= 128);
}

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
  out_ = Tensor::zeros(out_dtype, {c.num_queries, c.num_heads, c.head_dim + c.out_gap});
  call_.out = {out_.raw(), out_dtype, c.num_queries, int64_t{c.num_heads} * (c.head_dim + c.out_gap),
               c.head_dim + c.out_gap};
  call_.num_heads = c.num_heads;
  call_.head_dim = c.head_dim;
  call_.scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  call_.block_q = c.block_q;
  call_.block_k = c.block_k;
  make_schedules();
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
  if (c.energy) {
    const auto blocks = [](int64_t tokens, int64_t block) { return (tokens + block - 1) / block; };
    energy_.resize(c.num_heads * blocks(c.num_queries, c.block_q) * blocks(c.keys(), c.block_k));
    call_.block_energy = energy_.data();
  }
  poison();
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
