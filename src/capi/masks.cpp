#include "capi/masks.h"

#include <cmath>

#include "backend/cpu/attention/attention.h"
#include "backend/validate_attention.h"
#include "base/ceil_div.h"
#include "base/error.h"
#include "capi/arguments.h"
#include "capi/guarded.h"

using namespace calibatt;
using namespace calibatt::capi;

namespace {

ScheduleShape shape_of(const char* name, int heads, int queries, int keys, int block_q, int block_k) {
  const std::string prefix = std::string(name) + ".";
  require_in((prefix + "num_heads").c_str(), heads, 1, INT32_MAX);
  require_in((prefix + "num_queries").c_str(), queries, 1, INT32_MAX);
  require_in((prefix + "num_keys").c_str(), keys, 1, INT32_MAX);
  require_in((prefix + "block_q").c_str(), block_q, 1, INT32_MAX);
  require_in((prefix + "block_k").c_str(), block_k, 1, INT32_MAX);
  return {heads, queries, keys, block_q, block_k};
}

BlockMask mask_of(const uint8_t* kept, int query_blocks, int key_blocks) {
  BlockMask mask(query_blocks, key_blocks);
  for (int r = 0; r < query_blocks; ++r) {
    for (int c = 0; c < key_blocks; ++c) mask.set(r, c, kept[int64_t{r} * key_blocks + c] != 0);
  }
  return mask;
}

int take_anchors(const calibatt_masks& masks, AnchorRows& anchors) {
  if (masks.anchor_tokens == nullptr) return masks.num_queries;
  require_in("masks.num_anchors", masks.num_anchors, 1, masks.num_queries);
  required(masks.anchor_of, "masks.anchor_of");
  anchors.query_tokens.assign(masks.anchor_tokens, masks.anchor_tokens + masks.num_anchors);
  anchors.source_of.assign(masks.anchor_of, masks.anchor_of + masks.num_queries);
  return masks.num_anchors;
}

std::unique_ptr<calibatt_schedule> schedule_of(const calibatt_masks& masks) {
  auto schedule = std::make_unique<calibatt_schedule>();
  schedule->device = masks.device;
  require_in("masks.device", masks.device, CALIBATT_CPU, INT32_MAX);
  schedule->shape = shape_of("masks", masks.num_heads, masks.num_queries, masks.num_keys, masks.block_q, masks.block_k);
  const int num_computed = take_anchors(masks, schedule->anchors);
  const int query_blocks = ceil_div(num_computed, masks.block_q), key_blocks = ceil_div(masks.num_keys, masks.block_k);
  if (masks.kept == nullptr && masks.summarize_skipped != 0) refuse("masks.summarize_skipped: needs masks.kept");
  const auto heads = static_cast<size_t>(masks.num_heads);
  schedule->heads.resize(heads);
  schedule->intervals.reserve(heads);
  for (size_t head = 0; head < heads; ++head) {
    HeadSchedule& entry = schedule->heads[head];
    if (masks.anchor_tokens != nullptr) entry.anchors = &schedule->anchors;
    if (masks.kept != nullptr) {
      const int64_t offset = static_cast<int64_t>(head) * query_blocks * key_blocks;
      schedule->intervals.push_back(BlockIntervals::from_mask(mask_of(masks.kept + offset, query_blocks, key_blocks)));
      entry.intervals = &schedule->intervals.back();
      entry.summarize_skipped = masks.summarize_skipped != 0;
    }
    validate_head_schedule(entry, static_cast<int>(head), masks.num_queries, masks.num_keys, masks.block_q,
                           masks.block_k);
  }
  if (masks.device != CALIBATT_CPU) {
    schedule->resident = make_cuda_masks(masks.device, schedule->heads, schedule->shape);
  }
  return schedule;
}

int64_t host_bytes(const calibatt_schedule& schedule) {
  size_t bytes = (schedule.anchors.query_tokens.size() + schedule.anchors.source_of.size()) * sizeof(int32_t);
  for (const BlockIntervals& one : schedule.intervals) {
    bytes += one.offsets().size_bytes() + one.intervals().size_bytes();
  }
  return static_cast<int64_t>(bytes);
}

BatchedCall call_of(const calibatt_attention_call& raw) {
  const ScheduleShape shape = shape_of("call", raw.num_heads, raw.num_queries, raw.num_keys, raw.block_q, raw.block_k);
  require_in("call.device", raw.device, CALIBATT_CPU, INT32_MAX);
  require_in("call.batch", raw.batch, 1, INT32_MAX);
  require_in("call.head_dim", raw.head_dim, 1, INT32_MAX);
  if (!std::isfinite(raw.scale) || raw.scale <= 0) refuse("call.scale: must be finite and greater than 0");
  const DType dtype = dtype_of(raw.dtype, "call.dtype");
  BatchedCall call;
  AttentionCall& sample = call.sample;
  sample.q = view_of<ConstHeadsView>(raw.q, "call.q", dtype, raw.num_queries, 0);
  sample.k = view_of<ConstHeadsView>(raw.k, "call.k", dtype, raw.num_keys, 0);
  sample.v = view_of<ConstHeadsView>(raw.v, "call.v", dtype, raw.num_keys, 0);
  sample.out = view_of<HeadsView>(raw.out, "call.out", raw.out_f32 != 0 ? DType::kF32 : dtype, raw.num_queries, 0);
  sample.num_heads = raw.num_heads;
  sample.head_dim = raw.head_dim;
  sample.scale = raw.scale;
  sample.block_q = raw.block_q;
  sample.block_k = raw.block_k;
  sample.block_energy = raw.block_energy;
  call.batch = raw.batch;
  call.q_stride = raw.q.batch_stride;
  call.k_stride = raw.k.batch_stride;
  call.v_stride = raw.v.batch_stride;
  call.out_stride = raw.out.batch_stride;
  call.resources = {raw.stream, raw.workspace, raw.workspace_bytes};
  if (raw.kernel != nullptr) call.kernel = raw.kernel;
  if (raw.schedule == nullptr) return call;
  if (raw.schedule->device != raw.device) refuse("call.schedule: was made for another device");
  if (!(raw.schedule->shape == shape)) refuse("call.schedule: was made for other numbers of heads, tokens or blocks");
  if (raw.block_energy != nullptr) refuse("call.block_energy: is measured on dense calls only");
  call.masks = raw.schedule->resident.get();
  if (raw.device == CALIBATT_CPU) sample.heads = raw.schedule->heads;
  return call;
}

template <class View>
void advance(View& view, int64_t elements) {
  using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(view.data)>>, const char, char>;
  view.data = static_cast<Byte*>(view.data) + elements * static_cast<int64_t>(dtype_size(view.dtype));
}

void run_on_cpu(BatchedCall call) {
  const AttentionCall& sample = call.sample;
  const int64_t energies = int64_t{sample.num_heads} * ceil_div(static_cast<int>(sample.q.num_tokens), sample.block_q) *
                           ceil_div(static_cast<int>(sample.k.num_tokens), sample.block_k);
  for (int i = 0; i < call.batch; ++i) {
    cpu::attention(call.sample, call.kernel);
    advance(call.sample.q, call.q_stride);
    advance(call.sample.k, call.k_stride);
    advance(call.sample.v, call.v_stride);
    advance(call.sample.out, call.out_stride);
    if (call.sample.block_energy != nullptr) call.sample.block_energy += energies;
  }
}

}  // namespace

