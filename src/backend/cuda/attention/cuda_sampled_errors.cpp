// CudaAttention::sampled_errors: from a call to the kernels' arguments.
#include <utility>
#include <vector>

#include "backend/cuda/attention/attention.h"
#include "backend/cuda/attention/cuda_attention.h"
#include "backend/cuda/attention/output_changes.h"
#include "backend/cuda/attention/sampled_errors.h"
#include "backend/cuda/attention/summaries.h"
#include "base/ceil_div.h"
#include "base/error.h"

namespace calibatt::cuda {
namespace {

template <class T>
Tensor uploaded(Context& context, DType dtype, std::span<const T> values) {
  Tensor device = context.allocate(dtype, {static_cast<int64_t>(values.size())});
  context.copy_to_device(device.raw(), values.data(), values.size_bytes());
  return device;
}

DeviceHeads heads_of(const ConstHeadsView& view) {
  return {const_cast<void*>(view.data), 0, view.token_stride, view.head_stride};
}

bool is_aligned(const ConstHeadsView& view) {
  return reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && view.token_stride % 8 == 0 && view.head_stride % 8 == 0;
}

/// What the kernels ask of a call; others are measured on the host.
bool takes(const SampledErrorsCall& call) {
  const DType dtype = call.q.dtype;
  const bool one_type = call.k.dtype == dtype && call.v.dtype == dtype && call.out.dtype == dtype;
  return one_type && takes_sampled_errors(dtype, call.head_dim, call.block_k, call.samples) && is_aligned(call.k) &&
         is_aligned(call.v) && call.q.head_stride == call.head_dim && call.out.head_stride == call.head_dim &&
         (call.rungs.empty() || call.num_levels == kMeasuredLevels);
}

class Measurement {
 public:
  Measurement(Context& context, const SampledErrorsCall& call)
      : context_(context),
        call_(call),
        rows_(static_cast<int>(call.tokens.size())),
        width_(call.num_heads * call.head_dim),
        tokens_(uploaded(context, DType::kI32, call.tokens)) {}

  SampledErrors run() {
    attend();
    Tensor mean_k, mean_v;
    if (call_.summarize) mean_k = summaries(call_.k), mean_v = summaries(call_.v);
    Tensor rungs;
    if (!call_.rungs.empty()) rungs = uploaded(context_, DType::kU8, call_.rungs);
    const SampledRows rows{.q = queries_.raw(),
                           .out = outputs_.f32(),
                           .lse = lse_.f32(),
                           .k = heads_of(call_.k),
                           .v = heads_of(call_.v),
                           .mean_k = mean_k.empty() ? nullptr : mean_k.raw(),
                           .mean_v = mean_v.empty() ? nullptr : mean_v.raw(),
                           .metric = call_.metric.empty() ? nullptr : call_.metric.f32(),
                           .rungs = rungs.empty() ? nullptr : rungs.data<uint8_t>(),
                           .dtype = call_.q.dtype,
                           .rows = rows_,
                           .samples = call_.samples,
                           .heads = call_.num_heads,
                           .head_dim = call_.head_dim,
                           .num_keys = static_cast<int>(call_.k.num_tokens),
                           .block_k = call_.block_k,
                           .key_blocks = call_.key_blocks,
                           .scale = call_.scale};
    SampledErrors errors;
    errors.harm = context_.allocate(DType::kBF16, {call_.num_heads, rows_ / call_.samples, call_.key_blocks});
    if (rows.rungs != nullptr) errors.level_error = context_.allocate(DType::kF32, {call_.num_heads, kMeasuredLevels});
    const std::shared_ptr<void> workspace = context_.allocate_bytes(sampled_errors_workspace_bytes(rows));
    cuda::sampled_errors(rows, static_cast<uint16_t*>(errors.harm.raw()),
                         rows.rungs == nullptr ? nullptr : errors.level_error.f32(), workspace.get(),
                         context_.stream());
    if (!call_.sources.empty()) errors.copy_error = copy_errors();
    return errors;
  }

 private:
  Tensor gathered(const ConstHeadsView& view, const Tensor& tokens, DType dtype) {
    const auto count = static_cast<int>(tokens.size());
    Tensor out = context_.allocate(dtype, {count, width_});
    gather_rows(view.data, view.dtype, view.token_stride, tokens.data<int32_t>(), count, width_, out.raw(), dtype,
                context_.stream());
    return out;
  }

  /// The sampled queries once more, for their outputs in float32 and the sums of their exponentials.
  void attend() {
    queries_ = gathered(call_.q, tokens_, call_.q.dtype);
    outputs_ = context_.allocate(DType::kF32, {rows_, width_});
    lse_ = context_.allocate(DType::kF32, {call_.num_heads, rows_});
    AttentionCall dense;
    dense.q = {queries_.raw(), call_.q.dtype, rows_, width_, call_.head_dim};
    dense.k = call_.k, dense.v = call_.v;
    dense.out = {outputs_.raw(), DType::kF32, rows_, width_, call_.head_dim};
    dense.num_heads = call_.num_heads, dense.head_dim = call_.head_dim;
    dense.scale = call_.scale;
    AttentionArgs args = make_args(dense, {});
    args.row_lse = lse_.f32();
    const size_t bytes = attention_workspace_bytes(args);
    const std::shared_ptr<void> workspace = context_.allocate_bytes(bytes);
    cuda::attention(args, workspace.get(), bytes, context_.stream());
  }

  Tensor summaries(const ConstHeadsView& view) {
    const int64_t blocks = ceil_div(view.num_tokens, int64_t{call_.block_k});
    Tensor means = context_.allocate(view.dtype, {blocks, width_});
    make_summaries(heads_of(view), {means.raw(), 0, width_, call_.head_dim}, view.dtype, 1, call_.num_heads,
                   call_.head_dim, static_cast<int>(view.num_tokens), call_.block_k, context_.stream());
    return means;
  }

  Tensor copy_errors() {
    const auto ways = static_cast<int64_t>(call_.sources.size()) / rows_;
    std::vector<int32_t> tokens(call_.sources.begin(), call_.sources.end());
    tokens.insert(tokens.end(), call_.tokens.begin(), call_.tokens.end());  // the last group: their own
    const Tensor outputs =
        gathered(call_.out, uploaded(context_, DType::kI32, std::span<const int32_t>(tokens)), DType::kF32);
    Tensor changes = context_.allocate(DType::kF32, {call_.num_heads, ways});
    squared_changes(outputs.f32(), call_.metric.empty() ? nullptr : call_.metric.f32(), static_cast<int>(ways), rows_,
                    call_.num_heads, call_.head_dim, changes.f32(), context_.stream());
    return changes;
  }

  Context& context_;
  const SampledErrorsCall& call_;
  const int rows_, width_;
  const Tensor tokens_;
  Tensor queries_, outputs_, lse_;
};

}  // namespace

std::optional<SampledErrors> CudaAttention::sampled_errors(const SampledErrorsCall& call) {
  CALIBATT_ASSERT(call.samples >= 1 && call.tokens.size() % static_cast<size_t>(call.samples) == 0);
  CALIBATT_ASSERT(call.sources.size() % call.tokens.size() == 0);
  if (!takes(call)) return std::nullopt;
  return Measurement(context_, call).run();
}

}  // namespace calibatt::cuda
