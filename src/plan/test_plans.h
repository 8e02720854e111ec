#pragma once

// Plans for tests.

#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "plan/plan.h"

namespace calibatt::test {

inline BlockMask random_mask(std::mt19937& random, int num_query_blocks, int num_key_blocks, double density) {
  BlockMask mask(num_query_blocks, num_key_blocks);
  for (int r = 0; r < num_query_blocks; ++r) {
    for (int c = 0; c < num_key_blocks; ++c) mask.set(r, c, static_cast<double>(random() % 1000) < density * 1000);
    mask.set(r, static_cast<int>(random() % static_cast<unsigned>(num_key_blocks)), true);
  }
  return mask;
}

/// Every kind of head, in a geometry whose last blocks are partial. Deterministic on every machine (no std
/// distributions).
inline Plan::Parts random_parts(unsigned seed) {
  std::mt19937 random(seed);
  const auto number = [&](int min, int max) {
    return min + static_cast<int>(random() % static_cast<unsigned>(max - min + 1));
  };
  Plan::Parts parts;
  AttentionGeometry& geometry = parts.geometry;
  geometry.frames = number(1, 5);
  geometry.height = number(2, 6);
  geometry.width = number(1, 7);
  geometry.text_tokens = number(0, 1) * number(1, 9);
  geometry.heads = number(1, 3);
  geometry.head_dim = 64;
  geometry.block_q = number(3, 9);
  geometry.block_k = number(3, 9);
  if (number(0, 1) == 1) geometry.order = TokenOrder::tiles(number(1, 4), number(1, 3), number(1, 3));
  parts.num_layers = number(1, 3);
  parts.anchor_rows_per_frame = number(1, geometry.height);
  parts.summarize_skipped = number(0, 1) == 1;

  const int num_steps = number(1, 6);
  int entry = 0;
  for (int step = 0; step < num_steps; ++step) {
    if (step > 0) entry += number(0, 1);
    parts.step_entry.push_back(entry);
    parts.sigmas.push_back(1.0 - step / 7.0);
    parts.energy_targets.push_back(number(0, 2) == 0 ? std::numeric_limits<double>::quiet_NaN() : 0.9 - step / 100.0);
  }
  const AnchorRows anchors = make_anchor_rows(geometry, parts.anchor_rows_per_frame);
  for (int i = 0; i < (entry + 1) * parts.num_layers * geometry.heads; ++i) {
    HeadPlan& head = parts.heads.emplace_back();
    head.anchored = number(0, 2) == 0;
    if (number(0, 3) == 0) continue;
    const int rows = head.anchored ? anchors.num_query_blocks(geometry.block_q) : geometry.num_query_blocks();
    head.intervals =
        BlockIntervals::from_mask(random_mask(random, rows, geometry.num_key_blocks(), number(0, 10) / 10.0));
  }
  PlanProvenance& provenance = parts.provenance;
  provenance.tool_version = "0.1.0";
  provenance.transformers = {{"WanTransformer3DModel (tiny \"wan\" ü)", "0123456789abcdef0123456789abcdef"}};
  provenance.prompts_hash = "fedcba9876543210fedcba9876543210";
  provenance.num_prompts = number(1, 9);
  provenance.video_frames = 4 * geometry.frames - 3;
  provenance.video_height = 16 * geometry.height;
  provenance.video_width = 16 * geometry.width;
  provenance.guidance_scale = 5.5;
  provenance.scheduler = "unipc";
  provenance.flow_shift = 3.1;
  provenance.settings = {{"--budget", "error"}, {"--density", "0.35"}};
  if (number(0, 1) == 0) {
    for (int step = 0; step < num_steps; ++step) parts.eight_bits.push_back({number(0, 1) == 0, number(0, 1) == 0});
  }
  if (number(0, 1) == 0 || num_steps == 1) return parts;
  parts.step_reuse.assign(static_cast<size_t>(num_steps), StepReuse::kNone);
  for (int step = 1; step < num_steps; ++step) {
    parts.step_reuse[static_cast<size_t>(step)] =
        static_cast<StepReuse>(number(step == 1 ? 1 : 0, 2));  // of one source
  }
  return parts;
}

/// The worked example of docs/plan_format.md: 1×4×3 tokens in blocks of 4 (3×3 blocks), two heads, one layer, three
/// steps of which the last two share an entry; one head is anchored to rows 1 and 3.
inline Plan::Parts example_parts() {
  Plan::Parts parts;
  parts.geometry.frames = 1;
  parts.geometry.height = 4;
  parts.geometry.width = 3;
  parts.geometry.heads = 2;
  parts.geometry.head_dim = 64;
  parts.geometry.block_q = parts.geometry.block_k = 4;
  parts.num_layers = 1;
  parts.sigmas = {1.0, 0.75, 0.25};
  parts.step_entry = {0, 1, 1};
  parts.energy_targets = {0.99, 0.9, 0.84};
  parts.anchor_rows_per_frame = 2;
  parts.heads.resize(4);
  parts.heads[0].intervals = BlockIntervals(3, {0, 1, 3, 4}, {{0, 3}, {0, 1}, {2, 3}, {1, 3}});
  parts.heads[3].anchored = true;
  parts.heads[3].intervals = BlockIntervals(3, {0, 1, 2}, {{0, 2}, {1, 3}});
  parts.provenance.tool_version = "0.1.0";
  parts.provenance.transformers = {{"example", "00112233445566778899aabbccddeeff"}};
  parts.provenance.prompts_hash = "ffeeddccbbaa99887766554433221100";
  parts.provenance.num_prompts = 1;
  parts.provenance.video_frames = 1;
  parts.provenance.video_height = 64;
  parts.provenance.video_width = 48;
  parts.provenance.guidance_scale = 5;
  parts.provenance.scheduler = "unipc";
  parts.provenance.flow_shift = 3;
  parts.provenance.settings = {{"--budget", "energy"}};
  return parts;
}

/// Ten entries that differ little from each other, so that their sections refer to the entry before; a second head
/// whose diagonals are described by the row above.
inline Plan::Parts drifting_parts() {
  Plan::Parts parts = example_parts();
  parts.geometry = {};
  parts.geometry.height = 12;
  parts.geometry.width = 8;
  parts.geometry.heads = 2;
  parts.geometry.block_q = 8;
  parts.geometry.block_k = 4;  // 12 × 24 blocks
  parts.sigmas.clear();
  parts.step_entry.clear();
  parts.energy_targets.clear();
  parts.heads.clear();
  std::mt19937 random(3);
  BlockMask mask = random_mask(random, 12, 24, 0.4);
  for (int entry = 0; entry < 10; ++entry) {
    parts.sigmas.push_back(1.0 - 0.1 * entry);
    parts.step_entry.push_back(entry);
    parts.energy_targets.push_back(0.9);
    mask.set(static_cast<int>(random() % 12), static_cast<int>(random() % 24), true);
    BlockMask band(12, 24);
    for (int r = 0; r < 12; ++r) {
      for (int c = 0; c < 24; ++c) band.set(r, c, c - 2 * r <= 3 + entry % 2 && 2 * r - c <= 2);
    }
    parts.heads.push_back({BlockIntervals::from_mask(mask), false});
    parts.heads.push_back({BlockIntervals::from_mask(band), false});
  }
  return parts;
}

/// What versions 1 and 2 cannot say: two transformers, of which one was not compared, and how accurate the plan is.
inline Plan::Parts expert_parts() {
  Plan::Parts parts = example_parts();
  parts.provenance.transformers = {{"high noise", "values:00112233445566778899aabbccddeeff"}, {"low noise", ""}};
  parts.step_transformer = {0, 0, 1};
  parts.accuracy.predicted = 0.0625;
  parts.accuracy.held_out = true;
  parts.accuracy.measured = 0.125;
  return parts;
}

/// Steps without a forward: every way, beside the boundary of two transformers.
inline Plan::Parts reuse_parts() {
  Plan::Parts parts = expert_parts();
  parts.sigmas = {1, 0.9, 0.8, 0.7, 0.5, 0.4, 0.25};
  parts.step_transformer = {0, 0, 0, 0, 1, 1, 1};
  parts.step_entry = {0, 1, 1, 1, 0, 0, 1};
  parts.energy_targets.assign(7, 0.9);
  parts.step_reuse = {StepReuse::kNone, StepReuse::kNone, StepReuse::kLinear,  StepReuse::kHold,
                      StepReuse::kNone, StepReuse::kNone, StepReuse::kResidual};
  parts.accuracy.latents_predicted = 0.03125;
  return parts;
}

/// Steps of which this and that is in 8 bits, one of them without a forward.
inline Plan::Parts eight_bit_plan_parts() {
  Plan::Parts parts = reuse_parts();
  parts.eight_bits = {{}, {.attention = true}, {.layers = true}, {true, true}, {}, {true, true}, {.layers = true}};
  return parts;
}

/// The plans behind tests/golden/data/plan_vN_NAME.safetensors: "example"; "drift" (from version 2); "experts", "reuse"
/// and "bits" (from version 3); and "tiles" with every other feature (tile order, text tokens in blocks, anchors,
/// summaries, shared steps, an absent energy target).
inline Plan::Parts fixture_parts(const std::string& name) {
  if (name == "example") return example_parts();
  if (name == "drift") return drifting_parts();
  if (name == "experts") return expert_parts();
  if (name == "reuse") return reuse_parts();
  if (name == "bits") return eight_bit_plan_parts();
  Plan::Parts parts = example_parts();
  parts.provenance.transformers[0].name = "tiny \"wan\" ü";
  AttentionGeometry& geometry = parts.geometry;
  geometry = {};
  geometry.frames = 3;
  geometry.height = 5;
  geometry.width = 7;
  geometry.text_tokens = 4;
  geometry.heads = 3;
  geometry.block_q = 8;
  geometry.block_k = 6;
  geometry.order = TokenOrder::tiles(2, 2, 2);
  parts.num_layers = 2;
  parts.summarize_skipped = true;
  parts.anchor_rows_per_frame = 2;
  parts.sigmas = {0.999, 0.8, 0.6, 0.1};
  parts.step_entry = {0, 1, 1, 0};
  parts.energy_targets = {0.99, std::numeric_limits<double>::quiet_NaN(), 0.85, 0.84};
  parts.heads.assign(12, {});
  std::mt19937 random(7);
  const int packed_blocks = make_anchor_rows(geometry, 2).num_query_blocks(geometry.block_q);
  for (size_t i = 0; i < parts.heads.size(); ++i) {
    HeadPlan& head = parts.heads[i];
    head.anchored = i % 4 == 3;
    if (i % 5 == 2 || i == 7) continue;
    const int rows = head.anchored ? packed_blocks : geometry.num_query_blocks();
    const double density = 0.1 * static_cast<double>(i % 9);
    head.intervals = BlockIntervals::from_mask(random_mask(random, rows, geometry.num_key_blocks(), density));
  }
  return parts;
}

/// Equal in every number and text; NaN equals NaN.
inline bool same_plan(const Plan& a, const Plan& b) {
  const Plan::Parts x = a.to_parts(), y = b.to_parts();
  if (x.energy_targets.size() != y.energy_targets.size()) return false;
  for (size_t i = 0; i < x.energy_targets.size(); ++i) {
    const double p = x.energy_targets[i], q = y.energy_targets[i];
    if (p != q && !(p != p && q != q)) return false;
  }
  return x.geometry == y.geometry && x.num_layers == y.num_layers && x.sigmas == y.sigmas &&
         x.step_entry == y.step_entry && x.heads == y.heads && x.summarize_skipped == y.summarize_skipped &&
         x.anchor_rows_per_frame == y.anchor_rows_per_frame && x.provenance == y.provenance &&
         x.step_transformer == y.step_transformer && x.step_reuse == y.step_reuse && x.eight_bits == y.eight_bits &&
         x.accuracy == y.accuracy;
}

}  // namespace calibatt::test
