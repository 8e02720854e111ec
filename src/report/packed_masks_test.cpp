// A page's masks say what the plan's do.
#include "report/packed_masks.h"

#include <gtest/gtest.h>

#include <random>

#include "plan/test_plans.h"
#include "report/base64.h"

namespace calibatt {
namespace {

/// Reads as page/masks.js does.
class Reader {
 public:
  Reader(const Plan& plan, const PackedMasks& masks) : plan_(plan), masks_(masks) {}

  /// The next head that has intervals: its share of kept blocks in one cell, in parts of 15.
  int value(int row, int column) const {
    const auto cell = static_cast<size_t>(row * masks_.columns + column);
    const uint8_t byte = masks_.bytes.at(start_ + (masks_.exact ? cell / 8 : cell / 2));
    return masks_.exact ? 15 * (byte >> (cell % 8) & 1) : byte >> (cell % 2 * 4) & 15;
  }
  void next() { start_ += PackedMasks::bytes_per_head(masks_.rows, masks_.columns, masks_.exact); }
  size_t position() const { return start_; }

 private:
  const Plan& plan_;
  const PackedMasks& masks_;
  size_t start_ = 0;
};

TEST(PackedMasks, AreExactWhereThereIsRoom) {
  for (unsigned seed = 0; seed < 40; ++seed) {
    const Plan plan{test::random_parts(seed)};
    const PackedMasks masks = pack_masks(plan, 1 << 20);
    ASSERT_TRUE(masks.exact);
    EXPECT_EQ(masks.steps.size(), masks.num_running);
    Reader reader(plan, masks);
    for (const int step : masks.steps) {
      EXPECT_EQ(plan.info().reuse_of(step), StepReuse::kNone);
      for (int layer = 0; layer < plan.num_layers(); ++layer) {
        for (int head = 0; head < plan.geometry().heads; ++head) {
          const HeadPlan each = plan.head(step, layer, head);
          if (!each.intervals) continue;
          const BlockMask mask = each.intervals->to_mask();
          for (int row = 0; row < each.intervals->num_query_blocks(); ++row) {
            for (int column = 0; column < masks.columns; ++column) {
              ASSERT_EQ(reader.value(row, column), mask.kept(row, column) ? 15 : 0)
                  << seed << " " << row << " " << column;
            }
          }
          reader.next();
        }
      }
    }
    EXPECT_EQ(reader.position(), masks.bytes.size());
  }
}

/// `num_steps` entries of one layer and two heads, 200×200 blocks.
Plan large_plan(int num_steps) {
  Plan::Parts parts = test::example_parts();
  parts.geometry.height = 40;
  parts.geometry.width = 20;
  parts.anchor_rows_per_frame = 0;
  parts.heads.clear();
  parts.sigmas.clear();
  parts.step_entry.clear();
  parts.energy_targets.assign(static_cast<size_t>(num_steps), 0.9);
  std::mt19937 random(1);
  for (int step = 0; step < num_steps; ++step) {
    parts.sigmas.push_back(1 - step / 100.0);
    parts.step_entry.push_back(step);
    for (const double density : {0.3, 0.9}) {
      BlockMask mask = test::random_mask(random, 200, 200, density);
      for (int i = 0; i < 20; ++i) {  // a cell of all blocks, and one of none
        for (int j = 0; j < 20; ++j) mask.set(i, j, true), mask.set(i + 60, j + 60, false);
      }
      parts.heads.push_back({BlockIntervals::from_mask(mask), false});
    }
  }
  return Plan(std::move(parts));
}

TEST(PackedMasks, BecomeSharesWhereBlocksAreTooMany) {
  const Plan plan = large_plan(4);
  const PackedMasks masks = pack_masks(plan, 20'000);
  ASSERT_FALSE(masks.exact);
  EXPECT_EQ(masks.rows, 64);
  EXPECT_EQ(masks.steps, (std::vector<int>{0, 1, 2, 3}));
  EXPECT_LE(masks.bytes.size(), 20'000U);
  Reader reader(plan, masks);
  for (const int step : masks.steps) {
    for (int head = 0; head < 2; ++head) {
      const BlockMask mask = plan.head(step, 0, head).intervals->to_mask();
      for (int row = 0; row < masks.rows; ++row) {
        for (int column = 0; column < masks.columns; ++column) {
          int kept = 0, all = 0;
          for (int r = 0; r < 200; ++r) {
            if (r * 64 / 200 != row) continue;
            for (int c = 0; c < 200; ++c) {
              if (c * 64 / 200 != column) continue;
              ++all;
              kept += mask.kept(r, c);
            }
          }
          const int value = reader.value(row, column);
          ASSERT_EQ(value == 0, kept == 0);
          ASSERT_EQ(value == 15, kept == all);
          ASSERT_NEAR(value / 15.0, static_cast<double>(kept) / all, 1 / 15.0);
        }
      }
      reader.next();
    }
  }
}

TEST(PackedMasks, TakeStepsFromBeginningToEndWhereAllAreTooMany) {
  const Plan plan = large_plan(9);
  const PackedMasks masks = pack_masks(plan, 4 * 2 * 512);  // four steps of 32×32 half bytes
  EXPECT_EQ(masks.rows, 32);
  EXPECT_EQ(masks.steps, (std::vector<int>{0, 3, 5, 8}));
  EXPECT_EQ(masks.num_running, 9U);
  const PackedMasks one = pack_masks(plan, 300);  // of 16×16: one step
  EXPECT_EQ(one.rows, 16);
  EXPECT_EQ(one.steps, std::vector<int>{0});
  EXPECT_TRUE(pack_masks(plan, 100).steps.empty());
}

TEST(Base64, IsThatOfTheRfc) {
  const auto encoded = [](std::string_view text) {
    return to_base64(std::span(reinterpret_cast<const uint8_t*>(text.data()), text.size()));
  };
  EXPECT_EQ(encoded(""), "");
  EXPECT_EQ(encoded("f"), "Zg==");
  EXPECT_EQ(encoded("fo"), "Zm8=");
  EXPECT_EQ(encoded("foo"), "Zm9v");
  EXPECT_EQ(encoded("foobar"), "Zm9vYmFy");
  EXPECT_EQ(encoded("\xff\xff\xbe"), "//++");
  EXPECT_EQ(to_base64(std::vector<uint16_t>{1, 0x1234}), "AQA0Eg==");
}

}  // namespace
}  // namespace calibatt
