// Between the caller's rows and the packed layouts of tile_ops.h. Included once per target.
#if defined(CALIBATT_PACK_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CALIBATT_PACK_INL_H
#undef CALIBATT_PACK_INL_H
#else
#define CALIBATT_PACK_INL_H
#endif

#include <hwy/highway.h>

#include <cstring>

#include "backend/cpu/attention/simd/tile_ops.h"

HWY_BEFORE_NAMESPACE();
namespace calibatt::cpu {
namespace HWY_NAMESPACE {
namespace {

HWY_INLINE float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

HWY_INLINE uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

/// Asks for a row, to be read soon.
HWY_INLINE void fetch_row(const void* row, int size_bytes) {
  for (int byte = 0; byte < size_bytes; byte += 64) __builtin_prefetch(static_cast<const char*>(row) + byte, 0, 2);
}

/// Asks for the row that will be packed some rows after this one. Near the end there is none: then it asks for an
/// address that is nobody's, which a prefetch may do.
HWY_INLINE void fetch_row_ahead(const SourceRows& rows, int64_t row, int head_dim) {
  constexpr int kRowsAhead = 24;
  const int64_t element_bytes = rows.is_bf16 ? 2 : 4;
  const auto address = reinterpret_cast<uintptr_t>(rows.data) + (row + kRowsAhead) * rows.stride * element_bytes;
  // NOLINTNEXTLINE(performance-no-int-to-ptr): past the end a pointer's own arithmetic would be undefined
  fetch_row(reinterpret_cast<const void*>(address), static_cast<int>(head_dim * element_bytes));
}

/// memcpy for rows of one or two hundred bytes, inline and without its alignment ladder.
template <class T>
HWY_INLINE void copy_row(const T* from, int size, T* to) {
  namespace hn = hwy::HWY_NAMESPACE;
  constexpr hn::ScalableTag<T> d;
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(d));
  int i = 0;
  for (; i + kLanes <= size; i += kLanes) hn::StoreU(hn::LoadU(d, from + i), d, to + i);
  for (; i < size; ++i) to[i] = from[i];
}

/// Row `row` as floats times `factor`, zeros up to `size`.
HWY_INLINE void load_float_row(const SourceRows& rows, int64_t row, int head_dim, int size, float factor, float* to) {
  if (rows.is_bf16) {
    const uint16_t* from = static_cast<const uint16_t*>(rows.data) + row * rows.stride;
    for (int i = 0; i < head_dim; ++i) to[i] = bits_to_float(static_cast<uint32_t>(from[i]) << 16) * factor;
  } else {
    const float* from = static_cast<const float*>(rows.data) + row * rows.stride;
    for (int i = 0; i < head_dim; ++i) to[i] = from[i] * factor;
  }
  for (int i = head_dim; i < size; ++i) to[i] = 0.0f;
}

HWY_INLINE void add_float_row(const SourceRows& rows, int64_t row, int head_dim, float* to) {
  if (rows.is_bf16) {
    const uint16_t* from = static_cast<const uint16_t*>(rows.data) + row * rows.stride;
    for (int i = 0; i < head_dim; ++i) to[i] += bits_to_float(static_cast<uint32_t>(from[i]) << 16);
  } else {
    const float* from = static_cast<const float*>(rows.data) + row * rows.stride;
    for (int i = 0; i < head_dim; ++i) to[i] += from[i];
  }
}

/// Float → bfloat16, to nearest even; a NaN stays a quiet NaN.
HWY_INLINE void store_bf16_row(const float* from, int size, uint16_t* to) {
  for (int i = 0; i < size; ++i) {
    const uint32_t word = float_to_bits(from[i]);
    const uint32_t rounded = (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
    const uint32_t quieted = (word >> 16) | 0x40u;
    to[i] = static_cast<uint16_t>((word & 0x7fffffffu) > 0x7f800000u ? quieted : rounded);
  }
}

/// Four vectors of four words as the rows of a matrix, transposed, to to[0 … 3 · to_stride].
template <class V>
HWY_INLINE void store_transposed(V r0, V r1, V r2, V r3, uint32_t* to, int64_t to_stride) {
  namespace hn = hwy::HWY_NAMESPACE;
  constexpr hn::FixedTag<uint32_t, 4> d;
  const auto lower01 = hn::InterleaveLower(d, r0, r1), upper01 = hn::InterleaveUpper(d, r0, r1);
  const auto lower23 = hn::InterleaveLower(d, r2, r3), upper23 = hn::InterleaveUpper(d, r2, r3);
  hn::StoreU(hn::ConcatLowerLower(d, lower23, lower01), d, to);
  hn::StoreU(hn::ConcatUpperUpper(d, lower23, lower01), d, to + to_stride);
  hn::StoreU(hn::ConcatLowerLower(d, upper23, upper01), d, to + 2 * to_stride);
  hn::StoreU(hn::ConcatUpperUpper(d, upper23, upper01), d, to + 3 * to_stride);
}

/// The 4×4 words at rows[0 … 3][0 … 3], transposed.
HWY_INLINE void transpose_4x4(const uint32_t* rows, int64_t stride, uint32_t* to, int64_t to_stride) {
  namespace hn = hwy::HWY_NAMESPACE;
  constexpr hn::FixedTag<uint32_t, 4> d;
  store_transposed(hn::LoadU(d, rows), hn::LoadU(d, rows + stride), hn::LoadU(d, rows + 2 * stride),
                   hn::LoadU(d, rows + 3 * stride), to, to_stride);
}

template <class Policy>
void pack_keys(const SourceRows& rows, int64_t first, int count, const TileShape& shape, int /*unit_keys*/,
               uint32_t* unit, float* staging) {
  uint32_t* staged = reinterpret_cast<uint32_t*>(staging);
  for (int key = 0; key < count; key += kPanel) {
    for (int i = 0; i < kPanel; ++i) {
      uint32_t* row = staged + i * shape.depth;
      fetch_row_ahead(rows, first + key + i, shape.head_dim);
      if (key + i < count) {
        Policy::stage_row(rows, first + key + i, shape.head_dim, shape.depth, 1.0f, row);
      } else {
        std::memset(row, 0, shape.depth * sizeof(uint32_t));
      }
    }
    for (int t = 0; t < shape.depth; t += 4) {
      transpose_4x4(staged + t, shape.depth, unit + (static_cast<int64_t>(key) * shape.depth + t * kPanel), kPanel);
    }
  }
}

template <class Policy>
void pack_values(const SourceRows& rows, int64_t first, int count, const TileShape& shape, int unit_keys,
                 uint32_t* unit, float* staging) {
  uint32_t* staged = reinterpret_cast<uint32_t*>(staging);
  const int words_per_panel = unit_keys / Policy::kPair * kPanel;
  const int padded_count = (count + kPanel - 1) / kPanel * kPanel;
  for (int key = 0; key < padded_count; key += Policy::kPair) {
    const int present = count - key < 0 ? 0 : count - key < Policy::kPair ? count - key : Policy::kPair;
    for (int i = 0; i < Policy::kPair; ++i) {
      fetch_row_ahead(rows, first + key + i, shape.head_dim);
    }
    Policy::stage_values(rows, first + key, present, shape.head_dim, shape.padded_dim, staged);
    uint32_t* to = unit + key / Policy::kPair * kPanel;
    for (int dim = 0; dim < shape.padded_dim; dim += kPanel, to += words_per_panel) {
      std::memcpy(to, staged + dim, kPanel * sizeof(uint32_t));
    }
  }
}

inline void average_rows(const SourceRows& rows, int64_t first, int count, const TileShape& shape, float* mean) {
  const float share = 1.0f / static_cast<float>(count);
  for (int i = 0; i < shape.head_dim; ++i) mean[i] = 0.0f;
  for (int row = 0; row < count; ++row) add_float_row(rows, first + row, shape.head_dim, mean);
  for (int i = 0; i < shape.head_dim; ++i) mean[i] *= share;
}

/// The tile's queries to scratch.queries; lanes without a query become zero.
template <class Policy, int kRows>
void pack_queries(const TileJob& job) {
  const int depth = job.shape.depth;
  uint32_t* staged = reinterpret_cast<uint32_t*>(job.scratch.rows);
  for (int row = 0; row < kRows; row += 4) {
    for (int i = 0; i < 4; ++i) {
      if (row + i < job.num_rows) {
        const int64_t computed = job.first_row + row + i;
        const int64_t token = job.query_tokens ? job.query_tokens[computed] : computed;
        Policy::stage_row(job.queries, token, job.shape.head_dim, depth, Policy::kScalesQueries ? job.scale_log2 : 1.0f,
                          staged + i * depth);
      } else {
        std::memset(staged + i * depth, 0, depth * sizeof(uint32_t));
      }
    }
    for (int t = 0; t < depth; t += 4) {
      transpose_4x4(staged + t, depth, job.scratch.queries + static_cast<int64_t>(t) * kRows + row, kRows);
    }
  }
}

HWY_INLINE void write_row(const TileJob& job, int64_t token, const float* row) {
  if (job.out_is_bf16) {
    store_bf16_row(row, job.shape.head_dim, static_cast<uint16_t*>(job.out) + token * job.out_stride);
  } else {
    copy_row(row, job.shape.head_dim, static_cast<float*>(job.out) + token * job.out_stride);
  }
}

/// output[dim][row] · factor[row], row by row, to the destinations of each row.
template <int kRows>
void write_rows(const TileJob& job, const float* output, const float* factor) {
  namespace hn = hwy::HWY_NAMESPACE;
  constexpr hn::FixedTag<float, 4> d;
  constexpr hn::FixedTag<uint32_t, 4> du;
  const int padded_dim = job.shape.padded_dim;
  float* staged = job.scratch.rows;
  for (int row = 0; row < job.num_rows; row += 4) {
    const auto f = hn::LoadU(d, factor + row);
    for (int dim = 0; dim < padded_dim; dim += 4) {
      const auto scaled = [&](int i) HWY_ATTR {
        return hn::BitCast(du, hn::Mul(hn::LoadU(d, output + (dim + i) * kRows + row), f));
      };
      store_transposed(scaled(0), scaled(1), scaled(2), scaled(3), reinterpret_cast<uint32_t*>(staged + dim),
                       padded_dim);
    }
    for (int i = 0; i < 4 && row + i < job.num_rows; ++i) {
      const int64_t computed = job.first_row + row + i;
      if (job.destinations == nullptr) {
        write_row(job, computed, staged + i * padded_dim);
        continue;
      }
      for (int32_t n = job.destination_offsets[computed]; n < job.destination_offsets[computed + 1]; ++n) {
        write_row(job, job.destinations[n], staged + i * padded_dim);
      }
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace calibatt::cpu
HWY_AFTER_NAMESPACE();

#endif  // CALIBATT_PACK_INL_H
