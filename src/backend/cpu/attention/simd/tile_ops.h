#pragma once

#include <cstdint>

#include "sparsity/block_intervals.h"

/// The seam between the tile scheduler (one compilation) and the tile kernels (one compilation per instruction set).
///
/// Everything packed is in 32-bit words: one float, or a pair of bfloat16 that one dot-product instruction multiplies
/// and adds (two neighbouring head dims of a key, or the same head dim of two neighbouring values). So both dtypes
/// share one layout:
///
///   query tile    [depth][tile rows]                 words; a column is a query
///   key unit      [unit_keys / 4][depth][4]          words; four keys side by side
///   value unit    [padded_dim / 4][unit_keys / pair][4]  words; four head dims side by side
///   weight tile   [unit_keys / pair][tile rows]      words; softmax weights of one unit
///   output tile   [padded_dim][tile rows]            float
///
/// A unit is at most 64 consecutive keys of one key block: small enough that its weights stay in the first-level cache.
/// With the queries along the vector lanes, maximum, sum and rescaling are lane-wise, and keys and values are
/// broadcast.
namespace calibatt::cpu {

inline constexpr int kPanel = 4;         ///< keys (or head dims) of one register tile
inline constexpr int kMaxUnitKeys = 64;  ///< keys per unit at most
inline constexpr int kMaxTileRows = 64;  ///< queries per tile at most

/// Rows of one head in the caller's memory.
struct SourceRows {
  const void* data = nullptr;  ///< first row of the head
  bool is_bf16 = false;
  int64_t stride = 0;  ///< elements from one row to the next
};

struct TileShape {
  int head_dim = 0;
  int depth = 0;       ///< words per query or key row, a multiple of 4; what exceeds head_dim is zero
  int padded_dim = 0;  ///< head_dim rounded up to a multiple of 4
};

/// Keys and values of one head, packed in units.
struct PackedUnits {
  uint32_t* keys = nullptr;
  uint32_t* values = nullptr;
  int64_t key_unit_words = 0, value_unit_words = 0;
  int unit_keys = 0;  ///< keys a unit has room for, a multiple of 4
};

/// A worker's memory for one tile.
struct TileScratch {
  uint32_t* queries = nullptr;  ///< [depth][kMaxTileRows]
  uint32_t* weights = nullptr;  ///< [kMaxUnitKeys][kMaxTileRows]
  float* scores = nullptr;      ///< [kPanel][kMaxTileRows]
  float* output = nullptr;      ///< [padded_dim][kMaxTileRows]
  float* sums = nullptr;        ///< [num_key_blocks, or 1][kMaxTileRows] softmax sums relative to `reference`
  float* reference = nullptr;   ///< [kMaxTileRows] the logit (log2 units) that weights are relative to
  float* rows = nullptr;        ///< [4][padded_dim + depth · 2] staging of single rows
};

/// Rows that are needed soon. Their addresses jump by whole tokens, which no hardware prefetcher follows.
struct RowList {
  const void** rows = nullptr;
  int count = 0;
  int row_bytes = 0;
};

/// One tile: up to max_rows queries of one query block against the key blocks this block keeps.
struct TileJob {
  TileShape shape;
  // Queries: rows first_row … first_row + num_rows − 1 of the head's list of computed queries.
  SourceRows queries;
  const int32_t* query_tokens = nullptr;  ///< token of each computed query; null: row = token
  int64_t first_row = 0;
  int num_rows = 0;
  float scale_log2 = 1;  ///< scale · log2(e): logits become powers of two

  // Keys.
  PackedUnits units;
  const BlockInterval* intervals = nullptr;
  int num_intervals = 0;
  int units_per_block = 1;
  const int16_t* keys_in_unit = nullptr;    ///< [num_units] keys there are; 0: none
  const float* key_bias = nullptr;          ///< [num_units][unit_keys] log2 units, −inf for the keys there are not
  const uint8_t* unit_is_biased = nullptr;  ///< [num_units] whether any of the unit's biases is not 0

  // Summary tokens of skipped blocks, packed like keys; null summary_bias: none. Biases are −inf for kept blocks.
  PackedUnits summary;
  const float* summary_bias = nullptr;  ///< [num_summaries rounded up to whole units]
  int num_summaries = 0;

  // Results. Computed query i goes to the tokens destinations[destination_offsets[i] …[i + 1]); null: to token i alone.
  void* out = nullptr;  ///< first row of the head
  bool out_is_bf16 = false;
  int64_t out_stride = 0;
  const int32_t* destination_offsets = nullptr;
  const int32_t* destinations = nullptr;

  float* energy = nullptr;  ///< [num_key_blocks], added to; null: none. Then `sums` has one row per key block.
  int num_key_blocks = 0;
  float energy_weight = 0;  ///< 1 / queries of this query block

  // Fetched into the second-level cache while keys are visited.
  RowList next_queries;  ///< of the tile that this thread computes next
  RowList own_outputs;

  TileScratch scratch;
};

/// The kernels of one instruction set.
struct TileOps {
  int pair;      ///< 1: words are floats; 2: words are pairs of bfloat16
  int max_rows;  ///< queries per tile
  /// Packs `count` rows from `first` on into one unit; the rest of the unit, up to a multiple of 4 keys, becomes zero.
  void (*pack_keys)(const SourceRows& rows, int64_t first, int count, const TileShape& shape, int unit_keys,
                    uint32_t* unit, float* staging);
  void (*pack_values)(const SourceRows& rows, int64_t first, int count, const TileShape& shape, int unit_keys,
                      uint32_t* unit, float* staging);
  /// Mean of `count` rows from `first` on, as floats.
  void (*average_rows)(const SourceRows& rows, int64_t first, int count, const TileShape& shape, float* mean);
  void (*run_tile)(const TileJob& job);
};

}  // namespace calibatt::cpu
