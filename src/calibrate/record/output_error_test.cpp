#include "calibrate/record/output_error.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <vector>

#include "backend/cpu/attention/reference/attention_reference.h"
#include "base/half.h"
#include "calibrate/record/synthetic_attention.h"

namespace calibatt {
namespace {

// 105 tokens: partial last blocks of queries (9 of 16) and of keys (9 of 24).
AttentionGeometry odd_geometry() {
  AttentionGeometry geometry;
  geometry.frames = 3, geometry.height = 5, geometry.width = 7;
  geometry.heads = 3, geometry.head_dim = 20;
  geometry.block_q = 16, geometry.block_k = 24;
  return geometry;
}

struct Case {
  explicit Case(const AttentionGeometry& g)
      : geometry(g), call(geometry, 0, 0, 0), dense({DType::kF32, {g.num_tokens(), g.heads, g.head_dim}}) {
    run(dense, {});
    energy.resize(static_cast<size_t>(g.heads) * g.num_query_blocks() * g.num_key_blocks());
    AttentionCall with_energy = attention_call(dense, {});
    with_energy.block_energy = energy.data();
    cpu::attention_reference(with_energy);
    TorchGenerator generator(8);
    weight = generator.randn({48, g.heads * g.head_dim});
    gate = generator.randn({48});
    context = {&weight, {gate.f32(), 48}, 777.0};
    position_of_raster.resize(g.num_tokens());
    const auto raster_of = g.raster_of_position();
    for (size_t p = 0; p < raster_of.size(); ++p) position_of_raster[raster_of[p]] = static_cast<int32_t>(p);
    for (const int rows : {1, 2, 5}) anchors.push_back(make_anchor_rows(g, rows));
  }

  AttentionCall attention_call(Tensor& out, std::span<const HeadSchedule> heads) {
    AttentionCall c;
    c.q = call.view(call.q), c.k = call.view(call.k), c.v = call.view(call.v), c.out = call.output_view(out);
    c.num_heads = geometry.heads, c.head_dim = geometry.head_dim;
    c.scale = 1 / std::sqrt(static_cast<float>(geometry.head_dim));
    c.block_q = geometry.block_q, c.block_k = geometry.block_k;
    c.heads = heads;
    return c;
  }
  void run(Tensor& out, std::span<const HeadSchedule> heads) { cpu::attention_reference(attention_call(out, heads)); }

  std::span<const float> head_energy(int head) const {
    const size_t size = static_cast<size_t>(geometry.num_query_blocks()) * geometry.num_key_blocks();
    return {energy.data() + head * size, size};
  }

  // ‖(changed − dense) W_oᵀ diag gate‖² / ‖x‖² of one head, over the query blocks [first, last), in double.
  double residual_change(const Tensor& changed, int head, int first, int last) const {
    double sum = 0;
    const int dim = geometry.head_dim, width = geometry.heads * dim;
    for (int token = first * geometry.block_q; token < std::min(last * geometry.block_q, geometry.num_tokens());
         ++token) {
      for (int row = 0; row < 48; ++row) {
        double value = 0;
        for (int i = 0; i < dim; ++i) {
          const int64_t at = static_cast<int64_t>(token) * width + head * dim + i;
          value +=
              (static_cast<double>(changed.f32()[at]) - dense.f32()[at]) * weight.f32()[row * width + head * dim + i];
        }
        sum += value * value * gate.f32()[row] * gate.f32()[row];
      }
    }
    return sum / 777.0;
  }

  MeasuredCall measured(int samples) const {
    return {geometry,          call.view(call.q), call.view(call.k),
            call.view(call.v), call.view(dense),  1 / std::sqrt(static_cast<float>(geometry.head_dim)),
            context,           samples,           0.3,
            anchors,           position_of_raster};
  }

