// Which attention problems the conformance test poses.
#include "attention_cases.h"

namespace calibatt {
namespace {

// Token counts around the vector, panel, block and tile sizes, and head dims.
std::vector<AttentionCase> sizes() {
  return {
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
  };
}

// Cross attention, with and without a bias of its keys.
std::vector<AttentionCase> cross() {
  return {
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
  };
}

// Plans.
std::vector<AttentionCase> plans() {
  using enum MaskKind;
  return {
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
  };
}

// Summary tokens, and anchors.
std::vector<AttentionCase> summaries() {
  using enum MaskKind;
  return {
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
  };
}

// Block energy.
std::vector<AttentionCase> energies() {
  return {
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
  };
}

// Large logits: the running maximum moves far and often.
std::vector<AttentionCase> logits() {
  using enum MaskKind;
  using enum ValueKind;
  return {
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
}

std::vector<AttentionCase> make_cases() {
  std::vector<AttentionCase> cases;
  for (const auto group : {sizes, cross, plans, summaries, energies, logits}) {
    for (AttentionCase& each : group()) cases.push_back(std::move(each));
  }
  return cases;
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

}  // namespace calibatt
