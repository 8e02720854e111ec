#pragma once

#include "backend/cuda/attention/sm90/consumer.cuh"
#include "backend/cuda/attention/sm90/epilogue.cuh"
#include "backend/cuda/attention/sm90_fp8/wide/layout.cuh"
#include "backend/cuda/attention/sm90_fp8/wide/softmax.cuh"
#include "backend/cuda/device/ptx/ldmatrix.cuh"
#include "backend/cuda/device/ptx/mbarrier.cuh"
#include "backend/cuda/device/ptx/tma.cuh"
#include "backend/cuda/device/ptx/wgmma_bytes.cuh"

/// The mainloop of a consumer warpgroup: 64 query rows, in registers, against the chunks that it sees. The product with
/// a chunk's values runs under the next chunk's scores; while a group waits for both, the other two weigh theirs.
namespace calibatt::cuda::sm90_fp8::wide {

/// kPlanned: there are chunks that not all groups see. Type: of the output, unless it is float.
template <bool kPlanned, class Type>
class Consumer {
 public:
  using Output = float[kOutputs];
  using Queries = uint32_t[kHeadDim / 32][4];

  __device__ Consumer(const KernelParams& params, SharedMemory& shared)
      : params_(params),
        shared_(shared),
        group_(sm90::uniform(static_cast<int>(threadIdx.x) / 128 - 1)),
        warp_(sm90::uniform(static_cast<int>(threadIdx.x) / 32 - 4)),
        keys_(ptx::shared_address(shared.keys[0])),
        values_(ptx::shared_address(shared.values[0])) {
    // Values that the compiler cannot make again: it would, at each product.
    keys_.low = sm90::uniform(keys_.low);
    values_.low = sm90::uniform(values_.low);
  }

  __device__ void run() {
    for (uint32_t use = 0;; ++use) {
      ptx::mbarrier_wait(&shared_.queries_full, use & 1);
      const Header& header = shared_.headers[use & 1];
      if (sm90::uniform(header.exists) == 0) return;
      Queries q;
      float row_factor[2];
      take_queries(header, q, row_factor);
      compute_tile(header, q, row_factor);
    }
  }

 private:
  /// Read anew where it is needed: what is made of it would cost the main loop its registers.
  __device__ __forceinline__ static int lane() {
    int lane;
    asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
    return lane;
  }

  // ---- queries -----------------------------------------------------------------------------------------------------
  __device__ __forceinline__ void take_queries(const Header& header, Queries& q, float (&row_factor)[2]) {
    const GroupRows& rows = header.groups[group_];
    const int lane = this->lane(), first = 16 * (warp_ % 4);
    if (gathers_queries(rows)) {
      gather_queries(header, rows, q, row_factor);
    } else {
      const uint32_t queries = ptx::shared_address(shared_.queries[group_]) + first * kHeadDim;
#pragma unroll
      for (int k = 0; k < kHeadDim / 32; ++k) {
        ptx::ldmatrix_x4(q[k], queries + ptx::swizzled<kHeadDim>(lane % 16, 2 * k + lane / 16));
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) row_factor[r] = shared_.query_scales[group_][first + lane / 4 + 8 * r];
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {  // of queries that do not exist: 0, whatever lies there
      if (first + lane / 4 + 8 * r >= rows.num_rows) row_factor[r] = 0;
    }
    release(shared_.queries_empty);
  }

  /// Rows that lie scattered, as ldmatrix would give them.
  __device__ __forceinline__ void gather_queries(const Header& header, const GroupRows& rows, Queries& q,
                                                 float (&row_factor)[2]) {
    const AttentionArgs& args = params_.base.args;
    const int64_t first = (int64_t{header.batch} * args.num_heads + header.head) * params_.inputs.query_rows;
    const int lane = this->lane();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = min(16 * (warp_ % 4) + lane / 4 + 8 * r, max(rows.num_rows - 1, 0));
      const int token = rows.flags & Tile::kAnchors ? __ldg(args.schedule.anchor_tokens + rows.first_row + row)
                                                    : rows.first_row + row;
      // A chunk's rows are swizzled in groups of 8, so a row's place among all rows of the head serves as well.
#pragma unroll
      for (int piece = 0; piece < kHeadDim / 16; ++piece) {
        const uint8_t* from = params_.inputs.q + first * kHeadDim + ptx::swizzled<kHeadDim>(token, piece);
        q[piece / 2][piece % 2 * 2 + r] = __ldg(reinterpret_cast<const uint32_t*>(from) + lane % 4);
      }
      row_factor[r] = __ldg(params_.inputs.q_scale + first + token);
    }
  }

