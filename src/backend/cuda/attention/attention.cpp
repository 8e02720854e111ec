#include "backend/cuda/attention/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <string>
#include <vector>

#include "backend/cuda/attention/summaries.h"
#include "backend/transformer_ops.h"
#include "backend/validate_attention.h"
#include "base/ceil_div.h"
#include "base/error.h"

namespace calibatt::cuda {
namespace {

constexpr size_t kAlignment = 256;
constexpr DType kTypes[] = {DType::kBF16, DType::kF16, DType::kF32};  // of q, k and v

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ErrorKind::kUsage, "attention: " + message);
}

size_t aligned(size_t size) {
  return (size + kAlignment - 1) / kAlignment * kAlignment;
}

int to_int(int64_t count, const char* what) {
  if (count > std::numeric_limits<int32_t>::max()) refuse(std::to_string(count) + " " + what + "; 2147483647 fit");
  return static_cast<int>(count);
}

template <class View>
DeviceHeads device_heads(const View& view) {
  return {const_cast<void*>(static_cast<const void*>(view.data)), 0, view.token_stride, view.head_stride};
}

void validate_heads(const DeviceHeads& heads, const char* name, const AttentionArgs& args, int num_tokens) {
  if (heads.data == nullptr) refuse(std::string(name) + " has no data");
  const auto too_close = [&](int64_t count, int64_t stride) { return count > 1 && stride < args.head_dim; };
  if (too_close(num_tokens, heads.token_stride) || too_close(args.num_heads, heads.head_stride) ||
      too_close(args.batch, heads.batch_stride)) {
    refuse(std::string(name) + " strides (batch " + std::to_string(heads.batch_stride) + ", token " +
           std::to_string(heads.token_stride) + ", head " + std::to_string(heads.head_stride) +
           ") are smaller than head_dim " + std::to_string(args.head_dim));
  }
}

NormArgs norm_args(const AttentionCall& call) {
  const QueryKeyNorm& norm = *call.norm;
  CALIBATT_ASSERT(norm.query.data == call.q.data && norm.key.data == call.k.data);
  NormArgs args{.pending = true, .eps = norm.eps};
  CALIBATT_ASSERT((norm.query_weight == nullptr) == (norm.key_weight == nullptr));
  if (norm.query_weight != nullptr) {
    const int64_t channels = int64_t{call.num_heads} * call.head_dim;
    CALIBATT_ASSERT(norm.query_weight->size() == channels && norm.key_weight->size() == channels);
    args.query_weight = norm.query_weight->f32();
    args.key_weight = norm.key_weight->f32();
  }
  if (norm.rope != nullptr) {
    const int64_t size = call.q.num_tokens * call.head_dim;
    CALIBATT_ASSERT(call.k.num_tokens == call.q.num_tokens);
    CALIBATT_ASSERT(norm.rope->cos.size() == size && norm.rope->signed_sin.size() == size);
    args.cos = norm.rope->cos.f32();
    args.signed_sin = norm.rope->signed_sin.f32();
  }
  return args;
}

/// Where the parts of a call's workspace lie.
struct WorkspaceLayout {
  size_t summary_k = 0, summary_v = 0;  ///< offsets; the kernel's own part is at 0
  size_t size_bytes = 0;
};

bool lacks_summaries(const AttentionArgs& args) {
  return args.num_summaries > 0 && args.summary_k.data == nullptr;
}
/// Kernels in 8 bits make their own.
bool makes_summaries(const AttentionArgs& args, const AttentionKernel& kernel) {
  return lacks_summaries(args) && !kernel.eight_bits;
}

/// Summaries in the workspace: [batch, num_summaries, heads, head_dim] without gaps.
void place_summaries(AttentionArgs& args, const WorkspaceLayout& layout, void* workspace) {
  const int64_t token_stride = int64_t{args.num_heads} * args.head_dim;
  DeviceHeads heads{nullptr, token_stride * args.num_summaries, token_stride, args.head_dim};
  args.summary_k = args.summary_v = heads;
  args.summary_k.data = static_cast<std::byte*>(workspace) + layout.summary_k;
  args.summary_v.data = static_cast<std::byte*>(workspace) + layout.summary_v;
}

