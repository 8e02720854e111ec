#include "calibrate/record/sampled_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/dtype.h"
#include "base/error.h"
#include "base/thread_pool.h"

// foreach_target.h compiles this file once per instruction set; it has to come before highway.h.
// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "calibrate/record/sampled_attention.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "hwy/contrib/math/math-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace calibatt::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using Floats = hn::CappedTag<float, HWY_TARGET == HWY_SCALAR ? 1 : 16>;  // divides the padding of SampledKeys
using Vector = hn::Vec<Floats>;

// out[i][j] = Σ_t a[i·a_stride + t] · b[t·b_stride + j] for 4 rows i and all j < columns (a multiple of 16).
void multiply_4_rows(const float* a, size_t a_stride, const float* b, size_t b_stride, int depth, int columns,
                     float* out, size_t out_stride) {
  const Floats d;
  const auto lanes = static_cast<int>(hn::Lanes(d));
  const int step = columns % (2 * lanes) == 0 ? 2 : 1;
  for (int j = 0; j < columns; j += step * lanes) {
    Vector sum00 = hn::Zero(d), sum10 = sum00, sum20 = sum00, sum30 = sum00;
    Vector sum01 = sum00, sum11 = sum00, sum21 = sum00, sum31 = sum00;
    const float* column = b + j;
    if (step == 2) {
      for (int t = 0; t < depth; ++t, column += b_stride) {
        const Vector b0 = hn::LoadU(d, column), b1 = hn::LoadU(d, column + lanes);
        const Vector a0 = hn::Set(d, a[t]), a1 = hn::Set(d, a[a_stride + t]);
        const Vector a2 = hn::Set(d, a[2 * a_stride + t]), a3 = hn::Set(d, a[3 * a_stride + t]);
        sum00 = hn::MulAdd(a0, b0, sum00), sum01 = hn::MulAdd(a0, b1, sum01);
        sum10 = hn::MulAdd(a1, b0, sum10), sum11 = hn::MulAdd(a1, b1, sum11);
        sum20 = hn::MulAdd(a2, b0, sum20), sum21 = hn::MulAdd(a2, b1, sum21);
        sum30 = hn::MulAdd(a3, b0, sum30), sum31 = hn::MulAdd(a3, b1, sum31);
      }
      hn::StoreU(sum01, d, out + j + lanes);
      hn::StoreU(sum11, d, out + out_stride + j + lanes);
      hn::StoreU(sum21, d, out + 2 * out_stride + j + lanes);
      hn::StoreU(sum31, d, out + 3 * out_stride + j + lanes);
    } else {
      for (int t = 0; t < depth; ++t, column += b_stride) {
        const Vector b0 = hn::LoadU(d, column);
        sum00 = hn::MulAdd(hn::Set(d, a[t]), b0, sum00);
        sum10 = hn::MulAdd(hn::Set(d, a[a_stride + t]), b0, sum10);
        sum20 = hn::MulAdd(hn::Set(d, a[2 * a_stride + t]), b0, sum20);
        sum30 = hn::MulAdd(hn::Set(d, a[3 * a_stride + t]), b0, sum30);
      }
    }
    hn::StoreU(sum00, d, out + j);
    hn::StoreU(sum10, d, out + out_stride + j);
    hn::StoreU(sum20, d, out + 2 * out_stride + j);
    hn::StoreU(sum30, d, out + 3 * out_stride + j);
  }
}

float dot(const float* a, const float* b, int size) {
  const Floats d;
  const auto lanes = static_cast<int>(hn::Lanes(d));
  Vector sum = hn::Zero(d);
  int i = 0;
  for (; i + lanes <= size; i += lanes) sum = hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, b + i), sum);
  float total = hn::GetLane(hn::SumOfLanes(d, sum));
  for (; i < size; ++i) total += a[i] * b[i];
  return total;
}

float maximum(const float* a, int size) {
  float result = a[0];
  for (int i = 1; i < size; ++i) result = std::max(result, a[i]);
  return result;
}

