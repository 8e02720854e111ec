#include "workload.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <stdexcept>
#include <tuple>

#include "backend/cpu/attention/attention.h"
#include "sparsity/block_mask.h"

namespace calibatt::bench {
namespace {

constexpr int kFrameTokens = 256, kRowTokens = 16;

/// Normally distributed, and the same storage each time it is asked for: cases that are compared read the same memory.
Tensor random_tensor(const Case& c, uint32_t seed) {
  static std::map<std::tuple<DType, int, int, int, uint32_t>, Tensor> made;
  Tensor& result = made[{c.dtype, c.num_tokens, c.num_heads, c.head_dim, seed}];
  if (!result.empty()) return result;
  Tensor tensor(DType::kF32, {c.num_tokens, c.num_heads, c.head_dim});
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < tensor.size(); ++i) tensor.f32()[i] = normal(random);
  return result = converted(tensor, c.dtype);
}

/// The kept key blocks of each query block: the first `density` of them by a preference that depends on the kind of
/// head.
BlockIntervals make_mask(const Case& c, int head) {
  const int num_blocks = (c.num_tokens + c.block - 1) / c.block;
  const int num_kept = std::max(1, static_cast<int>(std::lround(c.density * num_blocks)));
  const int frame = std::max(1, kFrameTokens / c.block);
  std::mt19937 random(static_cast<uint32_t>(head));
  BlockMask mask(num_blocks, num_blocks);
  for (int r = 0; r < num_blocks; ++r) {
    std::vector<std::pair<int, int>> preference(static_cast<size_t>(num_blocks));  // (rank, key block)
    for (int k = 0; k < num_blocks; ++k) {
      const int distance = std::abs(k - r), from_stripe = std::min(distance % frame, frame - distance % frame);
      const int rank = head % 3 == 0   ? distance
                       : head % 3 == 1 ? from_stripe * num_blocks + distance
                                       : static_cast<int>(random() >> 1);
      preference[static_cast<size_t>(k)] = {rank, k};
    }
    std::ranges::sort(preference);
    for (int i = 0; i < num_kept; ++i) mask.set(r, preference[static_cast<size_t>(i)].second, true);
  }
  return BlockIntervals::from_mask(mask);
}

AnchorRows make_anchors(const Case& c) {
  AttentionGeometry geometry;
  geometry.frames = c.num_tokens / kFrameTokens;
  geometry.height = geometry.width = kRowTokens;
  geometry.heads = c.num_heads;
  geometry.head_dim = c.head_dim;
  geometry.block_q = geometry.block_k = c.block;
  return make_anchor_rows(geometry, c.anchor_rows);
}

}  // namespace

Workload::Workload(const Case& bench_case) : case_(bench_case) {
  const Case& c = case_;
  q_ = random_tensor(c, 1);
  k_ = random_tensor(c, 2);
  v_ = random_tensor(c, 3);
  out_ = Tensor::zeros(c.dtype, {c.num_tokens, c.num_heads, c.head_dim});
  const auto view = [&](const Tensor& tensor) {
    return ConstHeadsView{tensor.raw(), c.dtype, c.num_tokens, int64_t{c.num_heads} * c.head_dim, c.head_dim};
  };
  call_.q = view(q_);
  call_.k = view(k_);
  call_.v = view(v_);
  call_.out = {out_.raw(), c.dtype, c.num_tokens, int64_t{c.num_heads} * c.head_dim, c.head_dim};
  call_.num_heads = c.num_heads;
  call_.head_dim = c.head_dim;
  call_.scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  call_.block_q = call_.block_k = c.block;
  if (c.density < 1) {
    for (int head = 0; head < c.num_heads; ++head) intervals_.push_back(make_mask(c, head));
    density_ = 0;
    for (const BlockIntervals& intervals : intervals_) {
      schedules_.push_back({.intervals = &intervals, .summarize_skipped = c.summarize});
      density_ += intervals.density() / c.num_heads;
    }
  }
  if (c.anchor_rows > 0) {
    anchors_ = make_anchors(c);
    schedules_.assign(static_cast<size_t>(c.num_heads), {.anchors = &anchors_});
    density_ = static_cast<double>(anchors_.query_tokens.size()) / c.num_tokens;
  }
  call_.heads = schedules_;
  if (c.energy) {
    const auto num_blocks = static_cast<size_t>((c.num_tokens + c.block - 1) / c.block);
    energy_.resize(static_cast<size_t>(c.num_heads) * num_blocks * num_blocks);
    call_.block_energy = energy_.data();
  }
}

double Workload::flops() const {
  return density_ * 4.0 * case_.num_tokens * case_.num_tokens * case_.head_dim * case_.num_heads;
}

void Workload::run() const {
  cpu::attention(call_);
}