WorkspaceLayout make_layout(const AttentionArgs& args, const AttentionKernel& kernel, const DeviceInfo& device) {
  WorkspaceLayout layout;
  layout.summary_k = aligned(kernel.workspace_bytes(args, device.num_sms));
  const size_t summaries =
      makes_summaries(args, kernel)
          ? aligned(dtype_size(args.dtype) * static_cast<size_t>(args.batch) * static_cast<size_t>(args.num_summaries) *
                    static_cast<size_t>(args.num_heads) * static_cast<size_t>(args.head_dim))
          : 0;
  layout.summary_v = layout.summary_k + summaries;
  layout.size_bytes = layout.summary_v + summaries;
  return layout;
}

/// The kernel for the call, decided as if the summaries that have no place yet were well placed.
const AttentionKernel& choose(AttentionArgs args, const DeviceInfo& device, std::string_view name) {
  if (lacks_summaries(args)) {
    alignas(kAlignment) static std::byte somewhere_aligned;  // only its address is looked at
    place_summaries(args, {}, &somewhere_aligned);
  }
  return choose_attention_kernel(args, device, name);
}

}  // namespace

ResidentSchedule::ResidentSchedule(const PackedSchedule& packed)
    : buffer_(packed.size_bytes()), has_summaries_(packed.has_summaries()) {
  std::vector<std::byte> image(packed.size_bytes());
  packed.write_image(image);
  const Stream stream;
  buffer_.copy_from_host(image.data(), stream.get());
  stream.synchronize();
  device_ = packed.at(buffer_.data());
}

ResidentSchedule::ResidentSchedule(std::span<const HeadSchedule> heads, int num_queries, int num_keys, int block_q,
                                   int block_k) {
  if (!needs_schedule(heads)) return;
  *this = ResidentSchedule(pack_schedule(heads, num_queries, num_keys, block_q, block_k));
}

AttentionArgs make_args(const AttentionCall& call, const ResidentSchedule& schedule) {
  return make_args(call, schedule.device(), schedule.has_summaries());
}

AttentionArgs make_args(const AttentionCall& call, const DeviceSchedule& schedule, bool has_summaries) {
  validate_attention_call(call, kTypes);
  if (needs_schedule(call.heads) != (schedule.tiles != nullptr)) {
    refuse("the schedule in device memory was not made of this call's heads");
  }
  AttentionArgs args;
  args.q = device_heads(call.q);
  args.k = device_heads(call.k);
  args.v = device_heads(call.v);
  args.out = device_heads(call.out);
  args.dtype = call.q.dtype;
  args.eight_bits = call.eight_bits && call.block_energy == nullptr;
  args.out_f32 = call.out.dtype == DType::kF32;
  args.num_heads = call.num_heads;
  args.head_dim = call.head_dim;
  args.num_queries = to_int(call.q.num_tokens, "queries");
  args.num_keys = to_int(call.k.num_tokens, "keys");
  args.scale_log2 = static_cast<float>(call.scale * std::numbers::log2e);
  args.block_q = call.block_q;
  args.block_k = call.block_k;
  set_schedule(args, schedule, has_summaries);
  args.block_energy = call.block_energy;
  args.last_key_bias_log2 = last_key_bias_log2(call.key_bias);
  if (call.norm != nullptr) args.norm = norm_args(call);
  validate(args);
  return args;
}

bool norms_in_kernel(const AttentionCall& call) {
  AttentionCall dense = call;
  dense.heads = {};
  const AttentionArgs args = make_args(dense, {});
  return std::ranges::any_of(attention_kernels(), [&](const AttentionKernel& kernel) {
    return kernel.eight_bits == args.eight_bits &&
           refusal_of(kernel, args, current_device().compute_capability).empty();
  });
}

void set_schedule(AttentionArgs& args, const DeviceSchedule& schedule, bool has_summaries) {
  args.schedule = schedule;
  args.num_summaries = has_summaries ? ceil_div(args.num_keys, args.block_k) : 0;
}

float last_key_bias_log2(std::span<const float> key_bias) {
  if (key_bias.empty()) return 0;
  const auto others = key_bias.first(key_bias.size() - 1);
  if (!std::isfinite(key_bias.back()) || std::ranges::any_of(others, [](float bias) { return bias != 0; })) {
    refuse(
        "key_bias: on CUDA only the last key's may differ from 0, and is finite (one key for equal ones, such as "
        "padding); give other equal keys one by one, or use the CPU backend");
  }
  return key_bias.back() * std::numbers::log2e_v<float>;
}

