#include "backend/cpu/attention/output_changes.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/thread_pool.h"

namespace calibatt::cpu {

void copy_heads(ConstHeadsView from, HeadsView to, int num_heads, int head_dim) {
  CALIBATT_ASSERT(from.dtype == to.dtype && from.num_tokens == to.num_tokens);
  CALIBATT_ASSERT(num_heads == 1 || (from.head_stride == head_dim && to.head_stride == head_dim));
  const auto element = static_cast<int64_t>(dtype_size(from.dtype));
  const auto row_bytes = static_cast<size_t>(element * num_heads * head_dim);
  for (int64_t token = 0; token < from.num_tokens; ++token) {
    std::memcpy(static_cast<char*>(to.data) + token * to.token_stride * element,
                static_cast<const char*>(from.data) + token * from.token_stride * element, row_bytes);
  }
}

void take_video_energy(const Tensor& energy, const Tensor& tail, Tensor& video) {
  const int64_t columns = video.dim(2), rows = video.size() / columns;
  CALIBATT_ASSERT(energy.dim(2) >= columns && energy.size() == rows * energy.dim(2));
  CALIBATT_ASSERT(tail.empty() || tail.size() == rows * tail.dim(2));
  parallel_for(rows, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      float* to = video.f32() + row * columns;
      std::copy_n(energy.f32() + row * energy.dim(2), columns, to);
      if (!tail.empty()) to[columns - 1] *= tail.f32()[row * tail.dim(2)];
    }
  });
}

Tensor output_metric(const Tensor& stored, const Tensor& gate, int num_heads) {
  const int64_t out = stored.dim(0), in = stored.dim(1), dim = in / num_heads;
  CALIBATT_ASSERT(dim * num_heads == in && gate.size() == out);
  const auto element = static_cast<int64_t>(dtype_size(stored.dtype()));
  Tensor metric = Tensor::zeros(DType::kF32, {num_heads, dim, dim});
  parallel_for(num_heads, 1, [&](int64_t begin, int64_t end, int) {
    std::vector<float> row(static_cast<size_t>(dim));
    std::vector<double> sums(static_cast<size_t>(dim * dim));
    for (int64_t head = begin; head < end; ++head) {
      std::fill(sums.begin(), sums.end(), 0.0);
      for (int64_t o = 0; o < out; ++o) {
        convert_elements(static_cast<const char*>(stored.raw()) + (o * in + head * dim) * element, stored.dtype(),
                         row.data(), DType::kF32, dim);
        const double gate_squared = double{gate.f32()[o]} * gate.f32()[o];
        for (int64_t i = 0; i < dim; ++i) {
          const double factor = gate_squared * row[static_cast<size_t>(i)];
          double* to = sums.data() + i * dim;
          for (int64_t j = 0; j < dim; ++j) to[j] += factor * row[static_cast<size_t>(j)];
        }
      }
      for (int64_t i = 0; i < dim * dim; ++i) {
        metric.f32()[head * dim * dim + i] = static_cast<float>(sums[static_cast<size_t>(i)]);
      }
    }
  });
  return metric;
}

Tensor squared_changes(const Tensor& outputs, const Tensor& metric, int num_heads) {
  const int64_t groups = outputs.dim(0) - 1, rows = outputs.dim(1), width = outputs.dim(2), dim = width / num_heads;
  CALIBATT_ASSERT(groups >= 1 && dim * num_heads == width);
  CALIBATT_ASSERT(metric.empty() || metric.size() == num_heads * dim * dim);
  Tensor changes(DType::kF32, {num_heads, groups});
  const float* reference = outputs.f32() + groups * rows * width;
  parallel_for(num_heads * groups, 1, [&](int64_t begin, int64_t end, int) {
    std::vector<float> d(static_cast<size_t>(dim)), product(static_cast<size_t>(dim));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / groups, group = i % groups;
      double sum = 0;
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t at = row * width + head * dim;
        const float* own = outputs.f32() + group * rows * width + at;
        for (int64_t j = 0; j < dim; ++j) d[static_cast<size_t>(j)] = own[j] - reference[at + j];
        const float* weighted = d.data();
        if (!metric.empty()) {
          std::fill(product.begin(), product.end(), 0.0f);
          const float* m = metric.f32() + head * dim * dim;
          for (int64_t k = 0; k < dim; ++k) {
            const float factor = d[static_cast<size_t>(k)];
            for (int64_t j = 0; j < dim; ++j) product[static_cast<size_t>(j)] += factor * m[k * dim + j];
          }
          weighted = product.data();
        }
        for (int64_t j = 0; j < dim; ++j) sum += double{d[static_cast<size_t>(j)]} * weighted[j];
      }
      changes.f32()[i] = static_cast<float>(std::max(sum, 0.0));
    }
  });
  return changes;
}

}  // namespace calibatt::cpu
