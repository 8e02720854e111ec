#pragma once

#include "backend/cuda/attention/sm90/consumer.cuh"
#include "backend/cuda/attention/sm90/epilogue.cuh"
#include "backend/cuda/attention/sm90_fp8/layout.cuh"
#include "backend/cuda/attention/sm90_fp8/softmax.cuh"
#include "backend/cuda/device/ptx/mbarrier.cuh"
#include "backend/cuda/device/ptx/tma.cuh"
#include "backend/cuda/device/ptx/wgmma_bytes.cuh"

/// The mainloop of a consumer warpgroup, as of sm90 (its comments say why it is shaped so): 64 query rows against the
/// steps that the producer copies; S = Q Kᵀ of bytes, P in e4m3, O += P V in e4m3.
namespace calibatt::cuda::sm90_fp8 {

/// Type: of the output, unless it is float.
template <int kHeadDim, class Type>
class Consumer {
 public:
  using Shared = SharedMemory<kHeadDim>;
  using Output = float[kHeadDim / 2];

  __device__ Consumer(const KernelParams& params, Shared& shared)
      : params_(params),
        shared_(shared),
        group_(sm90::uniform(static_cast<int>(threadIdx.x) / 128 - 1)),
        warp_(sm90::uniform(static_cast<int>(threadIdx.x) / 32 - 4)),
        lane_(static_cast<int>(threadIdx.x) % 32),
        queries_(ptx::shared_address(shared.queries[0]) + group_ * Shared::kGroupBytes),
        keys_(ptx::shared_address(shared.keys[0])),
        values_(ptx::shared_address(shared.values[0])) {}

  __device__ void run() {
    Scores s;
    Output o;
    Weights p;
    uint32_t use = 0;
    if (!await_tile(use, step_)) return;
    issue_scores(s, use & 1, step_);
    ptx::wgmma_wait<0>();
    ptx::pin(s);
    for (;;) {
      const TileHeader& header = shared_.headers[use & 3];
      RowSoftmax softmax;
      steps(s, o, p, softmax, use, header);
      const float factors[2] = {1.0f / sm90::sum_of_row(softmax.sum[0]), 1.0f / sm90::sum_of_row(softmax.sum[1])};
      // The last product, and behind it the next tile's first, which runs under this tile's epilogue.
      wait_full(shared_.values_full, step_);
      if (!await_tile(++use, step_ + 1)) {
        issue_values(o, p, step_);
        ptx::wgmma_wait<0>();
        ptx::pin(o);
        finish_tile(o, factors, header);
        return;
      }
      issue_values(o, p, step_);
      issue_scores(s, use & 1, step_ + 1);
      ptx::wgmma_wait<1>();
      ptx::pin(o);
      finish_tile(o, factors, header);
      ptx::wgmma_wait<0>();
      ptx::pin(s);
      ++step_;
    }
  }

 private:
  /// Waits for tile number `use` and its first keys, which are step `step`. False: there is no further tile.
  __device__ __forceinline__ bool await_tile(uint32_t use, uint32_t step) {
    const uint32_t slot = use & 1;
    ptx::mbarrier_wait(&shared_.queries_full[slot], use >> 1 & 1);
    const TileHeader& header = shared_.headers[use & 3];
    if (sm90::uniform(header.num_steps) == 0) return false;
    if (gathers_queries(header)) gather_queries(slot, header);
    wait_full(shared_.keys_full, step);
    return true;
  }

  /// All steps of a tile from its first scores on, but for the product with the last step's values: its weights are in
  /// p.
  __device__ __forceinline__ void steps(Scores& s, Output& o, Weights& p, RowSoftmax& softmax, uint32_t use,
                                        const TileHeader& header) {
    const int num_key_steps = sm90::uniform(header.num_steps);
    const int num_summary_steps = sm90::uniform(header.num_summary_steps);
    clear_sums(o);
    float row_factor[2];  // of queries that do not exist: 0, so that whatever lies there weighs nothing unusual
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = 16 * warp_ + lane_ / 4 + 8 * r;
      row_factor[r] = row < header.num_rows ? shared_.query_scales[use & 1][row] : 0.0f;
    }
    {
      Logits logits(scaled(s, row_factor, step_));
      release(shared_.keys_empty[step_ % kStages]);
      const int valid[2] = {header.valid[0], header.valid[1]};
      const float last_key_bias = params_.base.args.last_key_bias_log2;
      if (valid[0] < kChunkKeys || valid[1] < kChunkKeys || last_key_bias != 0) {
        sm90::mask_missing(logits.x, valid, last_key_bias);
      }
      softmax.begin(logits, p);
      ptx::pin(p);
    }
    // Two sets of weights in turn: one is the running product's operand while the other is made.
    Weights other;
    const auto next_steps = [&](int first, int count, auto kind) {
      int step = 0;
      for (; step + 1 < count; step += 2) {
        next_step(s, o, p, other, softmax, use, first + step, row_factor, kind(step));
        next_step(s, o, other, p, softmax, use, first + step + 1, row_factor, kind(step + 1));
      }
      if (step == count) return;
      next_step(s, o, p, other, softmax, use, first + step, row_factor, kind(step));
#pragma unroll
      for (int i = 0; i < kStepKeys / 8; ++i) p[i] = other[i];
      ptx::pin(p);
    };
    next_steps(1, num_key_steps - 1, [](int) { return Keys{}; });
    next_steps(num_key_steps, num_summary_steps, [&](int step) { return Summaries{step, &header}; });
    ptx::mbarrier_arrive(&shared_.queries_empty[use & 1]);  // by all lanes, who have read the header
  }

