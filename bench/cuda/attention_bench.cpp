#include "attention_bench.h"

#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "backend/cuda/attention/attention.h"
#include "base/ceil_div.h"

namespace calibatt::bench {
namespace {

thread_local std::string last_error;

/// Runs a body that may throw; `failed` is what the C caller sees then.
template <class Result, class Body>
Result guarded(Result failed, Body body) {
  try {
    return body();
  } catch (const std::exception& error) {
    last_error = error.what();
    return failed;
  }
}

template <class View>
View view(const CalibattHeads& heads, DType dtype, int32_t num_tokens) {
  return {heads.data, dtype, num_tokens, heads.token_stride, heads.head_stride};
}

/// The first batch entry as an AttentionCall, then what a call does not have: batches, and a schedule without its
/// heads.
cuda::AttentionArgs make_args(const CalibattCall& c) {
  const DType dtype = c.is_fp16 != 0 ? DType::kF16 : DType::kBF16;
  AttentionCall call;
  call.q = view<ConstHeadsView>(c.q, dtype, c.num_queries);
  call.k = view<ConstHeadsView>(c.k, dtype, c.num_keys);
  call.v = view<ConstHeadsView>(c.v, dtype, c.num_keys);
  call.out = view<HeadsView>(c.out, c.out_f32 != 0 ? DType::kF32 : dtype, c.num_queries);
  call.num_heads = c.num_heads;
  call.head_dim = c.head_dim;
  call.scale = c.scale;
  call.block_q = c.block_q;
  call.block_k = c.block_k;
  call.block_energy = c.block_energy;
  cuda::AttentionArgs args = cuda::make_args(call, {});
  args.batch = c.batch;
  args.q.batch_stride = c.q.batch_stride;
  args.k.batch_stride = c.k.batch_stride;
  args.v.batch_stride = c.v.batch_stride;
  args.out.batch_stride = c.out.batch_stride;
  if (c.schedule != nullptr) {
    const auto& schedule = *static_cast<const cuda::ResidentSchedule*>(c.schedule);
    cuda::set_schedule(args, schedule.device(), schedule.has_summaries());
  }
  return args;
}

BlockMask mask_of(const uint8_t* kept, int query_blocks, int key_blocks) {
  BlockMask mask(query_blocks, key_blocks);
  for (int r = 0; r < query_blocks; ++r) {
    for (int c = 0; c < key_blocks; ++c) mask.set(r, c, kept[static_cast<int64_t>(r) * key_blocks + c] != 0);
  }
  return mask;
}

}  // namespace
}  // namespace calibatt::bench

using namespace calibatt;
using bench::guarded;

const char* calibatt_error(void) {
  return bench::last_error.c_str();
}

void* calibatt_make_schedule(const uint8_t* kept, int32_t num_heads, int32_t num_queries, int32_t num_keys,
                             int32_t block_q, int32_t block_k, int32_t summarize, const int32_t* anchor_tokens,
                             int32_t num_anchors, const int32_t* source_of) {
  return guarded(static_cast<void*>(nullptr), [&]() -> void* {
    AnchorRows anchors;
    int num_computed = num_queries;
    if (anchor_tokens != nullptr) {
      anchors.query_tokens.assign(anchor_tokens, anchor_tokens + num_anchors);
      anchors.source_of.assign(source_of, source_of + num_queries);
      num_computed = num_anchors;
    }
    const int query_blocks = ceil_div(num_computed, block_q), key_blocks = ceil_div(num_keys, block_k);
    std::vector<BlockIntervals> intervals;
    std::vector<HeadSchedule> schedules(static_cast<size_t>(num_heads));
    intervals.reserve(schedules.size());
    for (size_t head = 0; head < schedules.size(); ++head) {
      if (anchor_tokens != nullptr) schedules[head].anchors = &anchors;
      if (kept == nullptr) continue;
      const int64_t head_size = int64_t{query_blocks} * key_blocks;
      intervals.push_back(BlockIntervals::from_mask(
          bench::mask_of(kept + static_cast<int64_t>(head) * head_size, query_blocks, key_blocks)));
      schedules[head].intervals = &intervals.back();
      schedules[head].summarize_skipped = summarize != 0;
    }
    return new cuda::ResidentSchedule(schedules, num_queries, num_keys, block_q, block_k);
  });
}

void calibatt_free_schedule(void* schedule) {
  delete static_cast<cuda::ResidentSchedule*>(schedule);
}

int64_t calibatt_schedule_bytes(const void* schedule) {
  return static_cast<int64_t>(static_cast<const cuda::ResidentSchedule*>(schedule)->size_bytes());
}

const char* calibatt_choose(const CalibattCall* call, const char* kernel) {
  return guarded(static_cast<const char*>(nullptr), [&] {
    const cuda::AttentionArgs args = bench::make_args(*call);
    cuda::validate(args);
    return cuda::choose_attention_kernel(args, cuda::current_device(), kernel).name.data();
  });
}

int64_t calibatt_workspace_bytes(const CalibattCall* call, const char* kernel) {
  return guarded(int64_t{-1}, [&] {
    return static_cast<int64_t>(cuda::attention_workspace_bytes(bench::make_args(*call), kernel));
  });
}

int32_t calibatt_launch(const CalibattCall* call, void* workspace, int64_t workspace_bytes, void* stream,
                        const char* kernel) {
  return guarded(int32_t{-1}, [&] {
    cuda::attention(bench::make_args(*call), workspace, static_cast<size_t>(workspace_bytes),
                    static_cast<cudaStream_t>(stream), kernel);
    return int32_t{0};
  });
}
