#pragma once

#include <array>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "backend/attention_engine.h"
#include "backend/communicator.h"
#include "backend/device.h"
#include "base/tensor.h"
#include "sparsity/head_deal.h"
#include "sparsity/token_shard.h"

namespace calibatt {

/// Self-attention of ranks that hold a shard of the tokens each (sparsity/token_shard.h), as DeepSpeed-Ulysses does it
/// (Jacobs et al. 2023, arXiv 2309.14509): q, k and v of all tokens go to the rank that computes their head, its
/// output goes back to the tokens' ranks. So one kernel sees a head's whole sequence, and a plan's masks, summaries and
/// anchors need nothing else. Who computes which head is dealt by what heads cost (ScheduleSource::head_costs), anew in
/// each call; all ranks come to the same deal.
///
/// Text of joint attention stands behind the shared tokens, and every rank has all of it: q, k and v of its own heads
/// are there already, and every rank receives the outputs of all heads.
///
/// It stands between a RunAttention and the backend's own engine. q, k, v and out of a call are this rank's tokens and
/// behind them the text, its schedules are of all heads and tokens.
class SequenceParallelEngine : public AttentionEngine {
 public:
  /// num_tokens: that all ranks share, without text. All three references must outlive the object.
  SequenceParallelEngine(Device& device, AttentionEngine& engine, Communicator& ranks, int64_t num_tokens);

  /// All ranks must make the same calls, with as many tokens of text. Throws as the engine does; Error(kUsage) for
  /// calls with block_energy or key_bias; Error(kDevice) when another rank fails.
  std::string_view attention(const AttentionCall& call) override;
  std::string attention_kernel(DType dtype, int head_dim, bool eight_bits = false) const override {
    return engine_.attention_kernel(dtype, head_dim, eight_bits);
  }
  /// The backend hears of this rank's heads alone.
  void prefetch_schedule(const std::shared_ptr<const ScheduleSource>& schedule, const ScheduleSizes& sizes) override;
  Communicator* ranks() const override { return &ranks_; }
  MaskStreaming mask_streaming() const override { return engine_.mask_streaming(); }
  /// Work of the busiest rank over the mean, of all calls so far, by what heads cost (plan/head_costs.h); 1: balanced.
  double imbalance() const { return work_.mean > 0 ? work_.busiest / work_.mean : 1; }
  /// What a call of so many tokens, text included, takes of a rank's memory.
  static uint64_t memory_bytes(int num_heads, int head_dim, int64_t num_tokens, int num_ranks, DType dtype);

 private:
  class Share;
  /// Of ranks, in calls one after another.
  struct Work {
    double busiest = 0, mean = 0;
    static Work of(const HeadDeal& deal, const std::vector<double>& costs);
  };

  std::shared_ptr<const Share> share_of(const ScheduleSource* schedule) const;
  TokenShard shard() const { return token_shard(num_tokens_, ranks_.rank(), ranks_.size()); }
  void check(const AttentionCall& call) const;
  int64_t num_text_tokens(const AttentionCall& call) const { return call.q.num_tokens - shard().count; }
  /// q, k and v: every rank's tokens of this rank's heads, [all tokens and text, heads of the rank, head_dim].
  std::array<Tensor, 3> take_heads(const AttentionCall& call, const std::vector<int>& mine);
  /// This rank's tokens and the text of every rank's output_, to call.out.
  void take_outputs(const AttentionCall& call, const HeadDeal& deal);

  Device& device_;
  AttentionEngine& engine_;
  Communicator& ranks_;
  int64_t num_tokens_;
  Work work_;
  Tensor output_;  // of this rank's heads, all tokens and text; kept until the others are known to have read it
  std::list<std::shared_ptr<const Share>> shares_;  // of the schedules that were announced last, the latest first
};

}  // namespace calibatt