  /// What a step's scores are of.
  struct Keys {};
  struct Summaries {
    int step;
    const TileHeader* header;
  };

  /// Scores of a step, and the product with the values of the step before, whose weights are in p; the softmax of the
  /// scores, which makes p_next, runs under that product.
  template <class Kind>
  __device__ __forceinline__ void next_step(Scores& s, Output& o, Weights& p, Weights& p_next, RowSoftmax& softmax,
                                            uint32_t use, int step, const float (&row_factor)[2], Kind kind) {
    wait_full(shared_.keys_full, step_ + 1);
    issue_scores(s, use & 1, step_ + 1);
    wait_full(shared_.values_full, step_);
    issue_values(o, p, step_);
    const ScaledScores scores = scaled(s, row_factor, step_ + 1);
    ptx::wgmma_wait<1>();
    ptx::pin(s);
    release(shared_.keys_empty[(step_ + 1) % kStages]);
    const bool moved = weigh(scores, softmax, p_next, kind);
    ptx::pin(p_next);
    ptx::wgmma_wait<0>();
    ptx::pin(o);
    ptx::pin(p);
    release(shared_.values_empty[step_ % kStages]);
    // The groups at different steps: products of the other run meanwhile.
    const bool is_due = (step + kStepsOfSum / 2 * group_) % kStepsOfSum == 0;
    if (moved || is_due) add_to_sums(o, moved ? softmax.factor[0] : 1, moved ? softmax.factor[1] : 1);
    ++step_;
  }

  __device__ __forceinline__ bool weigh(const ScaledScores& scores, RowSoftmax& softmax, Weights& p, Keys) {
    return softmax.update(scores, p);
  }
  __device__ __forceinline__ bool weigh(const ScaledScores& scores, RowSoftmax& softmax, Weights& p,
                                        const Summaries& summaries) {
    const AttentionArgs& args = params_.base.args;
    Logits logits(scores);
    sm90::bias_summaries(logits.x, summaries.step * kStepKeys, args.num_summaries,
                         args.schedule.kept_bits + summaries.header->kept_bits, params_.summary_bias,
                         params_.last_summary_bias);
    return softmax.update(logits, p);
  }

  /// A step's scores with their scales, which are there as long as the step's keys are; the scores may still be under
  /// way. The lane that will release them reads them for its warp.
  __device__ __forceinline__ ScaledScores scaled(const Scores& s, const float (&row_factor)[2], uint32_t step) const {
    const float4* scales = shared_.key_scales[step % kStages];
    float first = 0, second = 0;
    if (lane_ == 0) first = scales[0].x, second = scales[1].x;
    first = __shfl_sync(0xffffffffu, first, 0);
    second = __shfl_sync(0xffffffffu, second, 0);
    return {s, {{row_factor[0] * first, row_factor[0] * second}, {row_factor[1] * first, row_factor[1] * second}}};
  }

  // ---- sums --------------------------------------------------------------------------------------------------------
  __device__ __forceinline__ float4* sums() {
    return &shared_.sums[warp_].pieces[0][lane_];
  }

  __device__ __forceinline__ void clear_sums(Output& o) {
    __syncwarp();  // the last tile's rows, which lie there, have been read
#pragma unroll
    for (int i = 0; i < Shared::kSumPieces; ++i) sums()[32 * i] = make_float4(0, 0, 0, 0);
#pragma unroll
    for (float& x : o) x = 0;
  }

  /// The tensor core's sums so far go to the float sums, all of which are multiplied (rows r = 0 and 1).
  __device__ __forceinline__ void add_to_sums(Output& o, float first, float second) {
#pragma unroll
    for (int i = 0; i < Shared::kSumPieces; ++i) {
      float4 x = sums()[32 * i];
      x.x = (x.x + o[4 * i]) * first;
      x.y = (x.y + o[4 * i + 1]) * first;
      x.z = (x.z + o[4 * i + 2]) * second;
      x.w = (x.w + o[4 * i + 3]) * second;
      sums()[32 * i] = x;
#pragma unroll
      for (int j = 0; j < 4; ++j) o[4 * i + j] = 0;
    }
  }