  // ---- a tile ------------------------------------------------------------------------------------------------------
  __device__ __forceinline__ void compute_tile(const Header& header, const Queries& q, const float (&row_factor)[2]) {
    Scores s;
    Output o;
    Weights p = {};  // of no chunk: the first product with values adds nothing
    RowSoftmax softmax;
    softmax.begin();
    clear_sums(o);
    // Not all groups at once: products of the others run meanwhile. Planned, they are apart, and it cost .6 %.
    int to_sum = kChunksOfSum - (kPlanned ? 0 : group_ * (kChunksOfSum / kGroups));
    left_ = kPlanned ? 1 : params_.base.num_chunks;
    is_owed_ = false;
    bool found = find(0);
    int before = stage_;  ///< the stage of the chunk whose weights are in p; at first one whose values are numbers
#pragma unroll 1
    while (found) found = step(header, s, q, o, p, softmax, row_factor, before, to_sum);
    if (!kPlanned || is_owed_) {
      issue_values(o, p, before);
      ptx::wgmma_wait<0>();
      ptx::pin(o);
      release(shared_.empty[before]);
    }
    finish_tile(o, header);
  }

  /// The product with the values of the chunk before, whose weights are in p, and the scores of the one found; their
  /// softmax makes the next p. Returns whether there is a next chunk. What lies between the softmax and the next
  /// products is on the way of every chunk, so that what is known before is asked before, and one vote tells all.
  __device__ __forceinline__ bool step(const Header& header, Scores& s, const Queries& q, Output& o, Weights& p,
                                       RowSoftmax& softmax, const float (&row_factor)[2], int& before, int& to_sum) {
    const int stage = stage_;
    const float scale = shared_.key_scales[stage].x;
    const ScaledScores scores = {s, {row_factor[0] * scale, row_factor[1] * scale}};
    issue_values(o, p, before);
    issue_scores(s, q, stage);
    advance();
    --to_sum;
    if (!kPlanned) look_ahead();  // under the products; dense, 1.6 % faster here than below, planned 2.3 % slower
    ptx::wgmma_wait<1>();
    ptx::pin(o);
    ptx::pin(p);
    release(shared_.empty[before], is_owed_);  // under the scores
    if (kPlanned) look_ahead();
    ptx::wgmma_wait<0>();  // nothing is under way from here on, so that warps may part
    ptx::pin(s);
    softmax.weigh(scores, p);
    ptx::pin(p);
    before = stage;
    is_owed_ = true;
    const bool is_usual = !softmax.beyond(p) && to_sum != 0 && !(kPlanned && kind_ != Kind::kKeys);
    if (__all_sync(0xffffffffu, is_usual && is_next_)) return true;
    if (__any_sync(0xffffffffu, !is_usual)) mend(header, scores, o, p, softmax, stage, to_sum);
    return find(before);
  }

  /// The seldom path: masks and biases, new references, sums begun anew, and chunks that the group does not see.
  __device__ __forceinline__ void mend(const Header& header, const ScaledScores& scores, Output& o, Weights& p,
                                       RowSoftmax& softmax, int stage, int& to_sum) {
    if (kPlanned && kind_ == Kind::kUnseen) {
#pragma unroll
      for (uint32_t& four : p) four = 0;
      ptx::pin(p);
    }
    float factor[2] = {1, 1};
    const bool biased = kPlanned && kind_ == Kind::kSummaries;
    kind_ = Kind::kKeys;
    if (biased || __any_sync(0xffffffffu, softmax.beyond(p))) {
      const AttentionArgs& args = params_.base.args;
      Logits logits(scores, params_.zero);
      const int count = shared_.info[stage] >> kCount;
      if (biased) {
        sm90::bias_summaries(logits.x, count * kChunkKeys, args.num_summaries,
                             args.schedule.kept_bits + header.groups[group_].kept_bits, params_.summary_bias,
                             params_.last_summary_bias);
        softmax.weigh(logits, p);
      } else if (!softmax.has_begun() && (count < kChunkKeys || args.last_key_bias_log2 != 0)) {
        logits.mask_missing(count, args.last_key_bias_log2);
      }
      const bool moved = softmax.mend(logits, p, factor);
      ptx::pin(p);
      if (!moved && to_sum > 0) return;
    } else if (to_sum > 0) {
      return;
    }
    add_to_sums(o, factor[0], factor[1]);
    to_sum = kChunksOfSum;
  }

