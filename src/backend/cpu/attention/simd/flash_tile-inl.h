// One tile of attention for one instruction set, over a policy that says what a word is (tile_ops.h). Included once per
// target.
#if defined(CALIBATT_FLASH_TILE_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef CALIBATT_FLASH_TILE_INL_H
#undef CALIBATT_FLASH_TILE_INL_H
#else
#define CALIBATT_FLASH_TILE_INL_H
#endif

#include <hwy/highway.h>

#include <cmath>

#include "backend/cpu/attention/simd/exp2-inl.h"
#include "backend/cpu/attention/simd/pack-inl.h"
#include "backend/cpu/attention/simd/tile_ops.h"

#ifndef HWY_UNROLL  // version 0.16 of Highway
#define HWY_UNROLL(factor)
#endif

HWY_BEFORE_NAMESPACE();
namespace calibatt::cpu {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

/// A weight may exceed the weight of the reference logit by 2^kHeadroom before everything is rescaled: far from
/// overflow, and rare after the first few keys. Online softmax proper (Milakov & Gimelshein 2018) would rescale at
/// every new maximum.
constexpr float kHeadroom = 24.0f;
constexpr float kNoReference = -1e30f;  ///< below every logit, yet finite: −inf minus it is still −inf

/// The tile kernel over `kVectors` vectors of queries.
template <class Policy, int kVectors>
struct FlashTile {
  using D = hn::ScalableTag<float>;
  using V = hn::Vec<D>;
  static constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));
  static constexpr int kRows = kVectors * kLanes;  ///< queries of the tile, also the stride of its arrays
  static_assert(kRows <= kMaxTileRows);
  static constexpr int kWordStep = kPanel / Policy::kPair;  ///< words of one panel of keys

  static constexpr int kLinesPerPanel = 16;  ///< enough for 64 floats of 64 keys within 16 panels

  /// Memory that is fetched into the second-level cache bit by bit.
  struct Stream {
    const char* at = nullptr;
    int64_t num_bytes = 0;

    HWY_INLINE void fetch(int num_lines) {
      for (int i = 0; i < num_lines && num_bytes > 0; ++i, at += 64, num_bytes -= 64) __builtin_prefetch(at, 0, 2);
    }
  };

  const TileJob& job;
  const TileScratch& scratch;

  /// Where one unit's weights are summed, and the first of the sums that a rescale must reach.
  float* sums;

  bool output_is_empty = true;  ///< nothing was added yet; then it is not zeros but undefined
  int num_fetched_rows = 0;

  Stream own_values, next_unit_keys;

  explicit FlashTile(const TileJob& tile_job) : job(tile_job), scratch(tile_job.scratch), sums(tile_job.scratch.sums) {}

  // ---- mainloop --------------------------------------------------------------------------------------------

  /// Up to 64 keys and values, packed.
  struct Unit {
    const uint32_t* keys = nullptr;
    const uint32_t* values = nullptr;
    int num_keys = 0;             ///< 0: no unit
    int unit_keys = 0;            ///< keys it has room for
    const float* bias = nullptr;  ///< log2 units; null: all zero
    float* sums = nullptr;        ///< where its weights are summed
  };

  void run() {
    pack_queries<Policy, kRows>(job);
    const int num_sums = job.energy ? job.num_key_blocks : 1;
    fill(scratch.sums, 0.0f, num_sums);
    fill(scratch.reference, kNoReference, 1);
    Unit current;
    const auto attend_current = [&](const Unit& next) HWY_ATTR {
      if (current.num_keys > 0) attend(current, next.keys);
      current = next;
    };
    for (int i = 0; i < job.num_intervals; ++i) {
      for (int64_t block = job.intervals[i].begin; block < job.intervals[i].end; ++block) {
        const int64_t first = block * job.units_per_block;
        for (int64_t unit = first; unit < first + job.units_per_block; ++unit) {
          if (job.keys_in_unit[unit] > 0) attend_current(key_unit(unit, block));
        }
      }
    }
    for (int first = 0; job.summary_bias && first < job.num_summaries; first += job.summary.unit_keys) {
      attend_current(summary_unit(first));
    }
    attend_current({});
    write_out();
    if (job.energy) write_energy();
  }

  HWY_INLINE Unit key_unit(int64_t unit, int64_t block) const {
    return {job.units.keys + unit * job.units.key_unit_words,
            job.units.values + unit * job.units.value_unit_words,
            job.keys_in_unit[unit],
            job.units.unit_keys,
            job.unit_is_biased[unit] ? job.key_bias + unit * job.units.unit_keys : nullptr,
            job.energy ? scratch.sums + block * kRows : scratch.sums};
  }

  Unit summary_unit(int first) const {
    const int64_t unit = first / job.summary.unit_keys;
    return {job.summary.keys + unit * job.summary.key_unit_words,
            job.summary.values + unit * job.summary.value_unit_words,
            HWY_MIN(job.summary.unit_keys, job.num_summaries - first),
            job.summary.unit_keys,
            job.summary_bias + first,
            scratch.sums};
  }

  HWY_INLINE void attend(const Unit& unit, const uint32_t* next_keys) {
    fetch_rows();
    sums = unit.sums;
    // Values are needed in a moment, the next keys after that; with skipped blocks in between no hardware prefetcher
    // sees either coming.
    own_values = {reinterpret_cast<const char*>(unit.values), job.units.value_unit_words * 4};
    next_unit_keys = {reinterpret_cast<const char*>(next_keys), next_keys ? job.units.key_unit_words * 4 : 0};
    if (unit.bias) {
      attend_unit<true>(unit);
    } else {
      attend_unit<false>(unit);
    }
  }

  /// A few rows per unit: all at once would stall on the number of outstanding misses, and one per panel measured
  /// slower.
  HWY_INLINE void fetch_rows() {
    constexpr int kRowsPerUnit = 8;
    const int last = num_fetched_rows + kRowsPerUnit;
    for (int i = num_fetched_rows; i < HWY_MIN(last, job.next_queries.count); ++i) {
      fetch_row(job.next_queries.rows[i], job.next_queries.row_bytes);
    }
    for (int i = num_fetched_rows; i < HWY_MIN(last, job.own_outputs.count); ++i) {
      fetch_row(job.own_outputs.rows[i], job.own_outputs.row_bytes);
    }
    num_fetched_rows = last;
  }

  /// Scores, softmax weights and weighted values of one unit, four keys (a panel) at a time. Weights are relative to
  /// `reference`; when a logit exceeds it by more than the headroom, the weights so far are spent first, and then
  /// everything is rescaled.
  template <bool kBiased>
  HWY_NOINLINE void attend_unit(const Unit& unit) {
    constexpr D d;
    // A policy that scales the queries has logits in log2 units right away; so has a biased unit, where the scale is
    // applied together with the bias. Otherwise the scale is folded into the exponent.
    constexpr bool kInLog2Units = Policy::kScalesQueries || kBiased;
    const V scale = hn::Set(d, job.scale_log2);
    // Local copies: the compiler must assume that stores through pointers change members.
    float* const reference = scratch.reference;
    float* const sum = sums;
    uint32_t* weight = scratch.weights;
    float* const scores = scratch.scores;
    const int depth_share = job.shape.depth / kVectors;
    const int64_t panel_words = int64_t{kPanel} * job.shape.depth;
    const uint32_t* keys = unit.keys;
    const float* const bias = unit.bias;
    const int num_keys = unit.num_keys;
    Stream values = own_values;
    int spent = 0;
    bool has_scores = false;  // of the panel before, whose weights are `weight`
    const auto weigh = [&](int v) HWY_ATTR { weigh_scores<kInLog2Units>(v, scale, scores, reference, weight, sum); };
    for (int key = 0; key < num_keys; key += kPanel, keys += panel_words) {
      if (kBiased && is_masked(bias + key)) {
        for (int v = 0; has_scores && v < kVectors; ++v) weigh(v);
        has_scores = false;
        skip_keys(key, spent, unit);
        continue;
      }
      V s[kPanel][kVectors];
      set_zero(s);
      // The exponentials of the panel before are spread over this panel's products, which keep the multipliers busy
      // meanwhile.
      values.fetch(kLinesPerPanel);
      const uint32_t* query = scratch.queries;
      const uint32_t* panel = keys;
      HWY_UNROLL(4)
      for (int v = 0; v < kVectors; ++v) {
        for (int t = 0; t < depth_share; ++t, query += kRows, panel += kPanel) multiply_panel(query, panel, s);
        if (has_scores) weigh(v);
      }
      if constexpr (kBiased) add_bias(bias + key, scale, s);
      V largest[kVectors];
      const auto exceeded = find_exceeding<kInLog2Units>(s, scale, reference, largest);
      store_rows(s, scores);
      has_scores = true;
      weight = scratch.weights + key / Policy::kPair * kRows;
      if (HWY_UNLIKELY(!hn::AllFalse(d, exceeded))) {
        if (spent < key) add_values(unit, spent, key);
        spent = key;
        float raised[kRows];
        for (int v = 0; v < kVectors; ++v) hn::StoreU(largest[v], d, raised + v * kLanes);
        raise_reference(raised);
      }
    }
    for (int v = 0; has_scores && v < kVectors; ++v) weigh(v);
    if (spent < num_keys) add_values(unit, spent, round_up_to_panel(num_keys));
  }

  HWY_INLINE static void set_zero(V (&s)[kPanel][kVectors]) {
    HWY_UNROLL(4)
    for (int i = 0; i < kPanel; ++i) {
      HWY_UNROLL(4)
      for (int v = 0; v < kVectors; ++v) s[i][v] = hn::Zero(D());
    }
  }

  HWY_INLINE static void store_rows(const V (&s)[kPanel][kVectors], float* to) {
    HWY_UNROLL(4)
    for (int i = 0; i < kPanel; ++i) {
      HWY_UNROLL(4)
      for (int v = 0; v < kVectors; ++v) hn::Store(s[i][v], D(), to + i * kRows + v * kLanes);
    }
  }

  /// Scores of a panel to weights, which are added to `sum`: those of vector v.
  template <bool kInLog2Units>
  HWY_INLINE static void weigh_scores(int v, V scale, const float* scores, const float* reference, uint32_t* weight,
                                      float* sum) {
    constexpr D d;
    const V minus = hn::Load(d, reference + v * kLanes);
    V p[kPanel];
    HWY_UNROLL(4)
    for (int i = 0; i < kPanel; ++i) {
      const V s = hn::Load(d, scores + i * kRows + v * kLanes);
      p[i] = exp2_clamped<Policy::kExpDegree>(kInLog2Units ? hn::Sub(s, minus) : hn::MulSub(s, scale, minus));
    }
    const V before = hn::Load(d, sum + v * kLanes);
    hn::Store(Policy::store_weights(p, weight + v * kLanes, kRows, before), d, sum + v * kLanes);
  }

  /// Scores to biased logits in log2 units.
  HWY_INLINE static void add_bias(const float* bias, V scale, V (&s)[kPanel][kVectors]) {
    HWY_UNROLL(4)
    for (int i = 0; i < kPanel; ++i) {
      const V b = hn::Set(D(), bias[i]);
      HWY_UNROLL(4)
      for (int v = 0; v < kVectors; ++v) {
        s[i][v] = Policy::kScalesQueries ? hn::Add(s[i][v], b) : hn::MulAdd(s[i][v], scale, b);
      }
    }
  }

  /// The largest logit of each query in log2 units; returns in which lanes any exceeds the reference by more than the
  /// headroom.
  template <bool kInLog2Units>
  HWY_INLINE static hn::Mask<D> find_exceeding(const V (&s)[kPanel][kVectors], V scale, const float* reference,
                                               V (&largest)[kVectors]) {
    constexpr D d;
    hn::Mask<D> exceeded;
    HWY_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) {
      largest[v] = hn::Max(hn::Max(s[0][v], s[1][v]), hn::Max(s[2][v], s[3][v]));
      if (!kInLog2Units) largest[v] = hn::Mul(largest[v], scale);
      const V limit = hn::Add(hn::Load(d, reference + v * kLanes), hn::Set(d, kHeadroom));
      const auto exceeds = hn::Gt(largest[v], limit);
      exceeded = v == 0 ? exceeds : hn::Or(exceeded, exceeds);
    }
    return exceeded;
  }

  // ---- the two products ------------------------------------------------------------------------------------

  /// output += weights of keys [begin, end) of the unit · their values.
  HWY_NOINLINE void add_values(const Unit& unit, int begin, int end) {
    constexpr D d;
    const int first_word = begin / Policy::kPair, num_words = (end - begin) / Policy::kPair;
    const int panel_words = unit.unit_keys / Policy::kPair * kPanel;
    const uint32_t* weights = scratch.weights + first_word * kRows;
    const uint32_t* panels = unit.values + first_word * kPanel;
    float* output = scratch.output;
    const bool is_empty = output_is_empty;
    output_is_empty = false;
    for (int dim = 0; dim < job.shape.padded_dim; dim += kPanel) {
      V o[kPanel][kVectors];
      for (int i = 0; i < kPanel; ++i) {
        for (int v = 0; v < kVectors; ++v)
          o[i][v] = is_empty ? hn::Zero(d) : hn::Load(d, output + i * kRows + v * kLanes);
      }
      next_unit_keys.fetch(kLinesPerPanel);
      const uint32_t* weight = weights;
      const uint32_t* panel = panels;
      for (int t = 0; t < num_words; t += kWordStep) {
        HWY_UNROLL(4)
        for (int u = 0; u < kWordStep; ++u) multiply_panel(weight + u * kRows, panel + u * kPanel, o);
        weight += kWordStep * kRows;
        panel += kWordStep * kPanel;
      }
      for (int i = 0; i < kPanel; ++i) {
        for (int v = 0; v < kVectors; ++v) hn::Store(o[i][v], d, output + i * kRows + v * kLanes);
      }
      output += kPanel * kRows;
      panels += panel_words;
    }
  }

  /// acc[i][v] += row[v] · panel[i]: the rank-1 (or rank-2, for pairs) update both products are made of.
  HWY_INLINE static void multiply_panel(const uint32_t* row, const uint32_t* panel, V (&acc)[kPanel][kVectors]) {
    typename Policy::Operand r[kVectors];
    HWY_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) r[v] = Policy::load(row + v * kLanes);
    HWY_UNROLL(4)
    for (int i = 0; i < kPanel; ++i) {
      const auto b = Policy::broadcast(panel + i);
      HWY_UNROLL(4)
      for (int v = 0; v < kVectors; ++v) acc[i][v] = Policy::multiply_add(r[v], b, acc[i][v]);
    }
  }

  // ---- rare paths ------------------------------------------------------------------------------------------

  static bool is_masked(const float* bias) {
    return bias[0] == -HUGE_VALF && bias[1] == -HUGE_VALF && bias[2] == -HUGE_VALF && bias[3] == -HUGE_VALF;
  }

  /// A masked panel has no weights: spend those before it, and go on behind it.
  void skip_keys(int key, int& spent, const Unit& unit) {
    if (spent < key) add_values(unit, spent, key);
    spent = key + kPanel;
  }

  /// Raises the reference to `raised` where that exceeds the headroom, and rescales output and all sums to it.
  HWY_NOINLINE void raise_reference(const float* raised) {
    constexpr D d;
    V factor[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      const V old = hn::Load(d, scratch.reference + v * kLanes);
      const V largest = hn::LoadU(d, raised + v * kLanes);
      const V now = hn::IfThenElse(hn::Gt(largest, hn::Add(old, hn::Set(d, kHeadroom))), largest, old);
      factor[v] = exp2_clamped<5>(hn::Sub(old, now));
      hn::Store(now, d, scratch.reference + v * kLanes);
    }
    if (!output_is_empty) scale_rows(scratch.output, job.shape.padded_dim, factor);
    scale_rows(scratch.sums, static_cast<int>((sums - scratch.sums) / kRows) + 1, factor);
  }

  static void scale_rows(float* rows, int num_rows, const V (&factor)[kVectors]) {
    constexpr D d;
    for (int row = 0; row < num_rows; ++row) {
      for (int v = 0; v < kVectors; ++v) {
        float* at = rows + row * kRows + v * kLanes;
        hn::Store(hn::Mul(hn::Load(d, at), factor[v]), d, at);
      }
    }
  }

  static void fill(float* rows, float value, int num_rows) {
    constexpr D d;
    for (int i = 0; i < num_rows * kVectors; ++i) hn::Store(hn::Set(d, value), d, rows + i * kLanes);
  }

  static int round_up_to_panel(int keys) { return (keys + kPanel - 1) / kPanel * kPanel; }

  // ---- epilogue --------------------------------------------------------------------------------------------

  /// Divides by the softmax sum and writes every row to all its destinations. Leaves 1/sum in `reference`, 0 for the
  /// lanes that are no queries.
  void write_out() {
    constexpr D d;
    const int num_sums = job.energy ? job.num_key_blocks : 1;
    for (int v = 0; v < kVectors; ++v) {
      V total = hn::Zero(d);
      for (int row = 0; row < num_sums; ++row)
        total = hn::Add(total, hn::Load(d, scratch.sums + row * kRows + v * kLanes));
      hn::Store(hn::Div(hn::Set(d, 1.0f), total), d, scratch.reference + v * kLanes);
    }
    for (int row = job.num_rows; row < kRows; ++row) scratch.reference[row] = 0.0f;
    write_rows<kRows>(job, scratch.output, scratch.reference);
  }

  void write_energy() {
    constexpr D d;
    for (int block = 0; block < job.num_key_blocks; ++block) {
      V mass = hn::Zero(d);
      for (int v = 0; v < kVectors; ++v) {
        mass = hn::MulAdd(hn::Load(d, scratch.sums + block * kRows + v * kLanes),
                          hn::Load(d, scratch.reference + v * kLanes), mass);
      }
      job.energy[block] += hn::GetLane(hn::SumOfLanes(d, mass)) * job.energy_weight;
    }
  }
};

/// Vectors per tile: few queries (small query blocks, the last block) take a narrow tile instead of empty lanes.
template <class Policy>
void run_tile(const TileJob& job) {
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(hn::ScalableTag<float>()));
  if constexpr (kLanes >= 16) {
    if (job.num_rows > 2 * kLanes) return FlashTile<Policy, 4>(job).run();
  }
  if (job.num_rows > kLanes) return FlashTile<Policy, 2>(job).run();
  FlashTile<Policy, 1>(job).run();
}

template <class Policy>
TileOps make_tile_ops() {
  constexpr int kLanes = static_cast<int>(hn::MaxLanes(hn::ScalableTag<float>()));
  return {Policy::kPair,   kLanes >= 16 ? 4 * kLanes : 2 * kLanes, pack_keys<Policy>, pack_values<Policy>, average_rows,
          run_tile<Policy>};
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace calibatt::cpu
HWY_AFTER_NAMESPACE();

#endif  // CALIBATT_FLASH_TILE_INL_H