  __device__ __forceinline__ void finish_tile(Output& o, const float (&factors)[2], const TileHeader& header) {
    // Out of the accumulators at once: the compiler does not follow them through the branches below.
    float result[kHeadDim / 2];
#pragma unroll
    for (int i = 0; i < Shared::kSumPieces; ++i) {
      const float4 x = sums()[32 * i];
      result[4 * i] = (o[4 * i] + x.x) * factors[0];
      result[4 * i + 1] = (o[4 * i + 1] + x.y) * factors[0];
      result[4 * i + 2] = (o[4 * i + 2] + x.z) * factors[1];
      result[4 * i + 3] = (o[4 * i + 3] + x.w) * factors[1];
    }
    ptx::pin(result);
    release(shared_.values_empty[step_ % kStages]);
    int lane = lane_;
    asm volatile("" : "+r"(lane));  // or the epilogue's addresses, made once for all tiles, would spill
    const int64_t channels =
        (int64_t{header.batch} * params_.base.args.num_heads + header.head) * kHeadDim + 2 * (lane % 4);
#pragma unroll
    for (int i = 0; i < kHeadDim / 8; ++i) {
      const float2 scale = __ldg(reinterpret_cast<const float2*>(params_.inputs.v_scale + channels + 8 * i));
      const float2 mean = __ldg(reinterpret_cast<const float2*>(params_.inputs.v_mean + channels + 8 * i));
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        result[4 * i + 2 * r] = fmaf(result[4 * i + 2 * r], scale.x, mean.x);
        result[4 * i + 2 * r + 1] = fmaf(result[4 * i + 2 * r + 1], scale.y, mean.y);
      }
    }
    sm90::write_output<kHeadDim, Type>(params_.base.args, header, shared_.sums[warp_].out, result, 16 * warp_, lane);
  }

  // ---- products ----------------------------------------------------------------------------------------------------
  /// s = Q Kᵀ for this group's rows, asynchronously.
  __device__ __forceinline__ void issue_scores(Scores& s, uint32_t slot, uint32_t step) {
    const auto queries = queries_.moved(slot * Shared::kQueryBytes);
    const auto keys = keys_.moved(step % kStages * Shared::kStepBytes);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kHeadDim / 32; ++k) ptx::wgmma_s8(s, queries.at(32 * k), keys.at(32 * k), k > 0);
    ptx::wgmma_commit();
  }

  /// o += P V, asynchronously. p stays untouched until the product is waited for.
  __device__ __forceinline__ void issue_values(Output& o, const Weights& p, uint32_t step) {
    const auto values = values_.moved(step % kStages * Shared::kStepBytes);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kStepKeys / 32; ++k) {
      ptx::wgmma_e4m3(o, p + 4 * k, values.at(k / 2 * Shared::kChunkBytes + k % 2 * 32), true);
    }
    ptx::wgmma_commit();
  }

  // ---- barriers ----------------------------------------------------------------------------------------------------
  __device__ __forceinline__ void wait_full(uint64_t (&barriers)[kStages], uint32_t step) {
    ptx::mbarrier_wait(&barriers[step % kStages], step / kStages & 1);
  }
  /// The products of a warp, and its first lane, have read what the barrier guards: that lane says so. (Arrivals of all
  /// lanes take 2.5 % of the time.)
  __device__ __forceinline__ void release(uint64_t& barrier) {
    __syncwarp();
    if (lane_ == 0) ptx::mbarrier_arrive(&barrier);
  }

  // ---- queries that lie scattered ----------------------------------------------------------------------------------
  /// Each group copies its own 64 rows, and their scales.
  __device__ __forceinline__ void gather_queries(uint32_t slot, const TileHeader& header) {
    constexpr int kPieces = kHeadDim / 16;  // of a row
    const AttentionArgs& args = params_.base.args;
    const int64_t first = (int64_t{header.batch} * args.num_heads + header.head) * params_.inputs.query_rows;
    const bool anchors = header.flags & Tile::kAnchors;
    for (int i = static_cast<int>(threadIdx.x) % 128; i < kGroupRows * kPieces; i += 128) {
      const int row = group_ * kGroupRows + i / kPieces, piece = i % kPieces;
      uint4 data = {};
      if (row < header.num_rows) {
        const int token =
            anchors ? __ldg(args.schedule.anchor_tokens + header.first_row + row) : header.first_row + row;
        // A chunk's rows are swizzled in groups of 8, so a row's place among all rows of the head serves as well.
        data = __ldg(reinterpret_cast<const uint4*>(params_.inputs.q + first * kHeadDim +
                                                    ptx::swizzled<kHeadDim>(token, piece)));
        if (piece == 0) shared_.query_scales[slot][row] = __ldg(params_.inputs.q_scale + first + token);
      }
      *reinterpret_cast<uint4*>(shared_.queries[slot] + ptx::swizzled<kHeadDim>(row, piece)) = data;
    }
    ptx::fence_async_proxy();
    ptx::named_barrier_sync(sm90::kGather + group_, 128);
  }

  const KernelParams& params_;
  Shared& shared_;
  const int group_, warp_, lane_;
  const ptx::RowDescriptor<Shared::kRowBytes> queries_,
      keys_;  ///< this group's rows of the first slot; the first stage
  const ptx::RowDescriptor<kChunkKeys> values_;
  uint32_t step_ = 0;  ///< steps whose values were consumed so far: stage and phase of the next
};

}  // namespace calibatt::cuda::sm90_fp8
