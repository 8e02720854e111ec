#include "backend/cpu/attention/simd/attention_simd.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <numeric>
#include <vector>

#include "backend/cpu/attention/simd/workspace.h"
#include "base/ceil_div.h"
#include "base/thread_pool.h"

namespace calibatt::cpu {
namespace {

constexpr size_t kPackedBudgetBytes = size_t{16} << 20;  ///< packed keys and values of the heads in flight
constexpr float kLog2E = 1.44269504088896340736f;

int round_up(int64_t a, int64_t b) {
  return static_cast<int>(ceil_div(a, b) * b);
}

/// How the call's keys are cut into units, and how large everything is.
struct Layout {
  TileShape shape;
  int block_k = 0, num_key_blocks = 0;
  int units_per_block = 0, unit_keys = 0;
  int64_t num_units = 0;
  int64_t num_summary_units = 0;  ///< of kMaxUnitKeys each; 0: no head summarises
  int64_t key_unit_words = 0, value_unit_words = 0;
  int64_t summary_key_unit_words = 0, summary_value_unit_words = 0;
  bool measures_energy = false;

  size_t packed_words_per_head() const {
    return num_units * (key_unit_words + value_unit_words) +
           num_summary_units * (summary_key_unit_words + summary_value_unit_words);
  }
};

Layout make_layout(const AttentionCall& call, const TileOps& ops) {
  Layout layout;
  layout.shape.head_dim = call.head_dim;
  layout.shape.depth = round_up(ceil_div(call.head_dim, ops.pair), 4);
  layout.shape.padded_dim = round_up(call.head_dim, kPanel);
  layout.measures_energy = call.block_energy != nullptr;
  const auto is_planned = [](const HeadSchedule& head) { return head.intervals != nullptr; };
  const bool blocks_matter = layout.measures_energy || std::ranges::any_of(call.heads, is_planned);
  const int64_t num_keys = call.k.num_tokens;
  layout.block_k = static_cast<int>(blocks_matter ? std::min<int64_t>(call.block_k, num_keys) : kMaxUnitKeys);
  layout.num_key_blocks = static_cast<int>(ceil_div(num_keys, layout.block_k));
  layout.units_per_block = static_cast<int>(ceil_div(layout.block_k, kMaxUnitKeys));
  layout.unit_keys = round_up(ceil_div(layout.block_k, layout.units_per_block), kPanel);
  layout.num_units = int64_t{layout.num_key_blocks} * layout.units_per_block;
  layout.key_unit_words = int64_t{layout.unit_keys} * layout.shape.depth;
  layout.value_unit_words = int64_t{layout.unit_keys} / ops.pair * layout.shape.padded_dim;
  if (std::ranges::any_of(call.heads, &HeadSchedule::summarize_skipped)) {
    layout.num_summary_units = ceil_div(layout.num_key_blocks, kMaxUnitKeys);
    layout.summary_key_unit_words = int64_t{kMaxUnitKeys} * layout.shape.depth;
    layout.summary_value_unit_words = int64_t{kMaxUnitKeys} / ops.pair * layout.shape.padded_dim;
  }
  return layout;
}

/// Which keys each unit holds, and what is added to their logits; the same for all heads.
struct UnitTable {
  std::vector<int64_t> first_key;
  std::vector<int16_t> num_keys;
  std::vector<float> bias;  ///< [num_units][unit_keys], log2 units
  std::vector<uint8_t> is_biased;
};

UnitTable make_unit_table(const AttentionCall& call, const Layout& layout) {
  UnitTable table;
  table.first_key.resize(layout.num_units);
  table.num_keys.resize(layout.num_units);
  table.is_biased.resize(layout.num_units);
  table.bias.assign(layout.num_units * layout.unit_keys, -std::numeric_limits<float>::infinity());
  for (int64_t unit = 0; unit < layout.num_units; ++unit) {
    const int64_t block = unit / layout.units_per_block;
    const int64_t inside = unit % layout.units_per_block * layout.unit_keys;
    const int64_t block_end = std::min<int64_t>((block + 1) * layout.block_k, call.k.num_tokens);
    const int64_t first = block * layout.block_k + inside;
    const int64_t count = std::clamp<int64_t>(block_end - first, 0, layout.unit_keys);
    table.first_key[unit] = first;
    table.num_keys[unit] = static_cast<int16_t>(count);
    table.is_biased[unit] = count % kPanel != 0 || !call.key_bias.empty();
    for (int64_t i = 0; i < count; ++i) {
      table.bias[unit * layout.unit_keys + i] = call.key_bias.empty() ? 0.0f : call.key_bias[first + i] * kLog2E;
    }
  }
  return table;
}

/// For each computed query the tokens that receive its row (the inverse of AnchorRows::source_of).
struct Destinations {
  std::vector<int32_t> offsets, tokens;
};

Destinations invert(const AnchorRows& anchors) {
  Destinations result;
  result.offsets.assign(anchors.query_tokens.size() + 1, 0);
  result.tokens.resize(anchors.source_of.size());
  for (const int32_t source : anchors.source_of) ++result.offsets[source + 1];
  std::partial_sum(result.offsets.begin(), result.offsets.end(), result.offsets.begin());
  std::vector<int32_t> next(result.offsets.begin(), result.offsets.end() - 1);
  for (size_t token = 0; token < anchors.source_of.size(); ++token) {
    result.tokens[next[anchors.source_of[token]]++] = static_cast<int32_t>(token);
  }
  return result;
}

template <class View>
auto head_data(const View& view, int head) {
  return static_cast<
             std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(view.data)>>, const char, char>*>(
             view.data) +
         head * view.head_stride * static_cast<int64_t>(dtype_size(view.dtype));
}

SourceRows head_rows(const ConstHeadsView& view, int head) {
  return {head_data(view, head), view.dtype == DType::kBF16, view.token_stride};
}

/// One query block of one head.
struct Task {
  int head = 0;
  int32_t query_block = 0;
  int64_t num_kept = 0;  ///< key blocks to visit, the measure of its length
};

class TileScheduler {
 public:
  TileScheduler(const AttentionCall& call, const TileOps& ops)
      : call_(call), ops_(ops), layout_(make_layout(call, ops)), table_(make_unit_table(call, layout_)) {
    for (const HeadSchedule& head : call.heads) {
      if (head.anchors && !destinations_.contains(head.anchors)) destinations_[head.anchors] = invert(*head.anchors);
    }
    const size_t head_words = layout_.packed_words_per_head();
    heads_in_flight_ = static_cast<int>(std::clamp<size_t>(kPackedBudgetBytes / (head_words * sizeof(uint32_t)), 1,
                                                           static_cast<size_t>(call.num_heads)));
    carve_scratch(Workspace::Carver{nullptr});  // the first pass only measures
    workspace_ = Workspace(size_bytes_);
    carve_scratch(Workspace::Carver{workspace_.data()});
  }