void validate(const AttentionArgs& args) {
  for (const auto& [value, name] : {std::pair{args.batch, "batch"},
                                    {args.num_heads, "num_heads"},
                                    {args.head_dim, "head_dim"},
                                    {args.num_queries, "num_queries"},
                                    {args.num_keys, "num_keys"},
                                    {args.block_q, "block_q"},
                                    {args.block_k, "block_k"}}) {
    if (value < 1) refuse(std::string(name) + " is " + std::to_string(value) + "; at least 1 is needed");
  }
  if (!std::isfinite(args.scale_log2) || args.scale_log2 <= 0) {
    refuse("the scale is " + std::to_string(args.scale_log2) + "; CUDA kernels take a positive one");
  }
  if (std::ranges::find(kTypes, args.dtype) == std::end(kTypes)) {
    refuse("q, k and v are " + std::string(dtype_name(args.dtype)) + "; BF16, F16 and F32 are computed");
  }
  if (args.dtype == DType::kF32 && !args.out_f32) refuse("q, k and v of F32 have out_f32");
  validate_heads(args.q, "q", args, args.num_queries);
  validate_heads(args.k, "k", args, args.num_keys);
  validate_heads(args.v, "v", args, args.num_keys);
  validate_heads(args.out, "out", args, args.num_queries);
  if (args.schedule.tiles != nullptr) {
    if (args.schedule.num_tiles < 1 || args.schedule.ranges == nullptr) refuse("the schedule holds no tiles or ranges");
    if (args.block_energy != nullptr || args.row_lse != nullptr) {
      refuse("block energy and row sums are measured on dense calls only");
    }
  }
  if (!std::isfinite(args.last_key_bias_log2) || (args.last_key_bias_log2 != 0 && args.schedule.tiles != nullptr)) {
    refuse("the last key's bias must be finite, and goes with dense calls only");
  }
  if (args.block_energy != nullptr && args.block_q > kTileRows) {
    refuse("block energy of query blocks of " + std::to_string(args.block_q) + " tokens; on CUDA they have at most " +
           std::to_string(kTileRows));
  }
  if (args.num_summaries == 0) return;
  if (args.schedule.tiles == nullptr || args.schedule.kept_bits == nullptr) {
    refuse("summaries need a schedule that says which key blocks are kept");
  }
  if (args.num_summaries != ceil_div(args.num_keys, args.block_k)) {
    refuse(std::to_string(args.num_summaries) + " summaries for " + std::to_string(args.num_keys) +
           " keys in blocks of " + std::to_string(args.block_k));
  }
  if ((args.summary_k.data == nullptr) != (args.summary_v.data == nullptr)) {
    refuse("summaries of keys and of values go together");
  }
  if (args.summary_k.data == nullptr) return;
  validate_heads(args.summary_k, "summary_k", args, args.num_summaries);
  validate_heads(args.summary_v, "summary_v", args, args.num_summaries);
}

size_t attention_workspace_bytes(const AttentionArgs& args, std::string_view kernel) {
  validate(args);
  const DeviceInfo& device = current_device();
  return make_layout(args, choose(args, device, kernel), device).size_bytes;
}

std::string_view attention(AttentionArgs args, void* workspace, size_t workspace_bytes, cudaStream_t stream,
                           std::string_view kernel) {
  validate(args);
  const DeviceInfo& device = current_device();
  const AttentionKernel& chosen = choose(args, device, kernel);
  const WorkspaceLayout layout = make_layout(args, chosen, device);
  if (workspace_bytes < layout.size_bytes) {
    refuse("the workspace has " + std::to_string(workspace_bytes) + " bytes; kernel " + std::string(chosen.name) +
           " needs " + std::to_string(layout.size_bytes) + " for this call");
  }
  if (layout.size_bytes > 0 && (workspace == nullptr || reinterpret_cast<uintptr_t>(workspace) % kAlignment != 0)) {
    refuse("the workspace must be device memory at a multiple of " + std::to_string(kAlignment) + " bytes");
  }
  if (makes_summaries(args, chosen)) {
    place_summaries(args, layout, workspace);
    for (const auto& [from, to] : {std::pair{&args.k, &args.summary_k}, {&args.v, &args.summary_v}}) {
      make_summaries(*from, *to, args.dtype, args.batch, args.num_heads, args.head_dim, args.num_keys, args.block_k,
                     stream);
    }
  }
  args.workspace = workspace;
  chosen.launch(args, device.num_sms, stream);
  return chosen.name;
}

}  // namespace calibatt::cuda
