#pragma once

// For tests of communicators: rows of heads that go to the ranks of a deal and come back, as self-attention's do.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/communicator.h"
#include "sparsity/token_shard.h"

namespace calibatt::test {

/// A rank's memory.
struct RankMemory {
  std::function<std::shared_ptr<void>(const std::vector<uint8_t>& host)> make;
  std::function<std::vector<uint8_t>(const void* memory, size_t size_bytes)> read;
  std::function<void(void* memory, size_t size_bytes)> spoil;  ///< overwrites it, in stream order
};

inline RankMemory host_memory() {
  return {
      [](const std::vector<uint8_t>& host) {
        const auto copy = std::make_shared<std::vector<uint8_t>>(host);
        return std::shared_ptr<void>(copy, copy->data());
      },
      [](const void* memory, size_t size_bytes) {
        const auto* bytes = static_cast<const uint8_t*>(memory);
        return std::vector<uint8_t>(bytes, bytes + size_bytes);
      },
      [](void* memory, size_t size_bytes) { std::fill_n(static_cast<uint8_t*>(memory), size_bytes, uint8_t{0xee}); }};
}

/// One head_dim, type and layout, and who has which heads. Gaps are in elements: before the first row, and behind every
/// head and token.
struct TakenHeads {
  std::string name;
  std::vector<std::vector<int>> heads_of_rank;
  int64_t num_tokens = 0;
  int head_dim = 0;
  DType dtype = DType::kBF16;
  int64_t offset = 0, head_gap = 0, token_gap = 0;
  int seed = 0;  ///< 0 … 255: of the values

  int num_ranks() const { return static_cast<int>(heads_of_rank.size()); }
  int num_heads() const {
    size_t count = 0;
    for (const auto& heads : heads_of_rank) count += heads.size();
    return static_cast<int>(count);
  }
};

inline std::vector<TakenHeads> taken_heads_cases() {
  std::vector<TakenHeads> cases{{"words of 16 bytes", {{1, 4}, {0, 2, 3}}, 37, 128},
                                {"thirds of a larger row", {{1, 4}, {0, 2, 3}}, 37, 128, DType::kBF16, 640, 0, 1280},
                                {"from an odd element on", {{2}, {0, 1}}, 9, 128, DType::kBF16, 1},
                                {"words of 8 bytes", {{0, 2}, {1}, {3}}, 11, 12, DType::kF16},
                                {"words of 4 bytes, gaps between heads", {{0}, {1, 2}}, 10, 5, DType::kF32, 3, 2, 1},
                                {"words of 2 bytes", {{1, 2}, {0}}, 5, 3},
                                {"words of a byte", {{0}, {2}, {1}}, 8, 7, DType::kE4M3, 1},
                                {"ranks without heads", {{}, {0, 1, 2}, {}}, 13, 64},
                                {"ranks without tokens", {{0}, {1, 2}, {3}, {4}}, 3, 16, DType::kF32},
                                {"no heads", {{}, {}}, 4, 8},
                                {"one rank", {{0, 1, 2}}, 6, 32, DType::kF32, 0, 8},
                                {"megabytes", {{0, 3}, {1, 2, 5}, {4}}, 20000, 64, DType::kBF16, 0, 0, 8}};
  TakenHeads many{"more heads than one launch takes", {{}, {}}, 5, 8};
  for (int head = 0; head < 1400; ++head) many.heads_of_rank[head % 8 != 0].push_back(head);
  cases.push_back(many);
  TakenHeads ranks{"more ranks than one launch takes", {}, 29, 8};
  for (int rank = 0; rank < 14; ++rank) ranks.heads_of_rank.push_back({rank});
  cases.push_back(ranks);
  return cases;
}

/// What one rank of a case does: offers two views of its tokens, takes its heads of all tokens of both, offers these
/// and takes its tokens' rows back; three times over.
class HeadTaker {
 public:
  HeadTaker(Communicator& ranks, RankMemory memory, const TakenHeads& layout)
      : ranks_(ranks), memory_(std::move(memory)), case_(layout), element_(dtype_size(layout.dtype)) {}

  void run() {
    for (int round = 0; round < 3; ++round) {
      const TokenShard mine = shard_of(ranks_.rank());
      const Array a = strided(round, 0, mine), b = strided(round, 1, mine);
      const auto own = static_cast<int64_t>(my_heads().size());
      const Array taken_a = packed(own), taken_b = packed(own);
      take(a, b, taken_a, taken_b);
      expect_taken(taken_a, round, 0);
      expect_taken(taken_b, round, 1);
      const Array back = strided(round, kNothing, mine);
      give_back(taken_a, back);
      spoil(a);  // the call before this one's readers are through
      spoil(b);
      expect_same(back, bytes_of(round, 0, mine), "back");
      ranks_.barrier();
      spoil(taken_a);
    }
  }

 private:
  static constexpr int kNothing = -1;
  struct Array {
    std::shared_ptr<void> memory;
    size_t size_bytes;
    HeadsView view;
  };