// a[i] = exp(a[i] − shift) for i < size (a multiple of 16); returns their sum.
float exponentials(float* a, int size, float shift) {
  const Floats d;
  const Vector shifts = hn::Set(d, shift);
  Vector sum = hn::Zero(d);
  for (int i = 0; i < size; i += static_cast<int>(hn::Lanes(d))) {
    const Vector value = hn::Exp(d, hn::Sub(hn::LoadU(d, a + i), shifts));
    hn::StoreU(value, d, a + i);
    sum = hn::Add(sum, value);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

void PreparedBlock(const float* values, const float* projection, int num_rows, int dim, int padded_dim, float* out) {
  // values and out are padded to a multiple of 4 rows, the projection to padded_dim columns.
  for (int i = 0; i < num_rows; i += 4) {
    multiply_4_rows(values + static_cast<size_t>(i) * dim, dim, projection, padded_dim, dim, padded_dim,
                    out + static_cast<size_t>(i) * padded_dim, padded_dim);
  }
}

// queries: [4, dim], scaled. Results of query i start at i·num_blocks (masses) and i·num_blocks·padded_dim (values).
void FourQueries(const SampledKeys& keys, const float* queries, bool with_values, float* logits, float* mass,
                 float* summary_mass, float* value, float* output) {
  const int blocks = keys.num_blocks, padded = keys.padded_block, value_dim = keys.padded_dim;
  const size_t logit_stride = static_cast<size_t>(blocks) * padded;
  const size_t panel = static_cast<size_t>(keys.dim) * padded;
  for (int c = 0; c < blocks; ++c) {
    float* here = logits + static_cast<size_t>(c) * padded;
    multiply_4_rows(queries, keys.dim, keys.keys.data() + c * panel, padded, keys.dim, padded, here, logit_stride);
    for (int i = 0; i < 4; ++i) {
      std::fill(here + i * logit_stride + keys.block_size(c), here + i * logit_stride + padded,
                -std::numeric_limits<float>::max());
    }
  }
  float shift[4], scale[4];
  for (int i = 0; i < 4; ++i) {
    float* row = logits + i * logit_stride;
    shift[i] = maximum(row, static_cast<int>(logit_stride));
    float total = 0;
    for (int c = 0; c < blocks; ++c) {
      mass[i * blocks + c] = exponentials(row + static_cast<size_t>(c) * padded, padded, shift[i]);
      total += mass[i * blocks + c];
    }
    scale[i] = 1 / total;
    for (int c = 0; c < blocks; ++c) {
      mass[i * blocks + c] *= scale[i];
      const float logit =
          dot(queries + i * keys.dim, keys.summary_keys.data() + static_cast<size_t>(c) * keys.dim, keys.dim);
      summary_mass[i * blocks + c] = static_cast<float>(keys.block_size(c)) * std::exp(logit - shift[i]) * scale[i];
    }
  }
  if (!with_values) return;
  const size_t value_stride = static_cast<size_t>(blocks) * value_dim;
  std::fill(output, output + 4 * static_cast<size_t>(value_dim), 0.0f);
  for (int c = 0; c < blocks; ++c) {
    float* here = value + static_cast<size_t>(c) * value_dim;
    multiply_4_rows(logits + static_cast<size_t>(c) * padded, logit_stride,
                    keys.values.data() + static_cast<size_t>(c) * padded * value_dim, value_dim, keys.block_size(c),
                    value_dim, here, value_stride);
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < value_dim; ++j) {
        const float scaled = here[i * value_stride + j] * scale[i];
        here[i * value_stride + j] = scaled;
        output[i * value_dim + j] += scaled;
      }
    }
  }
}

// Σ_j (sum[j]/mass − output[j])²
float squared_change(const float* sum, float inverse_mass, const float* output, int size) {
  const Floats d;
  const Vector factor = hn::Set(d, inverse_mass);
  Vector total = hn::Zero(d);
  for (int j = 0; j < size; j += static_cast<int>(hn::Lanes(d))) {
    const Vector change = hn::MulSub(hn::LoadU(d, sum + j), factor, hn::LoadU(d, output + j));
    total = hn::MulAdd(change, change, total);
  }
  return hn::GetLane(hn::SumOfLanes(d, total));
}