  void run() {
    for (int first = 0; first < call_.num_heads; first += heads_in_flight_) {
      const int last = std::min(first + heads_in_flight_, call_.num_heads);
      pack(first, last);
      const std::vector<Task> tasks = make_tasks(first, last);
      parallel_for(static_cast<int64_t>(tasks.size()), 1, [&](int64_t begin, int64_t end, int thread) {
        for (int64_t i = begin; i < end; ++i) {
          // With threads in step, this is the thread's next task.
          const int64_t later = i + num_threads();
          attend(tasks[i], later < static_cast<int64_t>(tasks.size()) ? &tasks[later] : nullptr, first,
                 workers_[thread]);
        }
      });
    }
  }

 private:
  struct Worker {
    TileScratch tile;
    float* summary_bias = nullptr;
    const void** next_queries = nullptr;  ///< [kMaxTileRows], see RowList
    const void** own_outputs = nullptr;   ///< [kMaxTileRows]
  };

  const HeadSchedule schedule(int head) const { return call_.heads.empty() ? HeadSchedule{} : call_.heads[head]; }

  int64_t num_queries(int head) const {
    const AnchorRows* anchors = schedule(head).anchors;
    return anchors ? static_cast<int64_t>(anchors->query_tokens.size()) : call_.q.num_tokens;
  }

  /// Query blocks matter to intervals and energies; without them full tiles are best.
  int block_q(int head) const {
    return schedule(head).intervals || layout_.measures_energy ? call_.block_q : ops_.max_rows;
  }

