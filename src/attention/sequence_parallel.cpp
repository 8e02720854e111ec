#include "attention/sequence_parallel.h"

#include <algorithm>
#include <mutex>
#include <numeric>
#include <type_traits>
#include <utility>

#include "plan/head_costs.h"
#include "sparsity/token_shard.h"

namespace calibatt {
namespace {

// A run announces the layer that comes next; so the present one, the next, and one to spare.
constexpr size_t kMaxShares = 3;

/// The heads from `head` on.
template <class Void>
BasicHeadsView<Void> from_head(BasicHeadsView<Void> view, int64_t head) {
  using Byte = std::conditional_t<std::is_const_v<Void>, const char, char>;
  view.data = static_cast<Byte*>(view.data) + head * view.head_stride * static_cast<int64_t>(dtype_size(view.dtype));
  return view;
}

/// Calls body(first head, how many, how many of the list are before it) for each run of consecutive heads.
template <class Body>
void for_runs(const std::vector<int>& heads, const Body& body) {
  for (size_t begin = 0; begin < heads.size();) {
    size_t end = begin + 1;
    while (end < heads.size() && heads[end] == heads[end - 1] + 1) ++end;
    body(heads[begin], static_cast<int>(end - begin), static_cast<int64_t>(begin));
    begin = end;
  }
}

/// A buffer [tokens, heads, head_dim] cut into one array for each rank, of its heads of these tokens, one behind
/// another.
struct Packed {
  std::vector<HeadsView> of_rank;
  std::vector<Piece> pieces;

  Packed(Tensor& buffer, const HeadDeal& deal) {
    const auto head_dim = buffer.dim(2);
    char* data = static_cast<char*>(buffer.raw());
    for (const std::vector<int>& heads : deal.heads_of_rank) {
      const int64_t row = static_cast<int64_t>(heads.size()) * head_dim;
      of_rank.push_back({data, buffer.dtype(), buffer.dim(0), row, head_dim});
      pieces.push_back({data, static_cast<size_t>(buffer.dim(0) * row) * dtype_size(buffer.dtype())});
      data += pieces.back().size_bytes;
    }
  }
};

/// Where each rank's tokens are in [all tokens, heads, head_dim].
std::vector<Piece> token_pieces(Tensor& heads, int num_ranks) {
  const size_t row_bytes = static_cast<size_t>(heads.dim(1) * heads.dim(2)) * dtype_size(heads.dtype());
  std::vector<Piece> pieces;
  for (int rank = 0; rank < num_ranks; ++rank) {
    const TokenShard shard = token_shard(heads.dim(0), rank, num_ranks);
    pieces.push_back({static_cast<char*>(heads.raw()) + static_cast<size_t>(shard.begin) * row_bytes,
                      static_cast<size_t>(shard.count) * row_bytes});
  }
  return pieces;
}

std::vector<ConstPiece> to_send(const std::vector<Piece>& pieces) {
  std::vector<ConstPiece> result;
  result.reserve(pieces.size());
  for (const Piece& piece : pieces) result.push_back({piece.data, piece.size_bytes});
  return result;
}
ConstHeadsView as_const(const HeadsView& view) {
  return {view.data, view.dtype, view.num_tokens, view.token_stride, view.head_stride};
}

/// As plan/head_costs.h has dense heads.
std::vector<double> dense_costs(int num_heads, int64_t num_tokens) {
  const auto tokens = static_cast<double>(num_tokens);
  return std::vector<double>(static_cast<size_t>(num_heads), tokens * (tokens + HeadCostModel().keys_per_query));
}

/// [tokens, heads, head_dim] as a view.
HeadsView whole(Tensor& heads) {
  return {heads.raw(), heads.dtype(), heads.dim(0), heads.dim(1) * heads.dim(2), heads.dim(2)};
}
ConstHeadsView whole(const Tensor& heads) {
  return {heads.raw(), heads.dtype(), heads.dim(0), heads.dim(1) * heads.dim(2), heads.dim(2)};
}

}  // namespace

SequenceParallelEngine::Work SequenceParallelEngine::Work::of(const HeadDeal& deal, const std::vector<double>& costs) {
  const std::vector<double> work = work_of_ranks(deal, costs);
  return {*std::ranges::max_element(work),
          std::accumulate(work.begin(), work.end(), 0.0) / static_cast<double>(work.size())};
}

/// A schedule's heads of one rank.
class SequenceParallelEngine::Share : public ScheduleSource {
 public:
  Share(std::shared_ptr<const ScheduleSource> all, int num_ranks, int rank) : all_(std::move(all)), rank_(rank) {
    std::vector<double> costs = all_->head_costs();
    if (costs.empty()) costs.assign(all_->heads().size(), 1.0);
    deal_ = deal_by_cost(costs, num_ranks);
    work_ = Work::of(deal_, costs);
  }

  const ScheduleSource* all() const { return all_.get(); }
  const HeadDeal& deal() const { return deal_; }
  const Work& work() const { return work_; }
  const std::vector<int>& my_heads() const { return deal_.heads_of_rank[static_cast<size_t>(rank_)]; }

  std::span<const HeadSchedule> heads() const override {
    const std::lock_guard lock(mutex_);
    if (heads_.empty()) {
      const std::span<const HeadSchedule> all = all_->heads();
      for (const int head : my_heads()) heads_.push_back(all[static_cast<size_t>(head)]);
    }
    return heads_;
  }

