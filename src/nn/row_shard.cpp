#include "nn/row_shard.h"

#include <vector>

#include "base/error.h"

namespace calibatt {
namespace {

size_t size_bytes(const ClipView& clip) {
  return static_cast<size_t>(clip.height * clip.row_stride) * dtype_size(clip.dtype);
}
ConstPiece sent(const ClipView& rows) {
  return {rows.data, size_bytes(rows)};
}
Piece received(const ClipView& rows) {
  return {rows.data, size_bytes(rows)};
}

}  // namespace

RowShard::RowShard(Communicator& ranks, int64_t latent_rows) : ranks_(&ranks), latent_rows_(latent_rows) {
  CALIBATT_ASSERT(latent_rows >= ranks.size());
}

int64_t RowShard::scale(int64_t height) const {
  CALIBATT_ASSERT(height % latent_count() == 0);
  return height / latent_count();
}

void RowShard::take_border(const ClipView& clip, int64_t border) const {
  const int64_t inside = clip.height - 2 * border;
  CALIBATT_ASSERT(clip.dense() && border > 0 && inside >= border);
  const auto above = static_cast<size_t>(rank()) - 1, below = static_cast<size_t>(rank()) + 1;
  const auto size = static_cast<size_t>(ranks_->size());
  std::vector<ConstPiece> send(size);
  std::vector<Piece> receive(size);
  if (rank() > 0) {
    send[above] = sent(clip.row_range(border, border));
    receive[above] = received(clip.row_range(0, border));
  }
  if (below < size) {
    send[below] = sent(clip.row_range(inside, border));
    receive[below] = received(clip.row_range(border + inside, border));
  }
  ranks_->all_to_all(send, receive);
}

void RowShard::gather(const ClipView& own, const ClipView& all, bool everywhere) const {
  CALIBATT_ASSERT(own.dense());
  std::vector<ConstPiece> send(static_cast<size_t>(ranks_->size()));
  std::vector<Piece> receive(send.size());
  const int64_t rows = scale(own.height);
  for (int other = 0; other < ranks_->size(); ++other) {
    if (everywhere || other == 0) send[static_cast<size_t>(other)] = sent(own);
    if (!everywhere && rank() != 0) continue;
    CALIBATT_ASSERT(all.dense() && all.height == height_of_all(own.height));
    receive[static_cast<size_t>(other)] = received(all.row_range(begin_of(other) * rows, count_of(other) * rows));
  }
  ranks_->all_to_all(send, receive);
}

}  // namespace calibatt