double Workload::check() {
  run();
  const int num_blocks = (case_.num_tokens + case_.block - 1) / case_.block;
  double worst = 0;
  for (int head = 0; head < case_.num_heads; ++head) {
    for (const int block : {head, num_blocks - 1 - head}) worst = std::max(worst, check_block(head, block));
  }
  // Rounding weights, and outputs, to bfloat16 costs about 1.7e-3 each.
  const double limit = case_.dtype == DType::kBF16 ? 6e-3 : 1e-5;
  if (!(worst <= limit)) {
    throw std::runtime_error(case_.name + ": relative error " + std::to_string(worst) + " against the reference");
  }
  return worst;
}

/// One head and query block by the reference: a call of its own, whose queries are that block.
double Workload::check_block(int head, int query_block) {
  const Case& c = case_;
  const int first = query_block * c.block, count = std::min(c.block, c.num_tokens - first);
  const int64_t element_bytes = static_cast<int64_t>(dtype_size(c.dtype));
  AttentionCall block = call_;
  block.num_heads = 1;
  for (ConstHeadsView* view : {&block.q, &block.k, &block.v}) {
    view->data = static_cast<const char*>(view->data) + head * view->head_stride * element_bytes;
  }
  block.q.data = static_cast<const char*>(block.q.data) + first * block.q.token_stride * element_bytes;
  block.q.num_tokens = count;
  std::vector<float> wanted(static_cast<size_t>(count) * c.head_dim);
  block.out = {wanted.data(), DType::kF32, count, c.head_dim, 0};
  block.heads = {};
  BlockIntervals intervals;
  HeadSchedule schedule;
  if (!intervals_.empty()) {
    const auto row = intervals_[static_cast<size_t>(head)].row(query_block);
    intervals = BlockIntervals(intervals_[static_cast<size_t>(head)].num_key_blocks(),
                               {0, static_cast<uint32_t>(row.size())}, {row.begin(), row.end()});
    schedule = {.intervals = &intervals, .summarize_skipped = c.summarize};
    block.heads = {&schedule, 1};
  }
  const int num_key_blocks = (c.num_tokens + c.block - 1) / c.block;
  std::vector<float> energy(static_cast<size_t>(num_key_blocks));
  block.block_energy = c.energy ? energy.data() : nullptr;
  cpu::attention(block, "reference");

  double difference = 0, size = 0;
  for (int i = 0; i < count; ++i) {
    // A token that is no anchor has its anchor's output: only anchors can be compared with their own queries.
    if (c.anchor_rows > 0 &&
        anchors_.query_tokens[static_cast<size_t>(anchors_.source_of[static_cast<size_t>(first + i)])] != first + i) {
      continue;
    }
    for (int d = 0; d < c.head_dim; ++d) {
      const int64_t index = int64_t{first + i} * call_.out.token_stride + head * call_.out.head_stride + d;
      const float actual =
          c.dtype == DType::kF32 ? out_.f32()[index] : static_cast<float>(out_.data<bfloat16>()[index]);
      const double expected = wanted[static_cast<size_t>(i * c.head_dim + d)];
      difference += (actual - expected) * (actual - expected);
      size += expected * expected;
    }
  }
  if (c.energy) {
    const float* actual = energy_.data() + (static_cast<size_t>(head) * num_key_blocks + query_block) * num_key_blocks;
    for (int k = 0; k < num_key_blocks; ++k) {
      difference += std::pow(actual[k] - energy[static_cast<size_t>(k)], 2);
      size += std::pow(energy[static_cast<size_t>(k)], 2);
    }
  }
  return size > 0 ? std::sqrt(difference / size) : 0;
}

std::vector<char> Workload::head_major(const ConstHeadsView& view) const {
  const auto row_bytes = static_cast<int64_t>(dtype_size(case_.dtype)) * case_.head_dim;
  std::vector<char> rows;
  for (int head = 0; head < case_.num_heads; ++head) {
    for (int token = 0; token < case_.num_tokens; ++token) {
      const char* row = static_cast<const char*>(view.data) + (int64_t{token} * case_.num_heads + head) * row_bytes;
      rows.insert(rows.end(), row, row + row_bytes);
    }
  }
  return rows;
}

double Workload::difference(const std::vector<float>& head_major_rows) const {
  double difference = 0, size = 0;
  size_t i = 0;
  for (int head = 0; head < case_.num_heads; ++head) {
    for (int token = 0; token < case_.num_tokens; ++token) {
      for (int d = 0; d < case_.head_dim; ++d, ++i) {
        const int64_t index = token * call_.out.token_stride + head * call_.out.head_stride + d;
        const float ours =
            case_.dtype == DType::kF32 ? out_.data<float>()[index] : static_cast<float>(out_.data<bfloat16>()[index]);
        difference += std::pow(double{ours} - head_major_rows.at(i), 2);
        size += std::pow(double{head_major_rows.at(i)}, 2);
      }
    }
  }
  return std::sqrt(difference / size);
}

}  // namespace calibatt::bench
