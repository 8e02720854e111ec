#include "backend/cuda/attention/sm90_fp8/quantized.h"

#include <algorithm>

#include "base/ceil_div.h"

namespace calibatt::cuda::sm90_fp8 {
namespace {

constexpr int kTokensOfSplit = 256;  ///< at least, of what one block adds up
constexpr int kMostSplits = 64;
/// Keys that are normalised for the sake of their mean alone, which is any constant.
constexpr int kMostNormedSamples = 1024;
constexpr int kMostKeyParts = 256;  ///< blocks that do it
/// Fewer keys are all looked at. Of more, one in eight: what is left of the values' mean then grows in the tensor
/// core's sum of 4,096 keys no more than their differences do (independent values, 32,760 of them; the more, the less).
constexpr int kMostUnsampled = 4096, kSampleStride = 8;

/// Hands out parts of a workspace, each at a multiple of 256 bytes.
class Places {
 public:
  explicit Places(void* base) : base_(reinterpret_cast<uintptr_t>(base)) {}
  template <class T>
  T* take(int64_t count) {
    return take<T>(count, sizeof(T));
  }
  template <class T>
  T* take(int64_t count, size_t size) {
    T* const place = reinterpret_cast<T*>(base_ + used_);
    used_ += (static_cast<size_t>(count) * size + 255) / 256 * 256;
    return place;
  }
  size_t used() const { return used_; }

 private:
  uintptr_t base_;  // a number: sizes are asked for without a base
  size_t used_ = 0;
};

Quantized place(const AttentionArgs& args, Places& places) {
  Quantized q;
  const int64_t heads = int64_t{args.batch} * args.num_heads, dim = args.head_dim;
  q.query_rows = ceil_div(args.num_queries, kChunkKeys) * kChunkKeys;
  q.key_chunks = ceil_div(args.num_keys, kChunkKeys);
  q.num_chunks = q.key_chunks + 2 * ceil_div(args.num_summaries, 2 * kChunkKeys);
  q.sample = {args.num_keys, args.num_keys > kMostUnsampled ? kSampleStride : 1};
  q.num_splits = q.key_parts = std::min(kMostSplits, ceil_div(q.sample.count(), kTokensOfSplit));
  q.key_sample = q.sample;
  if (args.norm.pending) {
    q.key_sample.stride = ceil_div(args.num_keys, kMostNormedSamples);
    q.key_parts = std::min(q.key_sample.count(), kMostKeyParts);
  }
  const int64_t rows = heads * q.query_rows + kTileRows;  // the last tile's copy may end behind the last row
  q.q = places.take<uint8_t>(rows * dim);
  q.q_scale = places.take<float>(rows);
  q.k = places.take<uint8_t>(heads * q.num_chunks * kChunkKeys * dim);
  q.k_scale = places.take<float4>(heads * q.num_chunks, kKeyScaleBytes);
  q.v = places.take<uint8_t>(heads * q.num_chunks * kChunkKeys * dim);
  q.v_scale = places.take<float>(heads * dim);
  q.k_mean = places.take<float>(heads * dim);
  q.v_mean = places.take<float>(heads * dim);
  q.v_peak = places.take<float>(heads * dim);
  q.v_error = places.take<float>(heads * q.key_chunks * dim);
  if (args.num_summaries > 0) {
    q.k_sum = places.take<float>(heads * q.key_chunks * dim);
    q.v_sum = places.take<float>(heads * q.key_chunks * dim);
  }
  q.k_partial = places.take<float>(heads * q.key_parts * dim);
  q.v_partial = places.take<float>(heads * q.num_splits * 3 * dim);
  return q;
}

}  // namespace

Quantized place_quantized(const AttentionArgs& args, void* base) {
  Places places(base);
  return place(args, places);
}

size_t workspace_bytes(const AttentionArgs& args, int /*num_multiprocessors*/) {
  Places places(nullptr);
  place(args, places);
  return kCounterBytes + places.used();
}

}  // namespace calibatt::cuda::sm90_fp8
