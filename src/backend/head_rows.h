#pragma once

#include <cstdint>
#include <span>

#include "backend/attention_call.h"

namespace calibatt {

/// Which head of one view becomes which of another.
struct HeadMove {
  int from = 0, to = 0;
};

/// Rows that a rank takes out of what a rank offers (Communicator::take_heads): to[t, move.to, :] =
/// offered[first_token + t, move.from, :], for every token t of `to` and every move.
struct HeadRows {
  int rank = 0;             ///< who offers them; may be the taker itself
  int view = 0;             ///< which of the views that it offers
  int64_t first_token = 0;  ///< of that view
  HeadsView to;
  std::span<const HeadMove> moves;
};

/// What the rows are taken from, from first_token on, `to`.num_tokens of them; `offered`: what rows.rank offers. Throws
/// std::logic_error where it has no such tokens, or they are of another type.
ConstHeadsView source_of(const HeadRows& rows, std::span<const ConstHeadsView> offered);

/// In host memory; from: source_of(rows).
void copy_on_host(const HeadRows& rows, const ConstHeadsView& from, int head_dim);

}  // namespace calibatt
