#pragma once

#include "backend/cuda/attention/sm90/energy.cuh"
#include "backend/cuda/attention/sm90/epilogue.cuh"
#include "backend/cuda/attention/sm90/layout.cuh"
#include "backend/cuda/attention/sm90/softmax.cuh"
#include "backend/cuda/device/ptx/mbarrier.cuh"
#include "backend/cuda/device/ptx/tma.cuh"
#include "backend/cuda/device/ptx/wgmma.cuh"

/// The mainloop of a consumer warpgroup: 64 query rows against the steps that the producer copies.
namespace calibatt::cuda::sm90 {

/// The same value, known to the compiler to be alike in the warp: it then lives in uniform registers.
__device__ __forceinline__ int uniform(int value) {
  return __shfl_sync(0xffffffffu, value, 0);
}

template <int kHeadDim, class Type, EnergyColumns kEnergyColumns>
class Consumer {
 public:
  static_assert(sizeof(Type) == kElementBytes);
  using Shared = SharedMemory<kHeadDim>;
  using Output = float[kHeadDim / 2];

  __device__ Consumer(const KernelParams& params, Shared& shared)
      : params_(params),
        shared_(shared),
        group_(uniform(static_cast<int>(threadIdx.x) / 128 - 1)),
        warp_(uniform(static_cast<int>(threadIdx.x) / 32 - 4)),
        lane_(static_cast<int>(threadIdx.x) % 32),
        energy_(params, warp_, lane_),
        queries_(ptx::shared_address(shared.queries[0]) + group_ * kGroupRows * kRowBytes),
        keys_(ptx::shared_address(shared.keys[0])),
        values_(ptx::shared_address(shared.values[0])) {}

