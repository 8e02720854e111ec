#include "backend/validate_attention.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "base/ceil_div.h"
#include "base/error.h"

namespace calibatt {
namespace {

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ErrorKind::kUsage, "attention: " + message);
}

std::string names_of(std::span<const DType> dtypes) {
  std::string names;
  for (size_t i = 0; i < dtypes.size(); ++i) {
    const char* separator = i == 0 ? "" : i + 1 == dtypes.size() ? " and " : ", ";
    names += separator + std::string(dtype_name(dtypes[i]));
  }
  return names;
}

template <class View>
void validate_view(const View& view, const char* name, const AttentionCall& call) {
  const std::string field = name;
  if (view.data == nullptr) refuse(field + " has no data");
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
    refuse(
        where +
        "key_bias goes with dense heads only (a skipped block's summary has none); leave masked keys out of k and v");
  }
  validate_head_schedule(schedule, head, call.q.num_tokens, call.k.num_tokens, call.block_q, call.block_k);
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

}  // namespace

void validate_head_schedule(const HeadSchedule& schedule, int head, int64_t num_tokens, int64_t num_keys, int block_q,
                            int block_k) {
  const std::string where = "head " + std::to_string(head) + ": ";
  if (schedule.summarize_skipped && schedule.intervals == nullptr) {
    refuse(where + "summarize_skipped needs intervals");
  }
  int64_t num_queries = num_tokens;
  if (schedule.anchors != nullptr) {
    validate_anchors(*schedule.anchors, num_tokens, where);
    num_queries = static_cast<int64_t>(schedule.anchors->query_tokens.size());
  }
  if (schedule.intervals != nullptr) {
    const int64_t query_blocks = ceil_div(num_queries, block_q);
    const int64_t key_blocks = ceil_div(num_keys, block_k);
    if (schedule.intervals->num_query_blocks() != query_blocks || schedule.intervals->num_key_blocks() != key_blocks) {
      refuse(where + "intervals are for " + std::to_string(schedule.intervals->num_query_blocks()) + " x " +
             std::to_string(schedule.intervals->num_key_blocks()) + " blocks, the call has " +
             std::to_string(query_blocks) + " x " + std::to_string(key_blocks));
    }
  }
}

void validate_attention_call(const AttentionCall& call, std::span<const DType> dtypes) {
  if (call.num_heads < 1) refuse("num_heads is " + std::to_string(call.num_heads));
  if (call.head_dim < 1) refuse("head_dim is " + std::to_string(call.head_dim));
  if (call.block_q < 1 || call.block_k < 1) {
    refuse("block sizes are " + std::to_string(call.block_q) + " x " + std::to_string(call.block_k) +
           "; both must be at least 1");
  }
  if (!std::isfinite(call.scale)) refuse("scale is not finite");
  for (const auto& [view, name] : {std::pair{&call.q, "q"}, std::pair{&call.k, "k"}, std::pair{&call.v, "v"}}) {
    validate_view(*view, name, call);
    if (std::ranges::find(dtypes, view->dtype) == dtypes.end()) {
      refuse(std::string(name) + " is " + std::string(dtype_name(view->dtype)) + "; only " + names_of(dtypes) +
             " are computed");
    }
  }
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

}  // namespace calibatt
