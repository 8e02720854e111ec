#include "calibrate/record/output_error.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/thread_pool.h"
#include "calibrate/record/low_discrepancy.h"

namespace calibatt {
namespace {

constexpr int kNumLevels = static_cast<int>(kEnergyLevels.size());
static_assert(kEnergyLevels.size() == kDensityLevels.size());
constexpr int kSimilarityColumns = 4;
constexpr int kQueriesPerGroup = 16;  // a group's partial results stay in the second-level cache

std::vector<float> gathered(ConstHeadsView view, std::span<const int> tokens, int head, int head_dim) {
  std::vector<float> rows(tokens.size() * head_dim);
  for (size_t i = 0; i < tokens.size(); ++i) read_row(view, tokens[i], head, head_dim, rows.data() + i * head_dim);
  return rows;
}

// The sampled queries of all query blocks.
struct Sample {
  std::vector<int> tokens;
  std::vector<int> first;  ///< [R + 1] of each query block
};

Sample sample_queries(const MeasuredCall& call, double phase) {
  Sample sample;
  for (int r = 0; r < call.geometry.num_query_blocks(); ++r) {
    sample.first.push_back(static_cast<int>(sample.tokens.size()));
    const int size = call.geometry.query_block_size(r);
    stratified_tokens(r * call.geometry.block_q, size, std::min(call.samples_per_block, size),
                      fraction(phase + r * kSilver), sample.tokens);
  }
  sample.first.push_back(static_cast<int>(sample.tokens.size()));
  return sample;
}

// The ranking of each query block's key blocks, and how many the levels keep.
struct Curve {
  const InclusionLevels* levels;
  Ranking ranking;
  bool summary;
};

/// Of num_blocks key blocks; those from first_text on hold text and come first, at every level.
void rank_row(const Curve& curve, int r, int first_text, int num_blocks, std::vector<int>& order,
              std::array<int, kNumLevels>& kept) {
  const auto row = curve.levels->row(r);
  order.resize(static_cast<size_t>(num_blocks));
  const auto ranked = order.begin() + (num_blocks - first_text);
  std::iota(order.begin(), ranked, first_text);
  std::iota(ranked, order.end(), 0);
  std::stable_sort(ranked, order.end(), [&](int a, int b) { return row[a] < row[b]; });
  const auto ladder = levels_of(curve.ranking);
  int count = num_blocks - first_text;
  for (int level = 0; level < kNumLevels; ++level) {
    while (count < num_blocks && row[order[count]] < ladder[level]) ++count;
    kept[level] = count;
  }
}

// Runs the sampled queries through the prepared head, one group of query blocks after another; `each(r, partial, first,
// count)` sees the partial results of query block r, which start at query `first` of `partial`.
template <class Each>
void for_each_query_block(const MeasuredCall& call, int head, const SampledKeys& keys, const Sample& sample,
                          const Each& each) {
  const int num_blocks = call.geometry.num_query_blocks(), dim = call.geometry.head_dim;
  const int grain = std::max(1, kQueriesPerGroup / std::max(1, call.samples_per_block));
  parallel_for(num_blocks, grain, [&](int64_t begin, int64_t end, int) {
    thread_local PartialAttention partial;
    const std::span<const int> tokens(sample.tokens.data() + sample.first[begin],
                                      sample.first[end] - sample.first[begin]);
    partial_attention(keys, gathered(call.q, tokens, head, dim), static_cast<int>(tokens.size()), call.scale, true,
                      partial);
    for (int64_t r = begin; r < end; ++r) {
      each(static_cast<int>(r), partial, sample.first[r] - sample.first[begin], sample.first[r + 1] - sample.first[r]);
    }
  });
}

/// The key block in which text begins, and behind which there is nothing else; the number of blocks: there is no text.
int first_text_block(const AttentionGeometry& video, const SampledKeys& keys) {
  return keys.num_tokens > video.num_tokens() ? video.num_tokens() / video.block_k : keys.num_blocks;
}

/// Of skipped blocks, those that are wanted.
std::vector<int> treatments_of(const MeasuredCall& call) {
  return call.only ? std::vector{static_cast<int>(*call.only)} : std::vector{0, 1};
}

InclusionLevels with_own_blocks(InclusionLevels levels, const AttentionGeometry& geometry) {
  keep_own_blocks(levels, geometry, nullptr);
  return levels;
}

std::vector<double> summed(const std::vector<std::vector<double>>& rows) {
  std::vector<double> sum(rows.front().size(), 0.0);
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) sum[i] += row[i];
  }
  return sum;
}

/// Of every key block, those of text too.
std::vector<float> harm_of_row(const SampledKeys& keys, const PartialAttention& partial, int first, int count,
                               bool summary, float weight) {
  std::vector<float> harm(static_cast<size_t>(keys.num_blocks));
  for (int i = 0; i < count; ++i) add_harm(keys, partial, first + i, summary, weight, harm.data());
  return harm;
}