calibatt_status calibatt_schedule_make(const calibatt_masks* masks, calibatt_schedule** schedule) {
  return guarded([&] {
    required(schedule, "schedule");
    *schedule = schedule_of(taken(masks, "masks")).release();
  });
}

void calibatt_schedule_free(calibatt_schedule* schedule) {
  delete schedule;
}

int64_t calibatt_schedule_bytes(const calibatt_schedule* schedule) {
  if (schedule == nullptr) return 0;
  return schedule->resident != nullptr ? static_cast<int64_t>(schedule->resident->size_bytes()) : host_bytes(*schedule);
}

calibatt_status calibatt_attention_kernel(const calibatt_attention_call* call, const char** kernel,
                                          size_t* workspace_bytes) {
  return guarded([&] {
    const calibatt_attention_call raw = taken(call, "call");
    const BatchedCall known = call_of(raw);
    ChosenKernel chosen{};
    if (raw.device == CALIBATT_CPU) {
      cpu::validate(known.sample);
      chosen.name = cpu::choose_attention_kernel(known.sample, known.kernel).name.data();
    } else {
      chosen = choose_cuda_kernel(raw.device, known);
    }
    if (kernel != nullptr) *kernel = chosen.name;
    if (workspace_bytes != nullptr) *workspace_bytes = chosen.workspace_bytes;
  });
}

calibatt_status calibatt_attention(const calibatt_attention_call* call) {
  return guarded([&] {
    const calibatt_attention_call raw = taken(call, "call");
    const BatchedCall known = call_of(raw);
    if (raw.device == CALIBATT_CPU) return run_on_cpu(known);
    run_on_cuda(raw.device, known);
  });
}
