#include "backend/rank_subgroup.h"

#include <algorithm>
#include <vector>

#include "base/error.h"

namespace calibatt {

RankSubgroup::RankSubgroup(Communicator& all, int num_groups)
    : all_(all), size_(all.size() / num_groups), first_(all.rank() / size_ * size_) {
  CALIBATT_ASSERT(num_groups >= 1 && all.size() % num_groups == 0);
}

void RankSubgroup::all_to_all(std::span<const ConstPiece> send, std::span<const Piece> receive) {
  CALIBATT_ASSERT(static_cast<int>(send.size()) == size_ && static_cast<int>(receive.size()) == size_);
  std::vector<ConstPiece> to_all(static_cast<size_t>(all_.size()));
  std::vector<Piece> from_all(to_all.size());
  std::ranges::copy(send, to_all.begin() + first_);
  std::ranges::copy(receive, from_all.begin() + first_);
  all_.all_to_all(to_all, from_all);
}

void RankSubgroup::take_heads(std::span<const ConstHeadsView> offered, std::span<const HeadRows> taken, int head_dim) {
  std::vector<HeadRows> of_all(taken.begin(), taken.end());
  for (HeadRows& rows : of_all) rows.rank += first_;
  all_.take_heads(offered, of_all, head_dim);
}

}  // namespace calibatt
