#include "backend/cpu/biased_attention.h"

#include <algorithm>

#include "backend/cpu/row_kernels.h"
#include "backend/cpu/scratch.h"
#include "base/thread_pool.h"

namespace calibatt::cpu {
namespace {

void load_row(const ConstHeadsView& view, int64_t token, int64_t head, int64_t head_dim, float* out) {
  const int64_t offset = token * view.token_stride + head * view.head_stride;
  if (view.dtype == DType::kF32) {
    std::copy_n(static_cast<const float*>(view.data) + offset, head_dim, out);
  } else {
    widen(static_cast<const bfloat16*>(view.data) + offset, out, head_dim);
  }
}

void store_row(const float* row, const HeadsView& view, int64_t token, int64_t head, int64_t head_dim) {
  const int64_t offset = token * view.token_stride + head * view.head_stride;
  if (view.dtype == DType::kF32) {
    std::copy_n(row, head_dim, static_cast<float*>(view.data) + offset);
  } else {
    narrow(row, static_cast<bfloat16*>(view.data) + offset, head_dim);
  }
}

}  // namespace

void biased_attention(ConstHeadsView q, ConstHeadsView k, ConstHeadsView v, const Tensor& bias, int num_heads,
                      int head_dim, HeadsView out) {
  const int64_t tokens = q.num_tokens;
  CALIBATT_ASSERT(k.num_tokens == tokens && v.num_tokens == tokens && out.num_tokens == tokens);
  CALIBATT_ASSERT(bias.size() == num_heads * tokens * tokens);
  // One head at a time per thread: its keys and values, widened once, stay in the L2 cache for all its queries.
  parallel_for(num_heads, 1, [&](int64_t begin, int64_t end, int) {
    float* keys = thread_scratch_floats(Scratch::kAttention, 2 * tokens * head_dim + tokens + 2 * head_dim);
    float* values = keys + tokens * head_dim;
    float* logits = values + tokens * head_dim;
    float* query = logits + tokens;
    float* result = query + head_dim;
    for (int64_t head = begin; head < end; ++head) {
      for (int64_t s = 0; s < tokens; ++s) {
        load_row(k, s, head, head_dim, keys + s * head_dim);
        load_row(v, s, head, head_dim, values + s * head_dim);
      }
      for (int64_t t = 0; t < tokens; ++t) {
        load_row(q, t, head, head_dim, query);
        const float* bias_row = bias.f32() + (head * tokens + t) * tokens;
        for (int64_t s = 0; s < tokens; ++s) logits[s] = dot(query, keys + s * head_dim, head_dim) + bias_row[s];
        const float inverse_sum = 1.0f / softmax_row(logits, tokens);
        std::fill_n(result, head_dim, 0.0f);
        for (int64_t s = 0; s < tokens; ++s)
          add_scaled(values + s * head_dim, logits[s] * inverse_sum, result, head_dim);
        store_row(result, out, t, head, head_dim);
      }
    }
  });
}

}  // namespace calibatt::cpu