  // ---- sums --------------------------------------------------------------------------------------------------------
  __device__ __forceinline__ float4* sums() {
    return &shared_.sums[warp_].pieces[0][lane()];
  }
  /// Not all at once: that would cost the main loop its registers.
  __device__ __forceinline__ static float4 read_sums(const float4* sums, int i) {
    float4 x;
    asm volatile("ld.volatile.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
                 : "r"(ptx::shared_address(sums + 32 * i))
                 : "memory");
    return x;
  }
  __device__ __forceinline__ static void write_sums(float4* sums, int i, const float4& x) {
    asm volatile("st.volatile.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(ptx::shared_address(sums + 32 * i)),
                 "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w)
                 : "memory");
  }

  __device__ __forceinline__ void clear_sums(Output& o) {
    __syncwarp();  // the last tile's rows, which lie there, have been read
    float4* base = sums();
#pragma unroll
    for (int i = 0; i < kHeadDim / 8; ++i) base[32 * i] = make_float4(0, 0, 0, 0);
    shared_.row_sums[threadIdx.x - 128] = make_float2(0, 0);
#pragma unroll
    for (float& x : o) x = 0;
  }

  /// This thread's part of the sum of a row's weights.
  __device__ __forceinline__ static float weights_of_row(const Output& o, int r) {
    return o[kHeadDim / 2 + 2 * r] + o[kHeadDim / 2 + 2 * r + 1];
  }

  /// The tensor core's sums so far go to the float sums, all of which are multiplied (rows r = 0 and 1).
  __device__ __forceinline__ void add_to_sums(Output& o, float first, float second) {
    constexpr int kAtOnce = 4;
    float4* base = sums();
#pragma unroll
    for (int i = 0; i < kHeadDim / 8; i += kAtOnce) {
      float4 x[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) x[j] = read_sums(base, i + j);
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const float* mine = o + 4 * (i + j);
        x[j] = make_float4((x[j].x + mine[0]) * first, (x[j].y + mine[1]) * first, (x[j].z + mine[2]) * second,
                           (x[j].w + mine[3]) * second);
        write_sums(base, i + j, x[j]);
      }
    }
    float2& sum = shared_.row_sums[threadIdx.x - 128];
    sum = make_float2((sum.x + weights_of_row(o, 0)) * first, (sum.y + weights_of_row(o, 1)) * second);
    // Zeros that the compiler does not know: or it makes a predicate of the next product, which is the whole group's.
#pragma unroll
    for (float& x : o) x = __int_as_float(__float_as_int(x) & params_.zero);
  }

  __device__ __forceinline__ void finish_tile(Output& o, const Header& header) {
    const float2 sum = shared_.row_sums[threadIdx.x - 128];
    const float factors[2] = {1.0f / sm90::sum_of_row(sum.x + weights_of_row(o, 0)),
                              1.0f / sm90::sum_of_row(sum.y + weights_of_row(o, 1))};
    const float4* base = sums();
    float result[kHeadDim / 2];
#pragma unroll
    for (int i = 0; i < kHeadDim / 8; ++i) {
      const float4 x = read_sums(base, i);
      result[4 * i] = (o[4 * i] + x.x) * factors[0];
      result[4 * i + 1] = (o[4 * i + 1] + x.y) * factors[0];
      result[4 * i + 2] = (o[4 * i + 2] + x.z) * factors[1];
      result[4 * i + 3] = (o[4 * i + 3] + x.w) * factors[1];
    }
    ptx::pin(result);
    const int lane = this->lane();
    const GroupRows& rows = header.groups[group_];
    sm90::TileHeader mine = {};
    mine.batch = header.batch;
    mine.head = header.head;
    mine.first_row = rows.first_row;
    mine.num_rows = rows.num_rows;
    mine.flags = rows.flags;
    const int64_t channels =
        (int64_t{mine.batch} * params_.base.args.num_heads + mine.head) * kHeadDim + 2 * (lane % 4);
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
    sm90::write_output<kHeadDim, Type>(params_.base.args, mine, shared_.sums[warp_].out, result, 16 * (warp_ % 4),
                                       lane);
  }