  __device__ void run() {
    if (group_ == 1) pass_turn();  // the first turn is the first group's
    Scores s;
    Output o;
    Weights p;
    uint32_t use = 0;
    if (!await_tile(use, step_)) return;
    take_turn();
    issue_scores(s, use & 1, step_);
    pass_turn();
    ptx::wgmma_wait<0>();
    ptx::pin(s);
    for (;;) {
      const TileHeader& header = shared_.headers[use & 3];
      RowSoftmax<Type> softmax;
      steps(s, o, p, softmax, use, header);
      const float sums[2] = {sum_of_row(softmax.sum[0]), sum_of_row(softmax.sum[1])};
      const float factors[2] = {1.0f / sums[0], 1.0f / sums[1]};
      const float lse[2] = {softmax.reference[0] + ptx::log2_unit(sums[0]),
                            softmax.reference[1] + ptx::log2_unit(sums[1])};
      // The last product, and behind it the next tile's first, which runs under this tile's epilogue. (No product may
      // be under way where paths part or meet: the compiler then serialises all of them.)
      wait_full(shared_.values_full, step_);
      if (!await_tile(++use, step_ + 1)) {
        issue_values(o, p, step_);
        ptx::wgmma_wait<0>();
        ptx::pin(o);
        finish_tile(o, factors, lse, header, use - 1);
        return;
      }
      take_turn();
      issue_values(o, p, step_);
      issue_scores(s, use & 1, step_ + 1);
      pass_turn();
      ptx::wgmma_wait<1>();
      ptx::pin(o);
      finish_tile(o, factors, lse, header, use - 1);
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
    if (uniform(header.num_steps) == 0) return false;
    if (header.flags & Tile::kAnchors) gather_queries(slot, header);
    wait_full(shared_.keys_full, step);
    return true;
  }

  /// All steps of a tile from its first scores on, but for the product with the last step's values: its weights are in
  /// p.
  __device__ __forceinline__ void steps(Scores& s, Output& o, Weights& p, RowSoftmax<Type>& softmax, uint32_t use,
                                        const TileHeader& header) {
    const int num_key_steps = uniform(header.num_steps);
    const int num_steps = num_key_steps + uniform(header.num_summary_steps);
#pragma unroll
    for (float& x : o) x = 0;

    release(shared_.keys_empty[step_ % kStages]);
    const int valid[2] = {header.valid[0], header.valid[1]};
    if (valid[0] < kChunkKeys || valid[1] < kChunkKeys || params_.last_key_bias != 0) {
      mask_missing(s, valid, params_.last_key_bias);
    }
    softmax.begin(s, params_.args.scale_log2, p);
    energy_.begin();
    ptx::pin(p);

    // Two sets of weights in turn: one is the running product's operand while the other is made.
    Weights other;
    int step = 1;
    for (; step + 1 < num_steps; step += 2) {
      next_step(s, o, p, other, softmax, use, header, step, num_key_steps);
      next_step(s, o, other, p, softmax, use, header, step + 1, num_key_steps);
    }
    if (step < num_steps) {
      next_step(s, o, p, other, softmax, use, header, step, num_key_steps);
#pragma unroll
      for (int i = 0; i < kStepKeys / 4; ++i) p[i] = other[i];
      ptx::pin(p);
    }
    energy_.note(softmax.chunk_sum);
    release(shared_.queries_empty[use & 1]);
  }

  /// Scores of a step, and the product with the values of the step before, whose weights are in p; the softmax of the
  /// scores, which makes p_next, runs under that product.
  __device__ __forceinline__ void next_step(Scores& s, Output& o, Weights& p, Weights& p_next,
                                            RowSoftmax<Type>& softmax, uint32_t use, const TileHeader& header, int step,
                                            int num_key_steps) {
    wait_full(shared_.keys_full, step_ + 1);
    take_turn();
    issue_scores(s, use & 1, step_ + 1);
    wait_full(shared_.values_full, step_);
    issue_values(o, p, step_);
    pass_turn();
    energy_.note(softmax.chunk_sum);  // the last step's: there is nothing else to do until the scores come
    ptx::wgmma_wait<1>();
    ptx::pin(s);
    release(shared_.keys_empty[(step_ + 1) % kStages]);
    if (step >= num_key_steps) add_bias(s, step - num_key_steps, header);
    const bool rescale = softmax.update(s, params_.args.scale_log2, p_next);
    ptx::pin(p_next);
    ptx::wgmma_wait<0>();
    ptx::pin(o);
    ptx::pin(p);
    release(shared_.values_empty[step_ % kStages]);
    if (rescale) {
#pragma unroll
      for (int i = 0; i < kHeadDim / 2; ++i) o[i] *= softmax.factor[i / 2 % 2];
      energy_.rescale(softmax.factor, step);
    }
    ++step_;
  }

  __device__ __forceinline__ void finish_tile(Output& o, const float (&factors)[2], const float (&lse)[2],
                                              const TileHeader& header, uint32_t use) {
    // Out of the accumulators at once: the compiler does not follow them through the branches below.
    float result[kHeadDim / 2];
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) result[i] = o[i] * factors[i / 2 % 2];
    ptx::pin(result);
    release(shared_.values_empty[step_ % kStages]);
    int lane = lane_;
    asm volatile("" : "+r"(lane));  // or the epilogue's addresses, made once for all tiles, would spill
    write_output<kHeadDim, Type>(params_.args, header, shared_.out[warp_], result, 16 * warp_, lane);
    if (params_.args.row_lse != nullptr) write_lse(params_.args, header, lse, 16 * warp_, lane);
    energy_.reduce(header, factors, use);
  }

  // ---- products ----------------------------------------------------------------------------------------------------
  /// s = Q Kᵀ for this group's rows, asynchronously.
  __device__ __forceinline__ void issue_scores(Scores& s, uint32_t slot, uint32_t step) {
    const auto queries = queries_.moved(slot * Shared::kQueryBytes);
    const auto keys = keys_.moved(step % kStages * Shared::kStepBytes);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kHeadDim / 16; ++k) {
      const uint32_t panel = k / 4, inside = k % 4 * 32;
      ptx::wgmma(Type{}, s, queries.at(panel * kTileRows * kRowBytes + inside),
                 keys.at(panel * kStepKeys * kRowBytes + inside), k > 0);
    }
    ptx::wgmma_commit();
  }