void measure_copies(const MeasuredCall& call, int head, const Sample& sample, std::span<const float> projection,
                    double per_unit, HeadErrors& errors) {
  const int dim = call.geometry.head_dim;
  errors.copy_error.assign(call.anchors.size(), 0.0);
  std::vector<float> own(dim), change(dim);
  for (int r = 0; r < call.geometry.num_query_blocks(); ++r) {
    const int count = sample.first[r + 1] - sample.first[r];
    const double weight = per_unit * call.geometry.query_block_size(r) / count;
    for (int i = sample.first[r]; i < sample.first[r + 1]; ++i) {
      const int token = sample.tokens[i];
      read_row(call.out, token, head, dim, own.data());
      for (size_t a = 0; a < call.anchors.size(); ++a) {
        const int source = call.anchors[a].query_tokens[call.anchors[a].source_of[token]];
        if (source == token) continue;
        read_row(call.out, source, head, dim, change.data());
        std::vector<float> projected(dim, 0.0f);
        for (int j = 0; j < dim; ++j) {
          const float difference = change[j] - own[j];
          for (int c = 0; c < dim; ++c) projected[c] += difference * projection[static_cast<size_t>(j) * dim + c];
        }
        double square = 0;
        for (const float value : projected) square += static_cast<double>(value) * value;
        errors.copy_error[a] += weight * square;
      }
    }
  }
}

// One frame: how alike are the rows' attention (over key blocks, a few columns averaged) and that of their anchor rows?
void measure_similarity(const MeasuredCall& call, int head, const SampledKeys& keys, HeadErrors& errors) {
  const AttentionGeometry& g = call.geometry;
  const int frame = std::min(g.frames - 1, static_cast<int>(call.phase * g.frames)), blocks = keys.num_blocks;
  std::vector<int> columns, tokens;
  stratified_tokens(0, g.width, std::min(kSimilarityColumns, g.width), call.phase, columns);
  const auto position = [&](int row, int column) {
    return call.position_of_raster[(static_cast<size_t>(frame) * g.height + row) * g.width + column];
  };
  for (int row = 0; row < g.height; ++row) {
    for (const int column : columns) tokens.push_back(position(row, column));
  }
  const int per_row = static_cast<int>(columns.size());
  std::vector<float> energy(static_cast<size_t>(g.height) * blocks, 0.0f);
  parallel_for(g.height, 4, [&](int64_t begin, int64_t end, int) {
    PartialAttention partial;
    const std::span<const int> rows(tokens.data() + begin * per_row, (end - begin) * per_row);
    partial_attention(keys, gathered(call.q, rows, head, g.head_dim), static_cast<int>(rows.size()), call.scale, false,
                      partial);
    for (size_t i = 0; i < rows.size(); ++i) {
      float* sum = energy.data() + (begin + static_cast<int64_t>(i) / per_row) * blocks;
      for (int c = 0; c < blocks; ++c) sum[c] += partial.mass[i * blocks + c];
    }
  });
  errors.similarity.assign(call.anchors.size(), 1.0);
  for (size_t a = 0; a < call.anchors.size(); ++a) {
    double sum = 0;
    int copied_rows = 0;
    for (int row = 0; row < g.height; ++row) {
      const AnchorRows& anchors = call.anchors[a];
      const int source_token = anchors.query_tokens[anchors.source_of[position(row, 0)]];
      int source = 0;
      while (position(source, 0) != source_token) ++source;
      if (source == row) continue;
      const float *x = energy.data() + static_cast<size_t>(row) * blocks,
                  *y = energy.data() + static_cast<size_t>(source) * blocks;
      const double xy = std::inner_product(x, x + blocks, y, 0.0), xx = std::inner_product(x, x + blocks, x, 0.0);
      const double yy = std::inner_product(y, y + blocks, y, 0.0);
      sum += xx > 0 && yy > 0 ? xy / std::sqrt(xx * yy) : 0.0;
      ++copied_rows;
    }
    if (copied_rows > 0) errors.similarity[a] = sum / copied_rows;
  }
}

}  // namespace

std::vector<float> output_projection(const OutputContext& context, int head, int head_dim) {
  const size_t dim = head_dim;
  std::vector<float> projection(dim * dim, 0.0f);
  if (context.output_weight == nullptr || context.output_weight->empty()) {
    for (size_t i = 0; i < dim; ++i) projection[i * dim + i] = 1;
    return projection;
  }
  const Tensor& weight = *context.output_weight;
  const int64_t rows = weight.dim(0), columns = weight.dim(1);
  CALIBATT_ASSERT(columns >= (head + 1) * static_cast<int64_t>(head_dim));
  CALIBATT_ASSERT(context.gate.empty() || context.gate.size() == static_cast<size_t>(rows));
  // Gram matrix, lower triangle.
  std::vector<float> gram(dim * dim, 0.0f), row(dim);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t start = i * columns + head * static_cast<int64_t>(head_dim);
    const float gate = context.gate.empty() ? 1.0f : context.gate[i];
    for (size_t j = 0; j < dim; ++j) {
      row[j] = gate * (weight.dtype() == DType::kF32 ? weight.data<float>()[start + j]
                                                     : static_cast<float>(weight.data<bfloat16>()[start + j]));
    }
    for (size_t a = 0; a < dim; ++a) {
      for (size_t b = 0; b <= a; ++b) gram[a * dim + b] += row[a] * row[b];
    }
  }
  // Cholesky; a direction without weight (within rounding) gets a zero column.
  double largest = 0;
  for (size_t i = 0; i < dim; ++i) largest = std::max(largest, static_cast<double>(gram[i * dim + i]));
  std::vector<double> factor(dim * dim, 0.0);
  for (size_t j = 0; j < dim; ++j) {
    double pivot = gram[j * dim + j];
    for (size_t t = 0; t < j; ++t) pivot -= factor[j * dim + t] * factor[j * dim + t];
    if (pivot <= 1e-6 * largest) continue;
    factor[j * dim + j] = std::sqrt(pivot);
    for (size_t i = j + 1; i < dim; ++i) {
      double value = gram[i * dim + j];
      for (size_t t = 0; t < j; ++t) value -= factor[i * dim + t] * factor[j * dim + t];
      factor[i * dim + j] = value / factor[j * dim + j];
    }
  }
  for (size_t i = 0; i < dim * dim; ++i) projection[i] = static_cast<float>(factor[i]);
  return projection;
}