void AccumulateLevelErrors(const SampledKeys& keys, const float* mass, const float* summary_mass, const float* value,
                           const float* output, const int* order, const int* kept, int num_levels, bool summary,
                           double weight, float* sum, double* error) {
  const int blocks = keys.num_blocks, size = keys.padded_dim;
  std::fill(sum, sum + size, 0.0f);
  double total_mass = 0;  // in double: levels take masses away again
  if (summary) {
    for (int c = 0; c < blocks; ++c) {
      const float* mean = keys.summary_values.data() + static_cast<size_t>(c) * size;
      for (int j = 0; j < size; ++j) sum[j] += summary_mass[c] * mean[j];
      total_mass += summary_mass[c];
    }
  }
  int done = 0;
  for (int level = 0; level < num_levels; ++level) {
    for (; done < kept[level]; ++done) {
      const int c = order[done];
      const float* exact = value + static_cast<size_t>(c) * size;
      if (summary) {
        const float* mean = keys.summary_values.data() + static_cast<size_t>(c) * size;
        for (int j = 0; j < size; ++j) sum[j] += exact[j] - summary_mass[c] * mean[j];
        total_mass += mass[c] - summary_mass[c];
      } else {
        for (int j = 0; j < size; ++j) sum[j] += exact[j];
        total_mass += mass[c];
      }
    }
    if (done == blocks) break;  // nothing is skipped: no error
    // A query may have (next to) no mass on the blocks it keeps; the softmax over them is still a softmax, so its sum
    // is bounded by the values, but here it would be 0/0.
    const auto inverse = static_cast<float>(1 / std::max(total_mass, 1e-12));
    error[level] += weight * squared_change(sum, inverse, output, size);
  }
}

