#include "attention/sequence_parallel.h"

#include <algorithm>
#include <mutex>
#include <numeric>
#include <utility>

#include "plan/head_costs.h"

namespace calibatt {
namespace {

// A run announces the layer that comes next; so the present one, the next, and one to spare.
constexpr size_t kMaxShares = 3;

/// Each rank, the caller's own last: so that not all of them begin with the same one.
std::vector<int> ranks_after(const Communicator& ranks) {
  std::vector<int> result;
  for (int i = 1; i <= ranks.size(); ++i) result.push_back((ranks.rank() + i) % ranks.size());
  return result;
}

/// Some tokens of a view.
HeadsView tokens_of(HeadsView view, const TokenShard& tokens) {
  view.data =
      static_cast<char*>(view.data) + tokens.begin * view.token_stride * static_cast<int64_t>(dtype_size(view.dtype));
  view.num_tokens = tokens.count;
  return view;
}
/// [tokens, heads, head_dim]
HeadsView whole(Tensor& heads) {
  return {heads.raw(), heads.dtype(), heads.dim(0), heads.dim(1) * heads.dim(2), heads.dim(2)};
}
ConstHeadsView whole(const Tensor& heads) {
  return {heads.raw(), heads.dtype(), heads.dim(0), heads.dim(1) * heads.dim(2), heads.dim(2)};
}

/// As plan/head_costs.h has dense heads.
std::vector<double> dense_costs(int num_heads, int64_t num_tokens) {
  const auto tokens = static_cast<double>(num_tokens);
  return std::vector<double>(static_cast<size_t>(num_heads), tokens * (tokens + HeadCostModel().keys_per_query));
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

uint64_t SequenceParallelEngine::memory_bytes(int num_heads, int head_dim, int64_t num_tokens, int num_ranks,
                                              DType dtype) {
  if (num_ranks == 1) return 0;
  const int64_t of_heads = num_tokens * most_heads_of_a_rank(num_heads, num_ranks) * head_dim;
  return 4 * static_cast<uint64_t>(of_heads) * dtype_size(dtype);  // q, k, v and the output
}

void SequenceParallelEngine::check(const AttentionCall& call) const {
  CALIBATT_ASSERT(num_text_tokens(call) >= 0 && call.k.num_tokens == call.q.num_tokens &&
                  call.v.num_tokens == call.q.num_tokens && call.out.num_tokens == call.q.num_tokens);
  CALIBATT_ASSERT(call.norm == nullptr);
  if (call.block_energy != nullptr || !call.key_bias.empty()) {
    throw Error(ErrorKind::kUsage,
                "attention of several ranks measures no block energy and takes no key bias; use one rank");
  }
}

std::string_view SequenceParallelEngine::attention(const AttentionCall& call) {
  check(call);
  const std::shared_ptr<const Share> share = share_of(call.schedule);
  const HeadDeal deal = share != nullptr ? share->deal() : deal_in_order(call.num_heads, ranks_.size());
  const std::vector<int>& mine = deal.heads_of_rank[static_cast<size_t>(ranks_.rank())];
  const auto num_heads = static_cast<int>(mine.size());
  const int64_t all_tokens = num_tokens_ + num_text_tokens(call);
  const Work work = share != nullptr ? share->work() : Work::of(deal, dense_costs(call.num_heads, all_tokens));
  work_.busiest += work.busiest;
  work_.mean += work.mean;
  const std::array<Tensor, 3> heads_of_all = take_heads(call, mine);
  output_ = {};  // the others have read the last call's
  output_ = device_.empty(call.out.dtype, {all_tokens, num_heads, call.head_dim});
  std::string_view kernel;
  if (num_heads > 0) {
    std::vector<HeadSchedule> heads;
    AttentionCall part = call;
    part.q = whole(heads_of_all[0]);
    part.k = whole(heads_of_all[1]);
    part.v = whole(heads_of_all[2]);
    part.out = whole(output_);
    part.num_heads = num_heads;
    part.schedule = share.get();
    if (share != nullptr) {
      part.heads = share->heads();
    } else if (!call.heads.empty()) {
      for (const int head : mine) heads.push_back(call.heads[static_cast<size_t>(head)]);
      part.heads = heads;
    }
    kernel = engine_.attention(part);
  }
  take_outputs(call, deal);
  return kernel;
}

std::array<Tensor, 3> SequenceParallelEngine::take_heads(const AttentionCall& call, const std::vector<int>& mine) {
  std::vector<HeadMove> moves;
  moves.reserve(mine.size());
  for (const int head : mine) moves.push_back({head, static_cast<int>(moves.size())});
  const int64_t text = num_text_tokens(call);
  std::array<Tensor, 3> heads;
  for (Tensor& each : heads) {
    each = device_.empty(call.q.dtype, {num_tokens_ + text, static_cast<int64_t>(mine.size()), call.head_dim});
  }
  std::vector<HeadRows> taken;
  const auto take = [&](int from, int64_t first_token, const TokenShard& to) {
    for (int view = 0; view < 3; ++view) {
      taken.push_back({from, view, first_token, tokens_of(whole(heads[static_cast<size_t>(view)]), to), moves});
    }
  };
  for (const int other : ranks_after(ranks_)) take(other, 0, token_shard(num_tokens_, other, ranks_.size()));
  if (text > 0) take(ranks_.rank(), shard().count, {num_tokens_, text});
  ranks_.take_heads(std::array{call.q, call.k, call.v}, taken, call.head_dim);
  return heads;
}

void SequenceParallelEngine::take_outputs(const AttentionCall& call, const HeadDeal& deal) {
  const TokenShard mine = shard();
  const int64_t text = num_text_tokens(call);
  std::vector<std::vector<HeadMove>> moves(deal.heads_of_rank.size());
  std::vector<HeadRows> taken;
  for (const int other : ranks_after(ranks_)) {
    std::vector<HeadMove>& of_rank = moves[static_cast<size_t>(other)];
    for (const int head : deal.heads_of_rank[static_cast<size_t>(other)]) {
      of_rank.push_back({static_cast<int>(of_rank.size()), head});
    }
    taken.push_back({other, 0, mine.begin, tokens_of(call.out, {0, mine.count}), of_rank});
    if (text > 0) taken.push_back({other, 0, num_tokens_, tokens_of(call.out, {mine.count, text}), of_rank});
  }
  ranks_.take_heads(std::array{whole(std::as_const(output_))}, taken, call.head_dim);
}

}  // namespace calibatt