  /// o += P V, asynchronously. p stays untouched until the product is waited for.
  __device__ __forceinline__ void issue_values(Output& o, const Weights& p, uint32_t step) {
    const auto values = values_.moved(step % kStages * Shared::kStepBytes);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kStepKeys / 16; ++k) {
      ptx::wgmma(Type{}, o, p + 4 * k, values.at(16 * k * kRowBytes), true);
    }
    ptx::wgmma_commit();
  }

  // ---- barriers ----------------------------------------------------------------------------------------------------
  __device__ __forceinline__ void wait_full(uint64_t (&barriers)[kStages], uint32_t step) {
    ptx::mbarrier_wait(&barriers[step % kStages], step / kStages & 1);
  }
  /// A warp has read what the barrier guards.
  __device__ __forceinline__ void release(uint64_t& barrier) {
    if (lane_ == 0) ptx::mbarrier_arrive(&barrier);
  }
  /// The groups take turns with the tensor cores, so that one's softmax runs under the other's products. (Measured:
  /// without turns dense is 15–18 % slower.)
  __device__ __forceinline__ void take_turn() {
    ptx::named_barrier_sync(kTurn + group_, 128 * kGroups);
  }
  __device__ __forceinline__ void pass_turn() {
    ptx::named_barrier_arrive(kTurn + 1 - group_, 128 * kGroups);
  }

  // ---- the rest ----------------------------------------------------------------------------------------------------
  __device__ __forceinline__ void add_bias(Scores& s, int summary_step, const TileHeader& header) {
    const AttentionArgs& args = params_.args;
    bias_summaries(s, summary_step * kStepKeys, args.num_summaries, args.schedule.kept_bits + header.kept_bits,
                   params_.summary_bias, params_.last_summary_bias);
  }

  /// Anchors: the tile's query rows lie scattered. Each group copies its own 64, in the copy engine's swizzle.
  __device__ __forceinline__ void gather_queries(uint32_t slot, const TileHeader& header) {
    constexpr int kPieces = kHeadDim * kElementBytes / 16;  // of a row
    const DeviceHeads& q = params_.args.q;
    const char* base = static_cast<const char*>(q.data) +
                       kElementBytes * (header.batch * q.batch_stride + header.head * q.head_stride);
    const int* tokens = params_.args.schedule.anchor_tokens + header.first_row;
    const int thread = static_cast<int>(threadIdx.x) % 128;
    for (int i = thread; i < kGroupRows * kPieces; i += 128) {
      const int row = group_ * kGroupRows + i / kPieces, piece = i % kPieces;
      uint4 data = {};
      if (row < header.num_rows) {
        data =
            __ldg(reinterpret_cast<const uint4*>(base + kElementBytes * __ldg(tokens + row) * q.token_stride) + piece);
      }
      uint8_t* panel = shared_.queries[slot][piece / 8];
      *reinterpret_cast<uint4*>(panel + row * kRowBytes + ((piece % 8) ^ (row % 8)) * 16) = data;
    }
    ptx::fence_async_proxy();
    ptx::named_barrier_sync(kGather + group_, 128);
  }

  const KernelParams& params_;
  Shared& shared_;
  const int group_, warp_, lane_;
  const ptx::MatrixDescriptor<> queries_, keys_;  ///< this group's rows of the first slot; the first stage
  const ptx::MatrixDescriptor<kStepKeys * kRowBytes> values_;
  EnergyNotes<kEnergyColumns> energy_;
  uint32_t step_ = 0;  ///< steps whose values were consumed so far: stage and phase of the next
};

}  // namespace calibatt::cuda::sm90
