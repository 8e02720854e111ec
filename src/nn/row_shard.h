#pragma once

#include <cstdint>

#include "backend/clip_ops.h"
#include "backend/communicator.h"

namespace calibatt {

/// The rows of a picture that this rank computes, where several share it: consecutive ones, in the order of ranks. It
/// is the same share at every level of an autoencoder, each of which has a multiple of the latents' rows. Every rank
/// makes the same calls. Clips are dense, so that any range of their rows is one piece.
class RowShard {
 public:
  RowShard() = default;  ///< all rows, of a rank that is alone
  /// latent_rows ≥ ranks.size(). Pieces are memory of the backend. `ranks` must outlive the object.
  RowShard(Communicator& ranks, int64_t latent_rows);

  bool is_shared() const { return ranks_ != nullptr; }
  Communicator* ranks() const { return ranks_; }  ///< null: alone
  bool is_first() const { return ranks_ == nullptr || ranks_->rank() == 0; }
  int64_t latent_begin() const { return begin_of(rank()); }
  int64_t latent_count() const { return count_of(rank()); }
  /// Of a level where this rank has `height` rows: where they begin in the picture, and how many it has.
  int64_t first_row(int64_t height) const { return begin_of(rank()) * scale(height); }
  int64_t height_of_all(int64_t height) const { return latent_rows_ * scale(height); }

  /// The first `border` rows of `clip` and as many last ones become what the ranks above and below have there. At the
  /// top and the bottom of the picture they stay.
  void take_border(const ClipView& clip, int64_t border) const;
  /// The rows of all ranks, in `all` of height_of_all rows.
  void gather(const ClipView& own, const ClipView& all) const { gather(own, all, true); }
  /// The same on the first rank alone; the others give any `all`.
  void gather_at_first(const ClipView& own, const ClipView& all) const { gather(own, all, false); }

 private:
  int rank() const { return ranks_->rank(); }
  int64_t begin_of(int rank) const { return latent_rows_ * rank / ranks_->size(); }
  int64_t count_of(int rank) const { return begin_of(rank + 1) - begin_of(rank); }
  int64_t scale(int64_t height) const;
  void gather(const ClipView& own, const ClipView& all, bool everywhere) const;

  Communicator* ranks_ = nullptr;
  int64_t latent_rows_ = 0;
};

}  // namespace calibatt
