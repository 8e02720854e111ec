#pragma once

#include <cstdint>

#include "base/dtype.h"

/// What every CUDA attention kernel is given: plain data, device pointers, sizes. Made by the host side
/// (attention.cpp, packed_schedule.cpp), read by the kernels of sm80/, sm90/ and generic/. No CUDA types, so that the
/// packing is tested on machines without CUDA.
namespace calibatt::cuda {

/// Keys are read in chunks of this many consecutive tokens; a key block is one or more whole chunks (block_k is a
/// multiple), except the last of the sequence, which may be partial.
inline constexpr int kChunkKeys = 64;
/// A tile computes at most this many query rows, all of one query block.
inline constexpr int kTileRows = 128;

/// Strided [batch, tokens, heads, head_dim] array in device memory; head_dim is contiguous; strides in elements.
struct DeviceHeads {
  void* data = nullptr;
  int64_t batch_stride = 0, token_stride = 0, head_stride = 0;
};

/// Consecutive key chunks [begin, end), in units of kChunkKeys tokens.
struct ChunkRange {
  uint32_t begin = 0, end = 0;
};

/// One unit of work of a planned call: query rows of one query block of one head, and the keys they see. The kernel
/// visits the ranges from the last chunk to the first, so that the only chunk that may be partial (the last of the
/// sequence) comes first and the mainloop needs no mask.
struct alignas(16) Tile {
  uint32_t head = 0;
  uint32_t first_row = 0;    ///< query token, or index into the head's anchor rows (rows + first_row) when kAnchors
  uint32_t num_rows = 0;     ///< 1 … kTileRows
  uint32_t flags = 0;        ///< kAnchors, kSummaries
  uint32_t first_range = 0;  ///< into ranges
  uint32_t num_ranges = 0;   ///< ≥ 1
  uint32_t num_chunks = 0;   ///< the sum over the ranges, ≥ 1
  uint32_t kept_bits = 0;  ///< kSummaries: first word in kept_bits of this query block's ⌈num_key_blocks / 32⌉ words

  static constexpr uint32_t kAnchors = 1, kSummaries = 2;
};
static_assert(sizeof(Tile) == 32);

/// Work of a kernel that computes three times 64 rows together: three halves of tiles of one head, neighbours where
/// possible, so that they see much the same keys. Half 2 t + i: rows 64 i … of tile t.
struct alignas(16) WideTile {
  static constexpr int kHalves = 3, kHalfRows = kTileRows / 2;
  static constexpr uint32_t kNone = ~0u;  ///< there is no such half; the first is always there
  uint32_t halves[kHalves] = {kNone, kNone, kNone};
  uint32_t unused = 0;
};
static_assert(sizeof(WideTile) == 16);

/// The device form of a planned call's schedule: what differs between heads and query blocks. Tiles are ordered by head
/// and, inside a head, longest first: resident CTAs then share one head's keys in L2 (measured: 4 times less DRAM
/// traffic than round robin), and the last ones to finish are short.
struct DeviceSchedule {
  const Tile* tiles = nullptr;
  uint32_t num_tiles = 0, num_wide_tiles = 0;
  const WideTile* wide_tiles = nullptr;  ///< the same tiles, in the same order of heads and lengths
  float sharing = 0;                     ///< how many halves of a wide tile see a chunk that any of them sees: 1 to 3
  const ChunkRange* ranges = nullptr;
  const uint32_t* kept_bits = nullptr;  ///< bit c of a query block: key block c is kept; its summary takes no part

  /// Anchors. anchor_tokens[a]: query token of anchor a of the call (all heads' anchors behind each other; a tile's
  /// first_row counts from the start of that array). The output row of anchor a goes to the tokens
  /// destinations[destination_offsets[a] … destination_offsets[a + 1]).
  const int32_t* anchor_tokens = nullptr;
  const uint32_t* destination_offsets = nullptr;
  const int32_t* destinations = nullptr;
};

/// What becomes of queries and keys between projection and attention: a norm over all heads of a token, then a rotation
/// (RmsNormCall of kernels/norm.h).
struct NormArgs {
  bool pending = false;  ///< else q and k are ready, and the rest means nothing
  float eps = 0;
  const float* query_weight = nullptr;  ///< [num_heads · head_dim]; null, as the keys': nothing is normalised
  const float* key_weight = nullptr;
  const float* cos = nullptr;         ///< [tokens, head_dim] (RopeTable); null: nothing is rotated
  const float* signed_sin = nullptr;  ///< with cos
};

/// out[b, t, h] = Σ_s softmax_s(scale · q[b, t, h] · k[b, s, h]) v[b, s, h], with what a plan leaves out left out.
struct AttentionArgs {
  DeviceHeads q, k, v, out;
  DType dtype = DType::kBF16;  ///< of q, k, v: kBF16, kF16; or kF32, for parity runs: the generic kernel alone takes it
  /// out is float; else of `dtype`. True with kF32. (Aligned as it is, the kernels' code is bit for bit the measured.)
  alignas(2) bool out_f32 = false;
  /// To be computed in 8 bits, by a kernel that does (16-bit inputs only; the output's type is its own). Without, no
  /// such kernel is chosen.
  bool eight_bits = false;
  DType out_dtype() const { return out_f32 ? DType::kF32 : dtype; }
  int batch = 1, num_heads = 1, head_dim = 128;
  int num_queries = 0, num_keys = 0;
  float scale_log2 = 0;  ///< scale · log2(e): logits in powers of two

  /// Planned calls: the schedule, the same for every batch entry. tiles == nullptr: dense, all rows, all keys.
  DeviceSchedule schedule;
  int block_k = 128;  ///< tokens of a key block: of a summary, and of an energy column

  /// Summaries (schedule tiles with kSummaries): [batch, num_summaries, num_heads, head_dim] mean keys and values of
  /// the key blocks, in `dtype`; summary c has the logit bias log2(tokens of block c). Kernels in 8 bits make their
  /// own.
  DeviceHeads summary_k, summary_v;
  int num_summaries = 0;

  /// Dense calls: receives E[b, h, r, c], the mean over the rows of query block r of the softmax mass on key block c,
  /// [batch, num_heads, num_query_blocks, num_key_blocks] float; block_q ≤ kTileRows then. Null: not wanted.
  float* block_energy = nullptr;
  int block_q = 128;  ///< tokens of a query block (energy rows); tiles of a dense call are cut by it
  /// Dense calls: added to the logits of the last key (log2): that key and its value then count 2^bias times.
  float last_key_bias_log2 = 0;
  /// Dense calls: receives the natural log of each row's sum of exponentials, [batch, num_heads, num_queries]. Or
  /// null. Calibration asks for it (sampled_errors.h).
  float* row_lse = nullptr;

  /// Workspace of the call, of the size the kernel asks for. The first word is the tile counter, zero at launch.
  void* workspace = nullptr;

  /// Where it is pending, q and k are as their projection left them, and the kernel does this first (sm90_fp8; others
  /// refuse).
  NormArgs norm;
};

}  // namespace calibatt::cuda
