#pragma once

#include <cstdint>

namespace calibatt {

/// The tokens that one of several ranks holds outside attention: consecutive positions of the token order, in numbers
/// that differ by at most one.
struct TokenShard {
  int64_t begin = 0, count = 0;
  bool operator==(const TokenShard&) const = default;
};

/// 0 ≤ rank < num_ranks.
constexpr TokenShard token_shard(int64_t num_tokens, int rank, int num_ranks) {
  const int64_t begin = num_tokens * rank / num_ranks;
  return {begin, num_tokens * (rank + 1) / num_ranks - begin};
}

}  // namespace calibatt
