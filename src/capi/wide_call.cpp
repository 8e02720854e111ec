#include "capi/wide_call.h"

#include "base/thread_pool.h"
#include "capi/arguments.h"

namespace calibatt::capi {
namespace {

/// visit(rows of the strided array, of the array without gaps), each of `dim` elements.
template <class Visit>
void for_each_row(const calibatt_heads& strided, Tensor& dense, const Visit& visit) {
  const int64_t heads = dense.dim(1), dim = dense.dim(2);
  parallel_for(dense.dim(0), 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t token = begin; token < end; ++token) {
      for (int64_t head = 0; head < heads; ++head) {
        visit(static_cast<uint16_t*>(strided.data) + token * strided.token_stride + head * strided.head_stride,
              dense.f32() + (token * heads + head) * dim);
      }
    }
  });
}

calibatt_heads sample_of(const calibatt_heads& heads, const char* name, int64_t sample) {
  calibatt_heads result = heads;
  result.data = view_of<HeadsView>(heads, name, DType::kF16, 0, sample).data;
  return result;
}

}  // namespace

WideCall::WideCall(const calibatt_call& call, const AttentionGeometry& geometry, int64_t sample)
    : tokens_(call.num_tokens),
      heads_(geometry.heads),
      dim_(geometry.head_dim),
      out_(sample_of(call.out, "call.out", sample)),
      wide_(call) {
  const auto widened = [&](const calibatt_heads& from, const char* name) {
    Tensor wide(DType::kF32, {tokens_, heads_, dim_});
    for_each_row(sample_of(from, name, sample), wide,
                 [&](const uint16_t* half, float* to) { convert_elements(half, DType::kF16, to, DType::kF32, dim_); });
    return wide;
  };
  q_ = widened(call.q, "call.q");
  k_ = widened(call.k, "call.k");
  v_ = widened(call.v, "call.v");
  wide_out_ = Tensor(DType::kF32, {tokens_, heads_, dim_});
  const auto heads_of = [&](Tensor& tensor) { return calibatt_heads{tensor.raw(), 0, heads_ * dim_, dim_}; };
  wide_.batch = 1;
  wide_.dtype = CALIBATT_F32;
  wide_.q = heads_of(q_);
  wide_.k = heads_of(k_);
  wide_.v = heads_of(v_);
  wide_.out = heads_of(wide_out_);
}

void WideCall::write_back() const {
  Tensor from = wide_out_;
  for_each_row(out_, from,
               [&](uint16_t* half, const float* row) { convert_elements(row, DType::kF32, half, DType::kF16, dim_); });
}

}  // namespace calibatt::capi