  template <class Carver>
  void carve_scratch(Carver carver) {
    const TileShape& shape = layout_.shape;
    packed_ = carver.template take<uint32_t>(layout_.packed_words_per_head() * heads_in_flight_);
    means_ = carver.template take<float>(
        layout_.num_summary_units > 0 ? size_t{2} * layout_.num_key_blocks * call_.head_dim * heads_in_flight_ : 0);
    workers_.resize(num_threads());
    for (Worker& worker : workers_) {
      worker.tile.queries = carver.template take<uint32_t>(size_t(shape.depth) * kMaxTileRows);
      worker.tile.weights = carver.template take<uint32_t>(size_t{kMaxUnitKeys} * kMaxTileRows);
      worker.tile.scores = carver.template take<float>(size_t{kPanel} * kMaxTileRows);
      worker.tile.output = carver.template take<float>(size_t(shape.padded_dim) * kMaxTileRows);
      worker.tile.sums =
          carver.template take<float>(size_t(layout_.measures_energy ? layout_.num_key_blocks : 1) * kMaxTileRows);
      worker.tile.reference = carver.template take<float>(kMaxTileRows);
      worker.tile.rows = carver.template take<float>(size_t{4} * std::max(shape.padded_dim, shape.depth));
      worker.next_queries = carver.template take<const void*>(kMaxTileRows);
      worker.own_outputs = carver.template take<const void*>(kMaxTileRows);
      worker.summary_bias = carver.template take<float>(layout_.num_summary_units * kMaxUnitKeys);
    }
    size_bytes_ = carver.size_bytes();
  }

  PackedUnits units(int slot) const {
    uint32_t* keys = packed_ + slot * layout_.packed_words_per_head();
    return {keys, keys + layout_.num_units * layout_.key_unit_words, layout_.key_unit_words, layout_.value_unit_words,
            layout_.unit_keys};
  }

  PackedUnits summary_units(int slot) const {
    uint32_t* keys = packed_ + slot * layout_.packed_words_per_head() +
                     layout_.num_units * (layout_.key_unit_words + layout_.value_unit_words);
    return {keys, keys + layout_.num_summary_units * layout_.summary_key_unit_words, layout_.summary_key_unit_words,
            layout_.summary_value_unit_words, kMaxUnitKeys};
  }