  AttentionGeometry geometry;
  SyntheticAttention call;
  Tensor dense;
  std::vector<float> energy;
  Tensor weight, gate;
  OutputContext context;
  std::vector<int32_t> position_of_raster;
  std::vector<AnchorRows> anchors;
};

constexpr int kEveryQuery = 16;  // = block_q: nothing is extrapolated

TEST(OutputProjection, HasTheNormOfWhatFollows) {
  Case test(odd_geometry());
  for (int head = 0; head < 3; ++head) {
    const auto projection = output_projection(test.context, head, 20);
    Tensor changed = test.dense.clone();
    for (int64_t i = 0; i < changed.size(); ++i) changed.f32()[i] += std::sin(static_cast<float>(i));
    double projected = 0;
    for (int token = 0; token < test.geometry.num_tokens(); ++token) {
      for (int j = 0; j < 20; ++j) {
        double value = 0;
        for (int i = 0; i < 20; ++i) {
          const int64_t at = (static_cast<int64_t>(token) * 3 + head) * 20 + i;
          value += (static_cast<double>(changed.f32()[at]) - test.dense.f32()[at]) * projection[i * 20 + j];
        }
        projected += value * value;
      }
    }
    EXPECT_NEAR(projected / 777.0 / test.residual_change(changed, head, 0, 7), 1.0, 1e-4);
  }
}

TEST(OutputProjection, ARankDeficientWeightDoesNoHarm) {
  Tensor weight = Tensor::zeros(DType::kF32, {6, 4});
  for (int row = 0; row < 6; ++row) weight.f32()[row * 4 + 1] = static_cast<float>(row);  // only channel 1 matters
  const auto projection = output_projection({&weight, {}, 0}, 0, 4);
  EXPECT_NEAR(projection[1 * 4 + 1], std::sqrt(55.0), 1e-4);
  for (int i = 0; i < 16; ++i) {
    if (i != 5) {
      EXPECT_EQ(projection[i], 0) << i;
    }
  }
}

TEST(StratifiedTokens, TakeOneOfEveryStretch) {
  std::vector<int> tokens;
  stratified_tokens(100, 64, 4, 0.5, tokens);
  ASSERT_EQ(tokens.size(), 4u);
  std::set<int> columns;
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ((tokens[i] - 100) / 16, i);
    columns.insert((tokens[i] - 100) % 16);
  }
  EXPECT_EQ(columns.size(), 4u) << "rows of 16 tokens must not all be sampled in one column";
  tokens.clear();
  stratified_tokens(0, 3, 3, 0.99, tokens);
  EXPECT_EQ(tokens, (std::vector<int>{0, 1, 2}));
}

// Masks made of the same rankings, run by the reference kernel, must show the same errors.
TEST(MeasureHead, LevelErrorsEqualThoseOfTheReferenceKernel) {
  Case test(odd_geometry());
  const AttentionGeometry& g = test.geometry;
  const size_t levels = kEnergyLevels.size();
  for (int head = 0; head < 3; ++head) {
    SampledKeys keys;
    std::vector<float> harm(test.head_energy(head).size());
    for (size_t i = 0; i < harm.size(); ++i) harm[i] = test.head_energy(head)[i] * static_cast<float>(1 + i % 3);
    const HeadReference reference{test.head_energy(head), {harm, harm}};
    const HeadErrors errors = measure_head(test.measured(kEveryQuery), head, reference, keys);
    for (const Ranking ranking : {Ranking::kEnergy, Ranking::kHarm}) {
      InclusionLevels inclusion = ranking == Ranking::kEnergy
                                      ? energy_inclusion(reference.energy, g.num_query_blocks(), g.num_key_blocks())
                                      : harm_inclusion(harm, g.num_query_blocks(), g.num_key_blocks());
      keep_own_blocks(inclusion, g, nullptr);
      for (const bool summary : {false, true}) {
        for (size_t level = 0; level < levels; level += 3) {
          const auto intervals = BlockIntervals::from_mask(inclusion.mask(levels_of(ranking)[level]));
          std::vector<HeadSchedule> schedule(3);
          schedule[head] = {&intervals, summary, nullptr};
          Tensor sparse(DType::kF32, {g.num_tokens(), g.heads, g.head_dim});
          test.run(sparse, schedule);
          const double expected = test.residual_change(sparse, head, 0, g.num_query_blocks());
          const double actual = errors.level_error[(static_cast<size_t>(ranking) * 2 + summary) * levels + level];
          EXPECT_NEAR(actual, expected, 1e-3 * expected + 1e-10)
              << "head " << head << " level " << level << " summary " << summary;
        }
      }
    }
  }
}

TEST(MeasureHead, HarmIsTheChangeFromSkippingOneBlock) {
  Case test(odd_geometry());
  const AttentionGeometry& g = test.geometry;
  const int head = 2, rows = g.num_query_blocks(), columns = g.num_key_blocks();
  SampledKeys keys;
  const HeadErrors errors = measure_head(test.measured(kEveryQuery), head, {test.head_energy(head), {}}, keys);
  for (const bool summary : {false, true}) {
    for (const int skipped : {0, 2, columns - 1}) {
      BlockMask mask(rows, columns, true);
      for (int r = 0; r < rows; ++r) mask.set(r, skipped, false);
      const auto intervals = BlockIntervals::from_mask(mask);
      std::vector<HeadSchedule> schedule(3);
      schedule[head] = {&intervals, summary, nullptr};
      Tensor sparse(DType::kF32, {g.num_tokens(), g.heads, g.head_dim});
      test.run(sparse, schedule);
      for (int r = 0; r < rows; ++r) {
        const double expected = test.residual_change(sparse, head, r, r + 1) / g.query_block_size(r);
        const double energy = test.head_energy(head)[r * columns + skipped];
        // First order: exact up to the factor 1/(1 − energy of the query) by which the rest is renormalised.
        EXPECT_NEAR(errors.harm[summary][r * columns + skipped] / expected, 1.0, 8 * energy + 1e-3)
            << r << " " << skipped;
      }
    }
  }
}

TEST(MeasureHead, CopyErrorsEqualThoseOfAnchorRows) {
  Case test(odd_geometry());
  const AttentionGeometry& g = test.geometry;
  SampledKeys keys;
  for (int head = 0; head < 3; ++head) {
    const HeadErrors errors = measure_head(test.measured(kEveryQuery), head, {test.head_energy(head), {}}, keys);
    for (size_t a = 0; a < test.anchors.size(); ++a) {
      std::vector<HeadSchedule> schedule(3);
      schedule[head] = {nullptr, false, &test.anchors[a]};
      Tensor copied(DType::kF32, {g.num_tokens(), g.heads, g.head_dim});
      test.run(copied, schedule);
      const double expected = test.residual_change(copied, head, 0, g.num_query_blocks());
      EXPECT_NEAR(errors.copy_error[a], expected, 1e-4 * expected + 1e-12) << head << " " << a;
    }
    EXPECT_EQ(errors.copy_error[2], 0.0) << "all 5 rows are anchors";
    EXPECT_EQ(errors.similarity[2], 1.0);
  }
}

TEST(MeasureHead, FindsTheHeadWhoseRowsAttendAlike) {
  Case test(odd_geometry());
  SampledKeys keys;
  const HeadErrors local = measure_head(test.measured(4), 0, {test.head_energy(0), {}}, keys);
  const HeadErrors by_column = measure_head(test.measured(4), 1, {test.head_energy(1), {}}, keys);
  EXPECT_GT(by_column.similarity[0], 0.9);
  EXPECT_LT(local.similarity[0], by_column.similarity[0] - 0.05);
  EXPECT_LE(local.similarity[0], local.similarity[1] + 0.02) << "with fewer anchors, rows are farther from theirs";
}

TEST(MeasureHead, AFewSampledQueriesEstimateAll) {
  AttentionGeometry geometry = odd_geometry();
  geometry.frames = 8, geometry.height = 8, geometry.width = 8, geometry.head_dim = 16, geometry.block_q = 64,
  geometry.block_k = 32;
  geometry.order = TokenOrder::tiles(4, 4, 4);
  Case test(geometry);
  SampledKeys keys;
  for (int head = 0; head < 3; ++head) {
    std::vector<float> harm(test.head_energy(head).begin(), test.head_energy(head).end());
    const HeadReference reference{test.head_energy(head), {harm, harm}};
    const HeadErrors all = measure_head(test.measured(64), head, reference, keys);
    const HeadErrors few = measure_head(test.measured(8), head, reference, keys);
    for (size_t curve = 0; curve < 4; ++curve) {
      const size_t levels = kEnergyLevels.size();
      const auto *estimate = few.level_error.data() + curve * levels, *truth = all.level_error.data() + curve * levels;
      for (size_t i = 0; i < levels; ++i) {  // errors far below the curve's greatest hang on a handful of queries
        EXPECT_NEAR(estimate[i], truth[i], 0.4 * truth[i] + 0.02 * truth[0]) << head << " " << curve << " " << i;
      }
    }
  }
}

TEST(FloatToHalf, ComesBackAndRoundsToNearest) {
  for (uint32_t bits = 0; bits < 0x7c00u; ++bits) {
    ASSERT_EQ(float_to_half(half_to_float(static_cast<uint16_t>(bits))), bits);
  }
  EXPECT_EQ(float_to_half(1.0f + 0x1p-11f), 0x3c00);  // a tie goes to even
  EXPECT_EQ(float_to_half(1.0f + 0x1.8p-10f), 0x3c02);
  EXPECT_EQ(float_to_half(-2.0f), 0xc000);
  EXPECT_EQ(float_to_half(1e6f), 0x7c00);
  EXPECT_EQ(float_to_half(65519.0f), 0x7bff);
}

}  // namespace
}  // namespace calibatt
