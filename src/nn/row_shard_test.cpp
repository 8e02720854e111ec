#include "nn/row_shard.h"

#include <gtest/gtest.h>

#include <vector>

#include "backend/thread_ranks.h"

namespace calibatt {
namespace {

constexpr int64_t kFrames = 2, kWidth = 3, kChannels = 2, kRow = kFrames * kWidth * kChannels;

/// Rows whose every number is the row's place in the picture.
struct Rows {
  Rows(int64_t first, int64_t count, int64_t border = 0) : values(static_cast<size_t>((count + 2 * border) * kRow)) {
    view = {values.data(), DType::kF32, count + 2 * border, kFrames, kWidth, kChannels, kRow};
    std::fill(values.begin(), values.end(), -1.0f);
    for (int64_t row = 0; row < count; ++row) fill(border + row, first + row);
  }
  void fill(int64_t row, int64_t number) { std::fill_n(values.begin() + row * kRow, kRow, static_cast<float>(number)); }
  std::vector<float> values;
  ClipView view;
};

TEST(RowShard, IsTheSameAtEveryLevel) {
  for (const int num_ranks : {1, 2, 3, 7}) {
    run_ranks(num_ranks, [&](Communicator& ranks) {
      const RowShard shard(ranks, 7);
      std::vector<int64_t> begins(static_cast<size_t>(num_ranks));
      const int64_t begin = shard.latent_begin();
      std::vector<Piece> receive;
      for (int64_t& each : begins) receive.push_back({&each, sizeof(each)});
      ranks.all_gather({&begin, sizeof(begin)}, receive);
      const auto rank = static_cast<size_t>(ranks.rank());
      EXPECT_EQ(begins[0], 0);
      EXPECT_EQ(shard.latent_begin() + shard.latent_count(), rank + 1 < begins.size() ? begins[rank + 1] : int64_t{7});
      EXPECT_GE(shard.latent_count(), 7 / num_ranks);
      for (const int64_t scale : {1, 2, 8}) {
        EXPECT_EQ(shard.first_row(scale * shard.latent_count()), scale * begin);
        EXPECT_EQ(shard.height_of_all(scale * shard.latent_count()), 7 * scale);
      }
    });
  }
}

TEST(RowShard, BordersAreTheNeighboursRows) {
  for (const int num_ranks : {1, 2, 3, 5}) {  // of five rows: some ranks have one
    for (const int64_t scale : {1, 2}) {
      run_ranks(num_ranks, [&](Communicator& ranks) {
        const RowShard shard(ranks, 5);
        const int64_t count = scale * shard.latent_count(), first = shard.first_row(count);
        for (int64_t border = 1; border <= scale; ++border) {
          Rows rows(first, count, border), expected(first, count, border);
          for (int64_t i = 0; i < border; ++i) {
            if (ranks.rank() > 0) expected.fill(i, first - border + i);
            if (ranks.rank() + 1 < num_ranks) expected.fill(border + count + i, first + count + i);
          }
          shard.take_border(rows.view, border);
          EXPECT_EQ(rows.values, expected.values) << num_ranks << " ranks, border " << border;
        }
      });
    }
  }
}

TEST(RowShard, RowsAreGatheredInOrder) {
  for (const int num_ranks : {1, 2, 3, 5}) {
    run_ranks(num_ranks, [&](Communicator& ranks) {
      const RowShard shard(ranks, 5);
      const int64_t count = 4 * shard.latent_count();
      const Rows own(shard.first_row(count), count), expected(0, 20);
      Rows everywhere(-1, 20), at_first(-1, 20);
      shard.gather(own.view, everywhere.view);
      EXPECT_EQ(everywhere.values, expected.values);
      shard.gather_at_first(own.view, shard.is_first() ? at_first.view : ClipView());
      EXPECT_EQ(at_first.values, shard.is_first() ? expected.values : Rows(-1, 20).values);
    });
  }
}

}  // namespace
}  // namespace calibatt
