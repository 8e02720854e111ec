#include "calibrate/record/level_errors.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "base/ceil_div.h"
#include "base/error.h"
#include "base/thread_pool.h"
#include "calibrate/profile/level_agreement.h"
#include "calibrate/profile/level_code.h"
#include "calibrate/record/low_discrepancy.h"
#include "sparsity/intervals_builder.h"

namespace calibatt {
namespace {

constexpr int kGroups = kNumCodeLevels + 1;  // the last one keeps every key

HeadsView rows_of(Tensor& tensor, int64_t first, int64_t count, int head_dim) {
  const int64_t width = tensor.dim(-1);
  char* data = static_cast<char*>(tensor.raw()) + first * width * static_cast<int64_t>(dtype_size(tensor.dtype()));
  return {data, tensor.dtype(), count, width, head_dim};
}

CalibrationOps& calibration_ops_of(const RecordingBackend& backend) {
  if (backend.calibration_ops != nullptr) return *backend.calibration_ops;
  throw Error(ErrorKind::kUsage, "the backend " + std::string(backend.device.name()) +
                                     " cannot measure output errors on level codes; calibrate with --measure maps, or "
                                     "with --budget energy");
}

}  // namespace

LevelErrors::LevelErrors(const RecordingBackend& backend, const ProfileHeader& header, const EarlierPrompts& earlier,
                         PromptProfile& profile)
    : device_(backend.device),
      engine_(backend.engine),
      ops_(calibration_ops_of(backend)),
      header_(header),
      earlier_(earlier),
      profile_(profile),
      rows_per_block_(std::min(header.geometry.block_q, header.geometry.num_tokens())) {}

/// Whole query blocks, one of each equal stretch of the video; where in its stretch changes with prompt, step and
/// layer.
std::vector<int> LevelErrors::sampled_blocks(int recorded, int layer) const {
  const int whole = header_.geometry.num_tokens() / rows_per_block_, count = std::min(header_.sampled_blocks, whole);
  const double phase =
      fraction(kGolden * (profile_.prompt + 1) + kSilver * (double{1} * recorded * header_.num_layers + layer));
  std::vector<int> blocks;
  for (int i = 0; i < count; ++i) {
    const int begin = static_cast<int>(int64_t{whole} * i / count),
              end = static_cast<int>(int64_t{whole} * (i + 1) / count);
    blocks.push_back(begin + static_cast<int>(fraction(phase + i * kSilver) * (end - begin)));
  }
  return blocks;
}

/// Of each head: query blocks are the sampled ones at the lowest level, then at the next, …, then with every key. Key
/// blocks that hold text are always kept (sparsity/text_extension.h).
std::vector<BlockIntervals> LevelErrors::masks(int recorded, int layer, const std::vector<int>& blocks, int text_tokens,
                                               const uint8_t* own_codes) const {
  const AttentionGeometry& g = header_.geometry;
  const int rows = g.num_query_blocks(), columns = g.num_key_blocks();
  const int all_columns = ceil_div(g.num_tokens() + text_tokens, g.block_k);
  const int first_text = text_tokens > 0 ? g.num_tokens() / g.block_k : all_columns;
  std::vector<const uint8_t*> sites;
  for (const auto& prompt : earlier_) sites.push_back(site_levels(header_, *prompt, recorded, layer));
  if (sites.empty()) sites.push_back(own_codes);
  CALIBATT_ASSERT(sites.front() != nullptr);
  std::vector<BlockIntervals> result(static_cast<size_t>(g.heads));
  parallel_for(g.heads, 1, [&](int64_t begin, int64_t end, int) {
    LevelAgreement agreement(columns, Agreement::kMean, 0.5, sites.size());
    std::vector<const uint8_t*> packed(sites.size());
    std::vector<uint16_t> levels(blocks.size() * static_cast<size_t>(columns));
    for (int64_t head = begin; head < end; ++head) {
      for (size_t i = 0; i < blocks.size(); ++i) {
        const std::span<uint16_t> row(levels.data() + i * static_cast<size_t>(columns), static_cast<size_t>(columns));
        for (size_t p = 0; p < sites.size(); ++p) {
          packed[p] = sites[p] + (head * rows + blocks[i]) * packed_row_bytes(columns);
        }
        agreement.agree(packed, row);
        keep_own_blocks(g, blocks[i], row);
      }
      IntervalsBuilder intervals(all_columns);
      for (int group = 0; group < kGroups; ++group) {
        const int level = group < kNumCodeLevels ? kCodeLevels[static_cast<size_t>(group)] : kLevelUnits;
        for (size_t i = 0; i < blocks.size(); ++i) {
          const uint16_t* row = levels.data() + i * static_cast<size_t>(columns);
          intervals.add_row([&](int c) { return c >= first_text || row[c] < level; });
        }
      }
      result[static_cast<size_t>(head)] = intervals.take();
    }
  });
  return result;
}

void LevelErrors::measure(int recorded, int layer, const Inputs& inputs, const OutputContext& context,
                          const uint8_t* own_codes) {
  const ConstHeadsView& q = inputs.q;
  const AttentionGeometry& g = header_.geometry;
  const std::vector<int> blocks = sampled_blocks(recorded, layer);
  const int64_t block_rows = rows_per_block_, rows = static_cast<int64_t>(blocks.size()) * block_rows;
  const int64_t width = int64_t{g.heads} * g.head_dim;
  if (queries_.empty()) {
    queries_ = device_.empty(q.dtype, {kGroups, rows, width});
    outputs_ = device_.empty(DType::kF32, {kGroups, rows, width});
  }
  for (size_t i = 0; i < blocks.size(); ++i) {
    const int64_t offset = int64_t{blocks[i]} * block_rows * q.token_stride * static_cast<int64_t>(dtype_size(q.dtype));
    const ConstHeadsView from{static_cast<const char*>(q.data) + offset, q.dtype, block_rows, q.token_stride,
                              q.head_stride};
    device_.copy_heads(from, rows_of(queries_, static_cast<int64_t>(i) * block_rows, block_rows, g.head_dim), g.heads,
                       g.head_dim);
  }
  for (int group = 1; group < kGroups; ++group) {
    device_.copy_heads(as_const(rows_of(queries_, 0, rows, g.head_dim)),
                       rows_of(queries_, group * rows, rows, g.head_dim), g.heads, g.head_dim);
  }

  AttentionCall call;
  call.q = as_const(rows_of(queries_, 0, kGroups * rows, g.head_dim));
  call.k = inputs.k, call.v = inputs.v;
  call.out = rows_of(outputs_, 0, kGroups * rows, g.head_dim);
  call.num_heads = g.heads;
  call.head_dim = g.head_dim;
  call.scale = 1.0f / std::sqrt(static_cast<float>(g.head_dim));
  call.block_q = rows_per_block_;
  call.block_k = g.block_k;
  Tensor metric;
  if (!context.backend_weight.empty()) {
    CALIBATT_ASSERT(context.backend_gate != nullptr);
    metric = ops_.output_metric(context.backend_weight, *context.backend_gate, g.heads);
  }
  const double residual = context.residual_square_sum > 0 ? context.residual_square_sum : 1.0;
  const double scale = static_cast<double>(g.num_tokens()) / static_cast<double>(rows) / residual;
  const std::vector<BlockIntervals> intervals = masks(recorded, layer, blocks, inputs.text_tokens, own_codes);
  std::vector<HeadSchedule> heads(static_cast<size_t>(g.heads));
  for (const Skipped skipped : {Skipped::kDrop, Skipped::kSummary}) {
    for (size_t head = 0; head < heads.size(); ++head) {
      heads[head].intervals = &intervals[head];
      heads[head].summarize_skipped = skipped == Skipped::kSummary;
    }
    call.heads = heads;
    engine_.attention(call);
    pending_.push_back(
        {recorded, layer, static_cast<int>(skipped), ops_.squared_changes(outputs_, metric, g.heads), scale});
  }
}

void LevelErrors::collect() {
  const int64_t heads = header_.geometry.heads;
  for (const PendingChanges& one : pending_) {
    const Tensor changes = device_.to_host(one.changes);
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t site_head = (int64_t{one.recorded} * header_.num_layers + one.layer) * heads + head;
      for (int level = 0; level < kNumCodeLevels; ++level) {
        const double error = one.scale * changes.f32()[head * kNumCodeLevels + level];
        if (!std::isfinite(error)) {
          throw Error(ErrorKind::kNumeric, "an attention output of recorded step " + std::to_string(one.recorded) +
                                               ", layer " + std::to_string(one.layer) +
                                               " is not finite; check the model's weights, or calibrate in f32");
        }
        profile_.level_error.f32()[(site_head * 2 + one.skipped) * kNumCodeLevels + level] = static_cast<float>(error);
      }
    }
  }
  pending_.clear();
}

}  // namespace calibatt
