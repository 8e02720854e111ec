#include "backend/cpu/attention.h"

#include <cmath>
#include <vector>

#include "backend/cpu/reference/attention_reference.h"
#include "backend/cpu/simd/attention_simd.h"
#include "base/error.h"

namespace calibatt::cpu {
namespace {

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ErrorKind::kUsage, "attention: " + message);
}

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

template <class View>
void validate_view(const View& view, const char* name, const AttentionCall& call) {
  const std::string field = name;
  if (view.data == nullptr) refuse(field + " has no data");
  if (view.dtype != DType::kF32 && view.dtype != DType::kBF16) {
    refuse(field + " is " + std::string(dtype_name(view.dtype)) + "; only F32 and BF16 are computed");
  }
  if (view.num_tokens < 1) refuse(field + " has " + std::to_string(view.num_tokens) + " tokens; at least 1 is needed");
  const bool token_too_close = view.num_tokens > 1 && view.token_stride < call.head_dim;
  const bool head_too_close = call.num_heads > 1 && view.head_stride < call.head_dim;
  if (token_too_close || head_too_close) {
    refuse(field + " strides (token " + std::to_string(view.token_stride) + ", head " +
           std::to_string(view.head_stride) + ") are smaller than head_dim " + std::to_string(call.head_dim));
  }
}

/// Rows of two tokens or heads must not share elements, or threads would write over each other.
void validate_disjoint_rows(const HeadsView& out, const AttentionCall& call) {
  if (out.num_tokens == 1 || call.num_heads == 1) return;
  const bool heads_inside_token = out.token_stride >= (call.num_heads - 1) * out.head_stride + call.head_dim;
  const bool tokens_inside_head = out.head_stride >= (out.num_tokens - 1) * out.token_stride + call.head_dim;
  if (!heads_inside_token && !tokens_inside_head) {
    refuse("rows of out overlap: token stride " + std::to_string(out.token_stride) + ", head stride " +
           std::to_string(out.head_stride) + ", " + std::to_string(call.num_heads) + " heads of " +
           std::to_string(call.head_dim));
  }
}

void validate_anchors(const AnchorRows& anchors, int64_t num_tokens, const std::string& where) {
  const auto num_queries = static_cast<int64_t>(anchors.query_tokens.size());
  if (num_queries < 1) refuse(where + "anchors have no query tokens");
  if (static_cast<int64_t>(anchors.source_of.size()) != num_tokens) {
    refuse(where + "anchors are for " + std::to_string(anchors.source_of.size()) + " tokens, q has " +
           std::to_string(num_tokens));
  }
  for (const int32_t token : anchors.query_tokens) {
    if (token < 0 || token >= num_tokens)
      refuse(where + "anchor query token " + std::to_string(token) + " is out of range");
  }
  for (const int32_t source : anchors.source_of) {
    if (source < 0 || source >= num_queries)
      refuse(where + "anchor source " + std::to_string(source) + " is out of range");
  }
}

void validate_head(const AttentionCall& call, int head) {
  const HeadSchedule& schedule = call.heads[head];
  const std::string where = "head " + std::to_string(head) + ": ";
  if (call.block_energy != nullptr && (schedule.intervals != nullptr || schedule.anchors != nullptr)) {
    refuse(where + "block energy is measured on dense heads only");
  }
  if (!call.key_bias.empty() && (schedule.intervals != nullptr || schedule.anchors != nullptr)) {
    refuse(where + "key_bias goes with dense heads only");
  }
  if (schedule.summarize_skipped && schedule.intervals == nullptr) {
    refuse(where + "summarize_skipped needs intervals");
  }
  int64_t num_queries = call.q.num_tokens;
  if (schedule.anchors != nullptr) {
    validate_anchors(*schedule.anchors, num_queries, where);
    num_queries = static_cast<int64_t>(schedule.anchors->query_tokens.size());
  }
  if (schedule.intervals != nullptr) {
    const int64_t query_blocks = ceil_div(num_queries, call.block_q);
    const int64_t key_blocks = ceil_div(call.k.num_tokens, call.block_k);
    if (schedule.intervals->num_query_blocks() != query_blocks || schedule.intervals->num_key_blocks() != key_blocks) {
      refuse(where + "intervals are for " + std::to_string(schedule.intervals->num_query_blocks()) + " x " +
             std::to_string(schedule.intervals->num_key_blocks()) + " blocks, the call has " +
             std::to_string(query_blocks) + " x " + std::to_string(key_blocks));
    }
  }
}