void Harm(const SampledKeys& keys, const float* mass, const float* summary_mass, const float* value,
          const float* output, bool summary, float weight, float* harm) {
  const Floats d;
  const int size = keys.padded_dim;
  for (int c = 0; c < keys.num_blocks; ++c) {
    const float* exact = value + static_cast<size_t>(c) * size;
    const float* mean = keys.summary_values.data() + static_cast<size_t>(c) * size;
    // Removing (mass m, value sum s) from an output o = S/Z changes it by (m·o − s)/Z to first order; adding undoes
    // that.
    const float added = summary ? summary_mass[c] : 0.0f;
    const Vector out_factor = hn::Set(d, mass[c] - added), mean_factor = hn::Set(d, added);
    Vector total = hn::Zero(d);
    for (int j = 0; j < size; j += static_cast<int>(hn::Lanes(d))) {
      Vector change = hn::MulSub(out_factor, hn::LoadU(d, output + j), hn::LoadU(d, exact + j));
      change = hn::MulAdd(mean_factor, hn::LoadU(d, mean + j), change);
      total = hn::MulAdd(change, change, total);
    }
    harm[c] += weight * hn::GetLane(hn::SumOfLanes(d, total));
  }
}

}  // namespace calibatt::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace calibatt {
namespace {

HWY_EXPORT(PreparedBlock);
HWY_EXPORT(FourQueries);
HWY_EXPORT(AccumulateLevelErrors);
HWY_EXPORT(Harm);

int rounded_up(int value, int multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

void read_row(ConstHeadsView view, int64_t token, int head, int head_dim, float* out) {
  const int64_t start = token * view.token_stride + head * view.head_stride;
  if (view.dtype == DType::kF32) {
    std::copy_n(static_cast<const float*>(view.data) + start, head_dim, out);
  } else {
    const auto* row = static_cast<const bfloat16*>(view.data) + start;
    for (int j = 0; j < head_dim; ++j) out[j] = static_cast<float>(row[j]);
  }
}

void prepare_keys(ConstHeadsView k, ConstHeadsView v, int head, int head_dim, int block_k,
                  std::span<const float> projection, SampledKeys& keys) {
  CALIBATT_ASSERT(projection.empty() || projection.size() == static_cast<size_t>(head_dim) * head_dim);
  keys.num_tokens = static_cast<int>(k.num_tokens);
  keys.block_k = block_k;
  keys.num_blocks = (keys.num_tokens + block_k - 1) / block_k;
  keys.dim = head_dim;
  keys.padded_block = rounded_up(block_k, 16);
  keys.padded_dim = rounded_up(head_dim, 16);
  const size_t key_panel = static_cast<size_t>(head_dim) * keys.padded_block;
  const size_t value_panel = static_cast<size_t>(keys.padded_block) * keys.padded_dim;
  keys.keys.assign(key_panel * keys.num_blocks, 0.0f);
  keys.values.assign(value_panel * keys.num_blocks, 0.0f);
  keys.summary_keys.assign(static_cast<size_t>(keys.num_blocks) * head_dim, 0.0f);
  keys.summary_values.assign(static_cast<size_t>(keys.num_blocks) * keys.padded_dim, 0.0f);

  std::vector<float> padded_projection(static_cast<size_t>(head_dim) * keys.padded_dim, 0.0f);
  for (int i = 0; i < head_dim; ++i) {
    for (int j = 0; j < head_dim; ++j) {
      const size_t at = static_cast<size_t>(i) * head_dim + j;
      padded_projection[static_cast<size_t>(i) * keys.padded_dim + j] = projection.empty() ? i == j : projection[at];
    }
  }
  parallel_for(keys.num_blocks, 4, [&](int64_t begin, int64_t end, int) {
    std::vector<float> row(head_dim), raw(static_cast<size_t>(keys.padded_block) * head_dim);
    for (int64_t c = begin; c < end; ++c) {
      const int size = keys.block_size(static_cast<int>(c));
      const float share = 1.0f / static_cast<float>(size);
      float* panel = keys.keys.data() + c * key_panel;
      float* mean_key = keys.summary_keys.data() + c * head_dim;
      std::fill(raw.begin(), raw.end(), 0.0f);
      for (int t = 0; t < size; ++t) {
        read_row(k, c * block_k + t, head, head_dim, row.data());
        for (int j = 0; j < head_dim; ++j) {
          panel[static_cast<size_t>(j) * keys.padded_block + t] = row[j];
          mean_key[j] += row[j] * share;
        }
        read_row(v, c * block_k + t, head, head_dim, raw.data() + static_cast<size_t>(t) * head_dim);
      }
      float* values = keys.values.data() + c * value_panel;
      HWY_DYNAMIC_DISPATCH(PreparedBlock)
      (raw.data(), padded_projection.data(), keys.padded_block, head_dim, keys.padded_dim, values);
      float* mean_value = keys.summary_values.data() + c * keys.padded_dim;
      for (int t = 0; t < size; ++t) {
        for (int j = 0; j < keys.padded_dim; ++j)
          mean_value[j] += values[static_cast<size_t>(t) * keys.padded_dim + j] * share;
      }
    }
  });
}

void partial_attention(const SampledKeys& keys, std::span<const float> queries, int num_queries, float scale,
                       bool with_values, PartialAttention& result) {
  CALIBATT_ASSERT(queries.size() >= static_cast<size_t>(num_queries) * keys.dim);
  const int padded = rounded_up(num_queries, 4);
  const auto blocks = static_cast<size_t>(keys.num_blocks), value_dim = static_cast<size_t>(keys.padded_dim);
  std::vector<float> scaled(static_cast<size_t>(padded) * keys.dim, 0.0f);
  for (size_t i = 0; i < static_cast<size_t>(num_queries) * keys.dim; ++i) scaled[i] = queries[i] * scale;
  std::vector<float> logits(4 * blocks * keys.padded_block);
  result.mass.resize(padded * blocks);
  result.summary_mass.resize(padded * blocks);
  if (with_values) result.value.resize(padded * blocks * value_dim);
  if (with_values) result.output.resize(padded * value_dim);
  for (int i = 0; i < padded; i += 4) {
    HWY_DYNAMIC_DISPATCH(FourQueries)
    (keys, scaled.data() + static_cast<size_t>(i) * keys.dim, with_values, logits.data(),
     result.mass.data() + i * blocks, result.summary_mass.data() + i * blocks,
     with_values ? result.value.data() + i * blocks * value_dim : nullptr,
     with_values ? result.output.data() + i * value_dim : nullptr);
  }
}

void add_level_errors(const SampledKeys& keys, const PartialAttention& partial, int query, std::span<const int> order,
                      std::span<const int> kept, bool summary, double weight, double* error) {
  const auto blocks = static_cast<size_t>(keys.num_blocks), value_dim = static_cast<size_t>(keys.padded_dim);
  CALIBATT_ASSERT(order.size() == blocks);
  std::vector<float> sum(value_dim);
  HWY_DYNAMIC_DISPATCH(AccumulateLevelErrors)
  (keys, partial.mass.data() + query * blocks, partial.summary_mass.data() + query * blocks,
   partial.value.data() + query * blocks * value_dim, partial.output.data() + query * value_dim, order.data(),
   kept.data(), static_cast<int>(kept.size()), summary, weight, sum.data(), error);
}

void add_harm(const SampledKeys& keys, const PartialAttention& partial, int query, bool summary, float weight,
              float* harm) {
  const auto blocks = static_cast<size_t>(keys.num_blocks), value_dim = static_cast<size_t>(keys.padded_dim);
  HWY_DYNAMIC_DISPATCH(Harm)
  (keys, partial.mass.data() + query * blocks, partial.summary_mass.data() + query * blocks,
   partial.value.data() + query * blocks * value_dim, partial.output.data() + query * value_dim, summary, weight, harm);
}

}  // namespace calibatt
#endif  // HWY_ONCE