  // ---- products ----------------------------------------------------------------------------------------------------
  /// s = Q Kᵀ, asynchronously, behind issue_values, whose fence serves both.
  __device__ __forceinline__ void issue_scores(Scores& s, const Queries& q, int stage) {
    const auto keys = keys_.moved(stage * kChunkBytes);
#pragma unroll
    for (int k = 0; k < kHeadDim / 32; ++k) ptx::wgmma_s8(s, q[k], keys.at(32 * k), k > 0);
    ptx::wgmma_commit();
  }
  /// o += P V, asynchronously, and behind O's channels the sums of P's rows.
  __device__ __forceinline__ void issue_values(Output& o, const Weights& p, int stage) {
    const auto values = values_.moved(stage * kValueBytes);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kChunkKeys / 32; ++k) ptx::wgmma_e4m3(o, p + 4 * k, values.at(32 * k), true);
    ptx::wgmma_commit();
  }

  // ---- chunks ------------------------------------------------------------------------------------------------------
  /// Waits for the tile's next chunk that this group sees. False: there is none; all are passed then.
  /// `before` is the stage whose product is owed. It must not be kept for longer than kChunksHeld chunks, so a chunk
  /// behind these is taken as if it were seen, with weights of 0. (To make the product that is owed here, and wait for
  /// it, costs more: with products in this loop the compiler moves the sums between registers at each step.)
  __device__ __forceinline__ bool find(int before) {
#pragma unroll 1
    while (left_ != 0) {
      ptx::mbarrier_wait(&shared_.full[stage_], phase_);
      if constexpr (!kPlanned) return true;
      const uint32_t info = read_info(stage_);
      // Votes: the compiler knows them to be alike in the warp.
      if (__any_sync(0xffffffffu, info & (kLast | kSummaries))) {
        if (__any_sync(0xffffffffu, info & kLast)) left_ = 0;
        if (__any_sync(0xffffffffu, info & kSummaries)) kind_ = Kind::kSummaries;
      }
      if (__any_sync(0xffffffffu, info >> group_ & 1)) return true;
      if (is_owed_ && passed_since(before) >= kChunksHeld) {
        kind_ = Kind::kUnseen;
        return true;
      }
      kind_ = Kind::kKeys;
      release(shared_.empty[stage_]);
      advance();
    }
    return false;
  }
  /// Whether the next chunk is known to be there, of keys, seen and not the last: before it is waited for.
  __device__ __forceinline__ void look_ahead() {
    const bool is_full = ptx::mbarrier_test(&shared_.full[stage_], phase_);
    bool is_plain = is_full;
    if (kPlanned) is_plain = is_full && (read_info(stage_) & (kLast | kSummaries | 1u << group_)) == 1u << group_;
    is_next_ = is_plain && left_ != 0;
  }
  __device__ __forceinline__ uint32_t read_info(int stage) const {
    uint32_t info;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(info) : "r"(ptx::shared_address(&shared_.info[stage])) : "memory");
    return info;
  }
  /// Chunks behind that of `stage` that were passed.
  __device__ __forceinline__ int passed_since(int stage) const {
    const int passed = stage_ - stage - 1;
    return passed < 0 ? passed + kStages : passed;
  }
  __device__ __forceinline__ void advance() {
    if (!kPlanned) --left_;
    ++stage_;
    if (stage_ == kStages) stage_ = 0, phase_ ^= 1;
  }
  /// This thread has read what the barrier guards. (One lane's arrival for its warp would save .7 % of the time, but is
  /// not what racecheck follows.) A predicate, not a branch: the softmax that follows would be moved in front of it.
  __device__ __forceinline__ void release(uint64_t& barrier, bool held = true) {
    asm volatile(
        "{\n.reg .pred held;\nsetp.ne.s32 held, %1, 0;\n@held mbarrier.arrive.shared::cta.b64 _, [%0];\n}\n" ::"r"(
            ptx::shared_address(&barrier)),
        "r"(static_cast<int>(held))
        : "memory");
  }

  const KernelParams& params_;
  SharedMemory& shared_;
  const int group_, warp_;
  ptx::RowDescriptor<kHeadDim> keys_;
  ptx::RowDescriptor<kChunkKeys> values_;
  int stage_ = 0;
  uint32_t phase_ = 0;
  int left_ = 0;  ///< dense: chunks of the tile that are not passed; planned: 0 once the last one is found
  enum class Kind { kKeys, kSummaries, kUnseen };
  Kind kind_ = Kind::kKeys;  ///< of the chunk found
  bool is_owed_ = false;     ///< a product with values: from a tile's first chunk on
  bool is_next_ = false;     ///< what look_ahead found
};

}  // namespace calibatt::cuda::sm90_fp8::wide
