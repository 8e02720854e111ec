#include "backend/cuda/attention/sm90_fp8/quantized.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace calibatt::cuda::sm90_fp8 {
namespace {

struct Part {
  const void* begin;
  int64_t bytes;
};

/// As the kernels read and write them.
std::vector<Part> parts_of(const AttentionArgs& args, const Quantized& q) {
  const int64_t heads = int64_t{args.batch} * args.num_heads, dim = args.head_dim, keys = heads * q.num_chunks * 64;
  std::vector<Part> parts{{q.q, heads * q.query_rows * dim},
                          {q.q_scale, heads * q.query_rows * 4},
                          {q.k, keys * dim},
                          {q.k_scale, heads * q.num_chunks * 16},
                          {q.v, keys * dim}};
  for (const float* each : {q.v_scale, q.k_mean, q.v_mean, q.v_peak}) parts.push_back({each, heads * dim * 4});
  for (const float* each : {q.v_error, q.k_sum, q.v_sum}) {
    if (each != nullptr) parts.push_back({each, heads * q.key_chunks * dim * 4});
  }
  parts.push_back({q.k_partial, heads * q.key_parts * dim * 4});
  parts.push_back({q.v_partial, heads * q.num_splits * 3 * dim * 4});
  return parts;
}

TEST(QuantizedWorkspace, HoldsEveryPartOfACall) {
  for (const int tokens : {1, 65, 4352, 75'600}) {
    for (const int summaries : {0, 1, 591}) {
      for (const bool norm : {false, true}) {
        AttentionArgs args;
        args.num_heads = 5;
        args.head_dim = tokens == 65 ? 64 : 128;
        args.num_queries = args.num_keys = tokens;
        args.num_summaries = summaries;
        args.norm.pending = norm;
        auto* const base = reinterpret_cast<char*>(uintptr_t{1} << 20);
        const Quantized q = place_quantized(args, base);
        EXPECT_EQ(q.k_sum != nullptr, summaries > 0);
        EXPECT_GE(q.num_chunks * 64, tokens + summaries);
        std::vector<Part> parts = parts_of(args, q);
        std::ranges::sort(parts, {}, &Part::begin);
        int64_t used = 0;
        for (const Part& part : parts) {
          const int64_t begin = static_cast<const char*>(part.begin) - base;
          EXPECT_GE(begin, used) << "parts overlap";
          EXPECT_EQ(begin % 256, 0);
          used = begin + part.bytes;
        }
        const auto bytes = static_cast<int64_t>(workspace_bytes(args, 132) - kCounterBytes);
        EXPECT_LE(used, bytes);
        // Nothing else: the copy of the last tile's queries may end 128 rows behind them, and ends are rounded up.
        int64_t all = 0;
        for (const Part& part : parts) all += part.bytes;
        EXPECT_LT(bytes, all + 128 * (args.head_dim + 4) + static_cast<int64_t>(parts.size()) * 256);
      }
    }
  }
}

}  // namespace
}  // namespace calibatt::cuda::sm90_fp8