  void pack(int first_head, int last_head) {
    constexpr int64_t kBlocksPerChunk = 8;
    const int64_t chunks = ceil_div(layout_.num_key_blocks, kBlocksPerChunk);
    parallel_for(chunks * (last_head - first_head), 1, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i) {
        const int slot = static_cast<int>(i / chunks);
        const int64_t first_block = i % chunks * kBlocksPerChunk;
        const int64_t last_block = std::min<int64_t>(first_block + kBlocksPerChunk, layout_.num_key_blocks);
        pack_blocks(first_head + slot, slot, first_block, last_block, workers_[thread].tile.rows);
      }
    });
    if (layout_.num_summary_units == 0) return;
    parallel_for(last_head - first_head, 1, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t slot = begin; slot < end; ++slot) {
        if (schedule(first_head + static_cast<int>(slot)).summarize_skipped) {
          pack_summaries(static_cast<int>(slot), workers_[thread].tile.rows);
        }
      }
    });
  }

  void pack_blocks(int head, int slot, int64_t first_block, int64_t last_block, float* staging) {
    const SourceRows keys = head_rows(call_.k, head), values = head_rows(call_.v, head);
    const PackedUnits to = units(slot);
    for (int64_t unit = first_block * layout_.units_per_block; unit < last_block * layout_.units_per_block; ++unit) {
      ops_.pack_keys(keys, table_.first_key[unit], table_.num_keys[unit], layout_.shape, to.unit_keys,
                     to.keys + unit * to.key_unit_words, staging);
      ops_.pack_values(values, table_.first_key[unit], table_.num_keys[unit], layout_.shape, to.unit_keys,
                       to.values + unit * to.value_unit_words, staging);
    }
    if (!schedule(head).summarize_skipped) return;
    for (int64_t block = first_block; block < last_block; ++block) {
      const int64_t first = block * layout_.block_k;
      const int64_t count = std::min<int64_t>(layout_.block_k, call_.k.num_tokens - first);
      average_rows(keys, first, count, mean_row(slot, 0, block));
      average_rows(values, first, count, mean_row(slot, 1, block));
    }
  }

  /// Mean key (which = 0) or mean value (1) of a block, as float; BF16 tiles read it rounded, in place.
  float* mean_row(int slot, int which, int64_t block) const {
    return means_ + ((int64_t{slot} * 2 + which) * layout_.num_key_blocks + block) * call_.head_dim;
  }

  void average_rows(const SourceRows& rows, int64_t first, int64_t count, float* mean) const {
    ops_.average_rows(rows, first, static_cast<int>(count), layout_.shape, mean);
  }

  void pack_summaries(int slot, float* staging) {
    const PackedUnits to = summary_units(slot);
    const SourceRows keys{mean_row(slot, 0, 0), false, call_.head_dim};
    const SourceRows values{mean_row(slot, 1, 0), false, call_.head_dim};
    for (int64_t unit = 0; unit < layout_.num_summary_units; ++unit) {
      const int64_t first = unit * kMaxUnitKeys;
      const int count = static_cast<int>(std::min<int64_t>(kMaxUnitKeys, layout_.num_key_blocks - first));
      ops_.pack_keys(keys, first, count, layout_.shape, kMaxUnitKeys, to.keys + unit * to.key_unit_words, staging);
      ops_.pack_values(values, first, count, layout_.shape, kMaxUnitKeys, to.values + unit * to.value_unit_words,
                       staging);
    }
  }

  /// Head after head (their keys stay in the shared cache), the longest query blocks of a head first.
  std::vector<Task> make_tasks(int first_head, int last_head) const {
    std::vector<Task> tasks;
    for (int head = first_head; head < last_head; ++head) {
      const BlockIntervals* intervals = schedule(head).intervals;
      const auto num_blocks = static_cast<int32_t>(ceil_div(num_queries(head), block_q(head)));
      const auto first_task = static_cast<int64_t>(tasks.size());
      for (int32_t block = 0; block < num_blocks; ++block) {
        int64_t num_kept = layout_.num_key_blocks;
        if (intervals) {
          num_kept = 0;
          for (const BlockInterval& interval : intervals->row(block)) num_kept += interval.end - interval.begin;
        }
        tasks.push_back({head, block, num_kept});
      }
      if (intervals) {
        std::stable_sort(tasks.begin() + first_task, tasks.end(),
                         [](const Task& a, const Task& b) { return a.num_kept > b.num_kept; });
      }
    }
    return tasks;
  }

  void attend(const Task& task, const Task* later, int first_head, Worker& worker) const {
    const HeadSchedule head = schedule(task.head);
    const int slot = task.head - first_head;
    const int64_t first_row = int64_t{task.query_block} * block_q(task.head);
    const int64_t last_row = std::min(first_row + block_q(task.head), num_queries(task.head));
    const BlockInterval all{0, static_cast<uint32_t>(layout_.num_key_blocks)};

    TileJob job;
    job.shape = layout_.shape;
    job.queries = head_rows(call_.q, task.head);
    job.scale_log2 = call_.scale * kLog2E;
    job.units = units(slot);
    const std::span<const BlockInterval> intervals =
        head.intervals ? head.intervals->row(task.query_block) : std::span(&all, 1);
    job.intervals = intervals.data();
    job.num_intervals = static_cast<int>(intervals.size());
    job.units_per_block = layout_.units_per_block;
    job.keys_in_unit = table_.num_keys.data();
    job.key_bias = table_.bias.data();
    job.unit_is_biased = table_.is_biased.data();
    job.num_key_blocks = layout_.num_key_blocks;
    if (head.summarize_skipped) {
      job.summary = summary_units(slot);
      job.num_summaries = layout_.num_key_blocks;
      job.summary_bias = fill_summary_bias(intervals, worker.summary_bias);
    }
    job.out = head_data(call_.out, task.head);
    job.out_is_bf16 = call_.out.dtype == DType::kBF16;
    job.out_stride = call_.out.token_stride;
    if (head.anchors) {
      const Destinations& destinations = destinations_.at(head.anchors);
      job.query_tokens = head.anchors->query_tokens.data();
      job.destination_offsets = destinations.offsets.data();
      job.destinations = destinations.tokens.data();
    }
    if (call_.block_energy) {
      const int64_t num_query_blocks = ceil_div(call_.q.num_tokens, call_.block_q);
      job.energy = call_.block_energy + (task.head * num_query_blocks + task.query_block) * layout_.num_key_blocks;
      job.energy_weight = 1.0f / static_cast<float>(last_row - first_row);
      std::fill_n(job.energy, layout_.num_key_blocks, 0.0f);
    }
    job.scratch = worker.tile;
    for (int64_t row = first_row; row < last_row; row += ops_.max_rows) {
      job.first_row = row;
      job.num_rows = static_cast<int>(std::min<int64_t>(ops_.max_rows, last_row - row));
      list_rows_to_fetch(job, task, last_row, later, worker);
      ops_.run_tile(job);
    }
  }

  /// What the tile fetches on the side: the queries of the tile that comes next on this thread (the rest of this query
  /// block, or those of a later task), and the rows it writes itself.
  void list_rows_to_fetch(TileJob& job, const Task& task, int64_t last_row, const Task* later, Worker& worker) const {
    const int64_t q_bytes = static_cast<int64_t>(dtype_size(call_.q.dtype));
    const int64_t out_bytes = static_cast<int64_t>(dtype_size(call_.out.dtype));
    job.next_queries = {worker.next_queries, 0, static_cast<int>(call_.head_dim * q_bytes)};
    job.own_outputs = {worker.own_outputs, 0, static_cast<int>(call_.head_dim * out_bytes)};
    int head = task.head;
    int64_t next_row = job.first_row + job.num_rows;
    if (next_row == last_row && later != nullptr) {
      head = later->head;
      next_row = int64_t{later->query_block} * block_q(head);
      last_row = std::min(next_row + block_q(head), num_queries(head));
    }
    last_row = std::min<int64_t>(last_row, next_row + ops_.max_rows);
    const AnchorRows* anchors = schedule(head).anchors;
    for (int64_t row = next_row; row < last_row; ++row) {
      const int64_t token = anchors ? anchors->query_tokens[row] : row;
      job.next_queries.rows[job.next_queries.count++] =
          head_data(call_.q, head) + token * call_.q.token_stride * q_bytes;
    }
    if (job.destinations) return;  // copies: too many, and not in order
    for (int64_t row = job.first_row; row < job.first_row + job.num_rows; ++row) {
      job.own_outputs.rows[job.own_outputs.count++] =
          static_cast<const char*>(job.out) + row * job.out_stride * out_bytes;
    }
  }

  /// log2(tokens) for the blocks that are skipped, −inf for those that are kept.
  const float* fill_summary_bias(std::span<const BlockInterval> intervals, float* bias) const {
    const int num_blocks = layout_.num_key_blocks;
    const float full = std::log2(static_cast<float>(layout_.block_k));
    std::fill_n(bias, num_blocks, full);
    bias[num_blocks - 1] =
        std::log2(static_cast<float>(call_.k.num_tokens - int64_t{num_blocks - 1} * layout_.block_k));
    std::fill(bias + num_blocks, bias + layout_.num_summary_units * kMaxUnitKeys,
              -std::numeric_limits<float>::infinity());
    for (const BlockInterval& interval : intervals) {
      std::fill(bias + interval.begin, bias + interval.end, -std::numeric_limits<float>::infinity());
    }
    return bias;
  }

  const AttentionCall& call_;
  const TileOps& ops_;
  const Layout layout_;
  const UnitTable table_;
  std::map<const AnchorRows*, Destinations> destinations_;
  int heads_in_flight_ = 1;
  size_t size_bytes_ = 0;
  Workspace workspace_;
  uint32_t* packed_ = nullptr;  ///< [heads_in_flight_][packed_words_per_head]
  float* means_ = nullptr;      ///< [heads_in_flight_][2][num_key_blocks][head_dim]
  std::vector<Worker> workers_;
};

}  // namespace

#if defined(CALIBATT_HAVE_AVX512_BF16)
std::span<const SimdKernel> bf16_kernels() {
  static constexpr SimdKernel kKernels[] = {{"avx512_bf16",
                                             [] {
                                               return __builtin_cpu_supports("avx512bf16") &&
                                                      __builtin_cpu_supports("avx512vl") &&
                                                      __builtin_cpu_supports("avx512bw") &&
                                                      __builtin_cpu_supports("avx512dq");
                                             },
                                             avx512_bf16_tile_ops}};
  return kKernels;
}
#else
std::span<const SimdKernel> bf16_kernels() {
  return {};
}
#endif

void run_tiles(const AttentionCall& call, const TileOps& ops) {
  TileScheduler(call, ops).run();
}

}  // namespace calibatt::cpu
