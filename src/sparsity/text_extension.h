#pragma once

#include "sparsity/block_intervals.h"

namespace calibatt {

/// The token counts of an attention call without its text: what a head's intervals were made for.
struct VideoTokens {
  int num_queries = 0;  ///< those that the head computes: all video tokens, or its anchors
  int num_keys = 0;     ///< all video tokens
  int block_q = 64, block_k = 64;
};

/// Joint attention: `text_tokens` tokens of text stand behind the video's, among the queries and among the keys, and
/// blocks are counted through both. `video` says which blocks of video keys the video queries compute. Text keys are
/// seen by every query, and text queries see every key; so a block is computed when it holds a text query or a text
/// key, or when `video` keeps it. A block in which video ends and text begins counts as text. Without text: `video`
/// itself. Throws Error(kUsage) when `video` has other blocks than these tokens, or text_tokens < 0.
BlockIntervals extend_to_text(const BlockIntervals& video, const VideoTokens& tokens, int text_tokens);

}  // namespace calibatt
