#include "cases.h"

namespace calibatt::bench {

const std::vector<Case>& cases() {
  static const std::vector<Case> list = {
      {.name = "f32_dense"},
      {.name = "f32_planned_375", .density = 0.375},
      {.name = "f32_planned_200", .density = 0.2},
      {.name = "f32_planned_200_summary", .density = 0.2, .summarize = true},
      {.name = "f32_energy", .energy = true},
      {.name = "f32_anchors_5", .anchor_rows = 5},
      {.name = "bf16_dense", .dtype = DType::kBF16},
      {.name = "bf16_planned_375", .dtype = DType::kBF16, .density = 0.375},
      {.name = "bf16_planned_200", .dtype = DType::kBF16, .density = 0.2},
      {.name = "bf16_planned_200_summary", .dtype = DType::kBF16, .density = 0.2, .summarize = true},
      {.name = "bf16_energy", .dtype = DType::kBF16, .energy = true},
      {.name = "bf16_anchors_5", .dtype = DType::kBF16, .anchor_rows = 5},
      {.name = "f32_dense_dim128", .num_heads = 2, .head_dim = 128},
      {.name = "f32_planned_200_dim128_block128", .num_heads = 2, .head_dim = 128, .block = 128, .density = 0.2},
      {.name = "bf16_dense_dim128", .dtype = DType::kBF16, .num_heads = 2, .head_dim = 128},
      {.name = "bf16_planned_200_dim128_block128",
       .dtype = DType::kBF16,
       .num_heads = 2,
       .head_dim = 128,
       .block = 128,
       .density = 0.2},
  };
  return list;
}

const std::vector<Figure>& figures() {
  using enum Figure::Kind;
  static const std::vector<Figure> list = {
      {"dense f32, share of FMA peak", kShareOfFmaPeak, "f32_dense", "", 0.60},
      {"bf16 over f32", kSpeedup, "bf16_dense", "f32_dense", 1.5},
      {"f32 over torch f32", kSpeedup, "f32_dense", kTorchF32, 1.2},
      {"skipping efficiency at density .375, f32", kEfficiency, "f32_planned_375", "f32_dense", 0.95},
      {"skipping efficiency at density .2, f32", kEfficiency, "f32_planned_200", "f32_dense", 0.90},
      {"skipping efficiency at density .375, bf16", kEfficiency, "bf16_planned_375", "bf16_dense", 0.95},
      {"skipping efficiency at density .2, bf16", kEfficiency, "bf16_planned_200", "bf16_dense", 0.90},
      {"dense + block energy over dense, f32", kOverhead, "f32_energy", "f32_dense", 1.15},
      {"dense + block energy over dense, bf16", kOverhead, "bf16_energy", "bf16_dense", 1.15},
      {"bf16 over torch bf16", kSpeedup, "bf16_dense", kTorchBf16},
      {"dense bf16, share of bf16 dot product peak", kShareOfBf16Peak, "bf16_dense", ""},
      {"summary tokens over planned, density .2, f32", kOverhead, "f32_planned_200_summary", "f32_planned_200"},
      {"summary tokens over planned, density .2, bf16", kOverhead, "bf16_planned_200_summary", "bf16_planned_200"},
      {"anchors 5 of 16 rows: efficiency, f32", kEfficiency, "f32_anchors_5", "f32_dense"},
      {"anchors 5 of 16 rows: efficiency, bf16", kEfficiency, "bf16_anchors_5", "bf16_dense"},
      {"dense f32 2 x 128, share of FMA peak", kShareOfFmaPeak, "f32_dense_dim128", ""},
      {"dense bf16 2 x 128, share of bf16 peak", kShareOfBf16Peak, "bf16_dense_dim128", ""},
      {"efficiency at .2, f32 2 x 128, block 128", kEfficiency, "f32_planned_200_dim128_block128", "f32_dense_dim128"},
      {"efficiency at .2, bf16 2 x 128, block 128", kEfficiency, "bf16_planned_200_dim128_block128",
       "bf16_dense_dim128"},
  };
  return list;
}

}  // namespace calibatt::bench