void validate_key_bias(const AttentionCall& call) {
  if (static_cast<int64_t>(call.key_bias.size()) != call.k.num_tokens) {
    refuse("key_bias has " + std::to_string(call.key_bias.size()) + " entries, k has " +
           std::to_string(call.k.num_tokens) + " tokens");
  }
  bool any_key_left = false;
  for (const float bias : call.key_bias) {
    if (std::isnan(bias) || bias == INFINITY) refuse("key_bias holds NaN or +infinity");
    any_key_left |= bias != -INFINITY;
  }
  if (!any_key_left) refuse("key_bias is -infinity for every key; at least one key must stay");
}

/// Why a tile kernel cannot take this call here; `takes_f32` says whether it reads F32 inputs.
std::string simd_refusal(const SimdKernel& kernel, bool takes_f32, const AttentionCall& call) {
  if (!kernel.cpu_supports()) return "this processor lacks its instructions";
  if (!takes_f32 && call.q.dtype != DType::kBF16) return "inputs are not BF16";
  if (!(call.scale > 0)) return "the scale is not positive";  // it compares logits before they are scaled
  return {};
}

std::vector<AttentionKernel> make_kernel_table() {
  std::vector<AttentionKernel> table;
  const auto add = [&](const SimdKernel& kernel, bool takes_f32) {
    table.push_back({kernel.name,
                     [&kernel, takes_f32](const AttentionCall& call) { return simd_refusal(kernel, takes_f32, call); },
                     [&kernel](const AttentionCall& call) { run_tiles(call, kernel.ops()); }});
  };
  for (const SimdKernel& kernel : bf16_kernels()) add(kernel, false);
  for (const SimdKernel& kernel : float_kernels()) add(kernel, true);
  table.push_back({"reference", [](const AttentionCall&) { return std::string(); }, attention_reference});
  return table;
}

}  // namespace

void validate(const AttentionCall& call) {
  if (call.num_heads < 1) refuse("num_heads is " + std::to_string(call.num_heads));
  if (call.head_dim < 1) refuse("head_dim is " + std::to_string(call.head_dim));
  if (call.block_q < 1 || call.block_k < 1) {
    refuse("block sizes are " + std::to_string(call.block_q) + " x " + std::to_string(call.block_k) +
           "; both must be at least 1");
  }
  if (!std::isfinite(call.scale)) refuse("scale is not finite");
  validate_view(call.q, "q", call);
  validate_view(call.k, "k", call);
  validate_view(call.v, "v", call);
  validate_view(call.out, "out", call);
  if (call.q.dtype != call.k.dtype || call.q.dtype != call.v.dtype) refuse("q, k and v have different dtypes");
  if (call.out.dtype != call.q.dtype && call.out.dtype != DType::kF32) {
    refuse("out must have the dtype of q (" + std::string(dtype_name(call.q.dtype)) + ") or F32");
  }
  if (call.k.num_tokens != call.v.num_tokens) {
    refuse("k has " + std::to_string(call.k.num_tokens) + " tokens, v has " + std::to_string(call.v.num_tokens));
  }
  if (call.q.num_tokens != call.out.num_tokens) {
    refuse("q has " + std::to_string(call.q.num_tokens) + " tokens, out has " + std::to_string(call.out.num_tokens));
  }
  validate_disjoint_rows(call.out, call);
  if (!call.key_bias.empty()) validate_key_bias(call);
  if (!call.heads.empty() && static_cast<int64_t>(call.heads.size()) != call.num_heads) {
    refuse("schedules for " + std::to_string(call.heads.size()) + " heads, the call has " +
           std::to_string(call.num_heads));
  }
  for (int head = 0; head < static_cast<int>(call.heads.size()); ++head) validate_head(call, head);
}

std::span<const AttentionKernel> attention_kernels() {
  static const std::vector<AttentionKernel> table = make_kernel_table();
  return table;
}

const AttentionKernel& choose_attention_kernel(const AttentionCall& call, std::string_view name) {
  std::string known;
  for (const AttentionKernel& kernel : attention_kernels()) {
    if (!name.empty() && kernel.name != name) {
      known += (known.empty() ? "" : ", ") + std::string(kernel.name);
      continue;
    }
    const std::string reason = kernel.refusal(call);
    if (reason.empty()) return kernel;
    if (!name.empty()) refuse("kernel " + std::string(name) + " refuses: " + reason);
  }
  refuse("no kernel is named " + std::string(name) + "; there are " + known);
}

void attention(const AttentionCall& call, std::string_view kernel) {
  validate(call);
  choose_attention_kernel(call, kernel).run(call);
}

}  // namespace calibatt::cpu
