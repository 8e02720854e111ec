#include "sparsity/text_extension.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"

namespace calibatt {
namespace {

int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}

}  // namespace

BlockIntervals extend_to_text(const BlockIntervals& video, const VideoTokens& tokens, int text_tokens) {
  if (text_tokens < 0 || video.num_query_blocks() != ceil_div(tokens.num_queries, tokens.block_q) ||
      video.num_key_blocks() != ceil_div(tokens.num_keys, tokens.block_k)) {
    throw Error(ErrorKind::kUsage, "intervals of " + std::to_string(video.num_query_blocks()) + "×" +
                                       std::to_string(video.num_key_blocks()) + " blocks are not of " +
                                       std::to_string(tokens.num_queries) + " video queries and " +
                                       std::to_string(tokens.num_keys) + " video keys with " +
                                       std::to_string(text_tokens) + " tokens of text behind them");
  }
  if (text_tokens == 0) return video;
  // Where video does not fill its last block, text does.
  const int first_text_row = tokens.num_queries / tokens.block_q;
  const int num_rows = ceil_div(tokens.num_queries + text_tokens, tokens.block_q);
  const auto first_text_key = static_cast<uint32_t>(tokens.num_keys / tokens.block_k);
  const int num_key_blocks = ceil_div(tokens.num_keys + text_tokens, tokens.block_k);
  const auto end = static_cast<uint32_t>(num_key_blocks);

  std::vector<uint32_t> offsets{0};
  std::vector<BlockInterval> intervals;
  offsets.reserve(static_cast<size_t>(num_rows) + 1);
  intervals.reserve(video.intervals().size() + static_cast<size_t>(num_rows));
  for (int row = 0; row < num_rows; ++row) {
    uint32_t text_begin = row < first_text_row ? first_text_key : 0;  // of the interval that ends with the text
    if (row < first_text_row) {
      for (const BlockInterval& each : video.row(row)) {
        if (each.end >= first_text_key) {
          text_begin = std::min(text_begin, each.begin);
          break;
        }
        intervals.push_back(each);
      }
    }
    intervals.push_back({text_begin, end});
    offsets.push_back(static_cast<uint32_t>(intervals.size()));
  }
  return BlockIntervals(num_key_blocks, std::move(offsets), std::move(intervals));
}

}  // namespace calibatt