void stratified_tokens(int begin, int size, int count, double phase, std::vector<int>& tokens) {
  // Each stretch has a place of its own: equal strides would meet the strides of rows and tiles, and see one column
  // only.
  for (int i = 0; i < count; ++i) {
    const auto offset = static_cast<int>((i + fraction(phase + i * kGolden)) * size / count);
    tokens.push_back(begin + std::min(offset, size - 1));
  }
}

HeadErrors measure_head(const MeasuredCall& call, int head, const HeadReference& reference, SampledKeys& keys) {
  const AttentionGeometry& g = call.geometry;
  const int rows = g.num_query_blocks(), columns = g.num_key_blocks();
  const double per_unit = call.context.residual_square_sum > 0 ? 1 / call.context.residual_square_sum : 1.0;
  const std::vector<float> projection = output_projection(call.context, head, g.head_dim);
  prepare_keys(call.k, call.v, head, g.head_dim, g.block_k, projection, keys);

  HeadErrors errors;
  const std::vector<int> treatments = treatments_of(call);
  InclusionLevels by_energy, by_harm[2];
  std::vector<Curve> curves;
  if (!reference.energy.empty()) {
    by_energy = with_own_blocks(energy_inclusion(reference.energy, rows, columns), g);
    for (const int skipped : treatments) curves.push_back({&by_energy, Ranking::kEnergy, skipped == 1});
  }
  for (const int skipped : treatments) {
    errors.harm[skipped].assign(static_cast<size_t>(rows) * columns, 0.0f);
    curves.push_back({&by_harm[skipped], Ranking::kHarm, skipped == 1});
  }
  const auto rank_by_harm = [&](int skipped, std::span<const float> harm) {
    by_harm[skipped] = with_own_blocks(harm_inclusion(harm, rows, columns), g);
  };
  std::vector<std::vector<double>> row_errors(rows);
  const auto harm_of_block = [&](int r, const PartialAttention& partial, int first, int count) {
    const float weight = static_cast<float>(per_unit / count);
    for (const int skipped : treatments) {
      const std::vector<float> harm = harm_of_row(keys, partial, first, count, skipped == 1, weight);
      std::copy_n(harm.begin(), columns, errors.harm[skipped].begin() + static_cast<ptrdiff_t>(r) * columns);
    }
  };
  const auto levels_of_block = [&](int r, const PartialAttention& partial, int first, int count) {
    row_errors[r].assign(curves.size() * kNumLevels, 0.0);
    std::vector<int> order;
    std::array<int, kNumLevels> kept{};
    for (size_t curve = 0; curve < curves.size(); ++curve) {
      rank_row(curves[curve], r, first_text_block(g, keys), keys.num_blocks, order, kept);
      for (int i = 0; i < count; ++i) {
        add_level_errors(keys, partial, first + i, order, kept, curves[curve].summary,
                         per_unit * g.query_block_size(r) / count, row_errors[r].data() + curve * kNumLevels);
      }
    }
  };

  const Sample sample = sample_queries(call, call.phase);
  if (reference.harm[treatments[0]].empty()) {
    for_each_query_block(call, head, keys, sample, harm_of_block);
    for (const int skipped : treatments) rank_by_harm(skipped, errors.harm[skipped]);
    for_each_query_block(call, head, keys, sample_queries(call, fraction(call.phase + 0.5)), levels_of_block);
  } else {
    for (const int skipped : treatments) rank_by_harm(skipped, reference.harm[skipped]);
    for_each_query_block(call, head, keys, sample, [&](int r, const PartialAttention& partial, int first, int count) {
      harm_of_block(r, partial, first, count);
      levels_of_block(r, partial, first, count);
    });
  }
  errors.level_error = summed(row_errors);
  measure_copies(call, head, sample, projection, per_unit, errors);
  if (!call.position_of_raster.empty() && !call.anchors.empty()) measure_similarity(call, head, keys, errors);
  return errors;
}

}  // namespace calibatt
