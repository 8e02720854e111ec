#pragma once

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/tensor.h"
#include "base/thread_pool.h"

namespace calibatt::bench {

/// BF16, uniform, of this standard deviation; other values in every call.
inline Tensor random_tensor(std::vector<int64_t> shape, double deviation, double mean = 0) {
  static uint64_t seed = 0;
  Tensor tensor(DType::kBF16, std::move(shape));
  const double scale = deviation * std::sqrt(12.0);
  parallel_for(tensor.size(), int64_t{1} << 20, [&, start = ++seed](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      uint64_t x = (static_cast<uint64_t>(i) + start * 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
      x = (x ^ (x >> 31)) * 0x94d049bb133111ebu;
      const double unit = static_cast<double>(x >> 40) / static_cast<double>(1 << 24) - 0.5;
      tensor.data<bfloat16>()[i] = bfloat16(static_cast<float>(mean + scale * unit));
    }
  });
  return tensor;
}

}  // namespace calibatt::bench