  TokenShard shard_of(int rank) const { return token_shard(case_.num_tokens, rank, ranks_.size()); }
  const std::vector<int>& my_heads() const { return case_.heads_of_rank[static_cast<size_t>(ranks_.rank())]; }
  int64_t head_stride() const { return case_.head_dim + case_.head_gap; }
  int64_t token_stride() const { return case_.num_heads() * head_stride() + case_.token_gap; }
  uint8_t value(int round, int view, int64_t token, int64_t head, int64_t byte) const {
    const auto number =
        static_cast<uint64_t>((((token * 1409 + head) * 521 + byte) * 8 + round * 2 + view) * 256 + case_.seed);
    return static_cast<uint8_t>((number * 0x9e3779b97f4a7c15u) >> 56);
  }
  /// The shard's tokens of all heads, with gaps of zeros.
  std::vector<uint8_t> bytes_of(int round, int view, const TokenShard& shard) const {
    std::vector<uint8_t> bytes(static_cast<size_t>(case_.offset + shard.count * token_stride()) * element_);
    for (int64_t token = 0; view != kNothing && token < shard.count; ++token) {
      for (int64_t head = 0; head < case_.num_heads(); ++head) {
        const int64_t first = case_.offset + token * token_stride() + head * head_stride();
        uint8_t* row = bytes.data() + static_cast<size_t>(first) * element_;
        for (int64_t byte = 0; byte < row_bytes(); ++byte)
          row[byte] = value(round, view, shard.begin + token, head, byte);
      }
    }
    return bytes;
  }
  Array strided(int round, int view, const TokenShard& shard) const {
    const std::vector<uint8_t> bytes = bytes_of(round, view, shard);
    Array array{memory_.make(bytes), bytes.size(), {}};
    array.view = {static_cast<char*>(array.memory.get()) + static_cast<size_t>(case_.offset) * element_, case_.dtype,
                  shard.count, token_stride(), head_stride()};
    return array;
  }
  Array packed(int64_t num_heads) const {
    const int64_t row = num_heads * case_.head_dim;
    const std::vector<uint8_t> bytes(static_cast<size_t>(case_.num_tokens * row) * element_, 0xdd);
    Array array{memory_.make(bytes), bytes.size(), {}};
    array.view = {array.memory.get(), case_.dtype, case_.num_tokens, row, case_.head_dim};
    return array;
  }
  int64_t row_bytes() const { return case_.head_dim * static_cast<int64_t>(element_); }
  static ConstHeadsView as_const(const HeadsView& view) {
    return {view.data, view.dtype, view.num_tokens, view.token_stride, view.head_stride};
  }

  void take(const Array& a, const Array& b, const Array& taken_a, const Array& taken_b) {
    std::vector<HeadMove> moves;
    for (const int head : my_heads()) moves.push_back({head, static_cast<int>(moves.size())});
    std::vector<HeadRows> rows;
    for (int other = 0; other < ranks_.size(); ++other) {
      for (const Array* taken : {&taken_a, &taken_b}) {
        HeadsView to = taken->view;
        to.data =
            static_cast<char*>(to.data) + shard_of(other).begin * to.token_stride * static_cast<int64_t>(element_);
        to.num_tokens = shard_of(other).count;
        rows.push_back({other, taken == &taken_b, 0, to, moves});
      }
    }
    ranks_.take_heads(std::vector{as_const(a.view), as_const(b.view)}, rows, case_.head_dim);
  }
  void give_back(const Array& taken, const Array& back) {
    std::vector<std::vector<HeadMove>> moves(case_.heads_of_rank.size());
    std::vector<HeadRows> rows;
    for (int other = 0; other < ranks_.size(); ++other) {
      auto& of_rank = moves[static_cast<size_t>(other)];
      for (const int head : case_.heads_of_rank[static_cast<size_t>(other)]) {
        of_rank.push_back({static_cast<int>(of_rank.size()), head});
      }
      rows.push_back({other, 0, shard_of(ranks_.rank()).begin, back.view, of_rank});
    }
    ranks_.take_heads(std::vector{as_const(taken.view)}, rows, case_.head_dim);
  }

  void expect_taken(const Array& taken, int round, int view) const {
    std::vector<uint8_t> expected;
    expected.reserve(taken.size_bytes);
    for (int64_t token = 0; token < case_.num_tokens; ++token) {
      for (const int head : my_heads()) {
        for (int64_t byte = 0; byte < row_bytes(); ++byte) expected.push_back(value(round, view, token, head, byte));
      }
    }
    expect_same(taken, expected, view == 0 ? "first view" : "second view");
  }
  void expect_same(const Array& array, const std::vector<uint8_t>& expected, const char* what) const {
    EXPECT_TRUE(memory_.read(array.memory.get(), array.size_bytes) == expected)
        << case_.name << ", rank " << ranks_.rank() << ", " << what;
  }
  void spoil(const Array& array) const { memory_.spoil(array.memory.get(), array.size_bytes); }

  Communicator& ranks_;
  RankMemory memory_;
  TakenHeads case_;
  size_t element_;
};

}  // namespace calibatt::test