 private:
  std::shared_ptr<const ScheduleSource> all_;
  HeadDeal deal_;
  Work work_;
  int rank_;
  mutable std::mutex mutex_;
  mutable std::vector<HeadSchedule> heads_;  // empty until asked for
};

SequenceParallelEngine::SequenceParallelEngine(Device& device, AttentionEngine& engine, Communicator& ranks,
                                               int64_t num_tokens)
    : device_(device), engine_(engine), ranks_(ranks), num_tokens_(num_tokens) {}

void SequenceParallelEngine::prefetch_schedule(const std::shared_ptr<const ScheduleSource>& schedule,
                                               const ScheduleSizes& sizes) {
  std::shared_ptr<const Share> share = share_of(schedule.get());
  if (share == nullptr) {
    share = std::make_shared<const Share>(schedule, ranks_.size(), ranks_.rank());
    shares_.push_front(share);
    if (shares_.size() > kMaxShares) shares_.pop_back();
  }
  if (!share->my_heads().empty()) engine_.prefetch_schedule(share, sizes);
}

std::shared_ptr<const SequenceParallelEngine::Share> SequenceParallelEngine::share_of(
    const ScheduleSource* schedule) const {
  const auto found =
      std::find_if(shares_.begin(), shares_.end(), [&](const auto& share) { return share->all() == schedule; });
  return found == shares_.end() ? nullptr : *found;
}

void SequenceParallelEngine::check(const AttentionCall& call) const {
  const TokenShard mine = token_shard(num_tokens_, ranks_.rank(), ranks_.size());
  CALIBATT_ASSERT(call.q.num_tokens == mine.count && call.k.num_tokens == mine.count &&
                  call.v.num_tokens == mine.count && call.out.num_tokens == mine.count);
  if (call.block_energy != nullptr || !call.key_bias.empty()) {
    throw Error(ErrorKind::kUsage,
                "attention of several ranks measures no block energy and takes no key bias; use one rank");
  }
}

void SequenceParallelEngine::attention(const AttentionCall& call) {
  check(call);
  const std::shared_ptr<const Share> share = share_of(call.schedule);
  const HeadDeal deal = share != nullptr ? share->deal() : deal_in_order(call.num_heads, ranks_.size());
  const std::vector<int>& mine = deal.heads_of_rank[static_cast<size_t>(ranks_.rank())];
  const auto num_heads = static_cast<int>(mine.size());
  const Work work = share != nullptr ? share->work() : Work::of(deal, dense_costs(call.num_heads, num_tokens_));
  work_.busiest += work.busiest;
  work_.mean += work.mean;
  const Tensor q = to_heads(call.q, deal, call.head_dim), k = to_heads(call.k, deal, call.head_dim),
               v = to_heads(call.v, deal, call.head_dim);
  Tensor out = device_.empty(call.out.dtype, {num_tokens_, num_heads, call.head_dim});
  if (num_heads > 0) {
    std::vector<HeadSchedule> heads;
    AttentionCall part = call;
    part.q = whole(q);
    part.k = whole(k);
    part.v = whole(v);
    part.out = whole(out);
    part.num_heads = num_heads;
    part.schedule = share.get();
    if (share != nullptr) {
      part.heads = share->heads();
    } else if (!call.heads.empty()) {
      for (const int head : mine) heads.push_back(call.heads[static_cast<size_t>(head)]);
      part.heads = heads;
    }
    engine_.attention(part);
  }
  to_tokens(out, deal, call.out, call.head_dim);
}

Tensor SequenceParallelEngine::to_heads(const ConstHeadsView& tokens, const HeadDeal& deal, int head_dim) {
  Tensor packed = device_.empty(tokens.dtype, {tokens.num_tokens, deal.num_heads(), head_dim});
  const Packed to(packed, deal);
  for (size_t rank = 0; rank < to.of_rank.size(); ++rank) {
    for_runs(deal.heads_of_rank[rank], [&](int head, int count, int64_t place) {
      device_.copy_heads(from_head(tokens, head), from_head(to.of_rank[rank], place), count, head_dim);
    });
  }
  const auto mine = static_cast<int64_t>(deal.heads_of_rank[static_cast<size_t>(ranks_.rank())].size());
  Tensor heads = device_.empty(tokens.dtype, {num_tokens_, mine, head_dim});
  ranks_.all_to_all(to_send(to.pieces), token_pieces(heads, ranks_.size()));
  return heads;
}

void SequenceParallelEngine::to_tokens(Tensor& heads, const HeadDeal& deal, const HeadsView& tokens, int head_dim) {
  Tensor packed = device_.empty(tokens.dtype, {tokens.num_tokens, deal.num_heads(), head_dim});
  const Packed from(packed, deal);
  ranks_.all_to_all(to_send(token_pieces(heads, ranks_.size())), from.pieces);
  for (size_t rank = 0; rank < from.of_rank.size(); ++rank) {
    for_runs(deal.heads_of_rank[rank], [&](int head, int count, int64_t place) {
      device_.copy_heads(as_const(from_head(from.of_rank[rank], place)), from_head(tokens, head), count, head_dim);
    });
  }
}

}  // namespace calibatt
