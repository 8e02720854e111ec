// What skipping and copying does to sampled queries: the host's measurement (record/output_error.h) and a GPU's
// (CalibrationOps::sampled_errors) against plain loops in float64, on the same problems.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <optional>
#include <vector>

#include "backend/cpu/attention/cpu_attention.h"
#include "base/random.h"
#include "calibrate/record/low_discrepancy.h"
#include "calibrate/record/output_error.h"
#ifdef CALIBATT_HAVE_CUDA
#include "backend/cuda/attention/cuda_attention.h"
#include "backend/cuda/device/device.h"
#endif

namespace calibatt {
namespace {

constexpr int kLevels = static_cast<int>(kDensityLevels.size()) - 1, kSamples = 4, kOut = 96;
constexpr double kResidual = 777;

using Row = std::vector<double>;

struct Problem {
  int head_dim = 128, text_tokens = 0;
  DType dtype = DType::kBF16;
  bool summarize = true, weighted = true;
  float sharpness = 1;  ///< of the logits

  friend void PrintTo(const Problem& p, std::ostream* out) {
    *out << "heads of " << p.head_dim << ", " << p.text_tokens << " text tokens, " << dtype_name(p.dtype)
         << (p.summarize ? ", summaries" : ", dropped") << (p.weighted ? "" : ", no metric") << ", sharpness "
         << p.sharpness;
  }
};

/// What is measured, over the residual stream: what the host's measure_head gives.
struct Errors {
  std::vector<double> harm;         ///< [heads, R, C]
  std::vector<double> level_error;  ///< [heads, kLevels]
  std::vector<double> copy_error;   ///< [heads]
  std::vector<double> harm_size;    ///< of the terms whose difference harm is, squared: what roundings are relative to
  std::vector<double> level_size;   ///< [heads, kLevels]: the same, over the mass that is left
};

/// 5 query blocks of 48 tokens, 4 key blocks of 64, the last of which is partial, or ends in text.
class Sampled {
 public:
  explicit Sampled(const Problem& problem) : problem_(problem) {
    g.frames = 4, g.height = 6, g.width = 10;
    g.heads = 3, g.head_dim = problem.head_dim;
    g.block_q = 48, g.block_k = 64;
    all = g.num_tokens() + problem.text_tokens;
    width = int64_t{g.heads} * g.head_dim;
    TorchGenerator generator(5);
    Tensor values = generator.randn({all, 3 * width});
    for (int64_t i = 0; i < values.size(); ++i) {
      const int64_t column = i % (3 * width), token = i / (3 * width);
      // Neighbouring tokens are alike, so that summaries say something.
      if (column >= width) values.f32()[i] = 0.4f * values.f32()[i] + std::sin(0.02f * (token + 3 * (column % 50)));
      if (column < width) values.f32()[i] *= problem.sharpness;
    }
    qkv = converted(values, problem.dtype);
    exact = converted(qkv, DType::kF32);
    weight = generator.randn({kOut, width}), gate = generator.randn({kOut});
    anchors.push_back(make_anchor_rows(g, 2));
    for (int r = 0; r < g.num_query_blocks(); ++r) {
      stratified_tokens(r * g.block_q, g.block_q, kSamples, fraction(kPhase + r * kSilver), tokens);
    }
    const Tensor noise = generator.randn({g.heads, g.num_query_blocks(), g.num_key_blocks()});
    for (int64_t i = 0; i < noise.size(); ++i) ranking.push_back(std::exp(noise.f32()[i]));
    make_rungs();
    attend();
  }

  ConstHeadsView part(const Tensor& tensor, int index) const {
    const char* data = static_cast<const char*>(tensor.raw()) + index * width * dtype_size(tensor.dtype());
    return {data, tensor.dtype(), all, 3 * width, g.head_dim};
  }
  ConstHeadsView output(const Tensor& tensor) const { return {tensor.raw(), tensor.dtype(), all, width, g.head_dim}; }
  float scale() const { return 1 / std::sqrt(static_cast<float>(g.head_dim)); }
  const Problem& problem() const { return problem_; }

  Errors expected() const;

  static constexpr double kPhase = 0.3;
  AttentionGeometry g;
  int64_t all = 0, width = 0;
  Tensor qkv, exact, out, weight, gate;  ///< exact: qkv as floats; out: dense, of the problem's dtype
  std::vector<AnchorRows> anchors;
  std::vector<int> tokens;
  std::vector<float> ranking;  ///< [heads, R, C] of an earlier prompt
  std::vector<uint8_t> rungs;  ///< what follows from it

 private:
  /// Kept at level i iff rung ≤ i, by the levels of the ranking.
  void make_rungs() {
    const int rows = g.num_query_blocks(), columns = g.num_key_blocks();
    const int first_text = problem_.text_tokens > 0 ? g.num_tokens() / g.block_k : columns;
    for (int head = 0; head < g.heads; ++head) {
      InclusionLevels levels = harm_inclusion(
          {ranking.data() + static_cast<ptrdiff_t>(head) * rows * columns, static_cast<size_t>(rows * columns)}, rows,
          columns);
      keep_own_blocks(levels, g, nullptr);
      for (int r = 0; r < rows; ++r) {
        for (int c = 0; c < columns; ++c) {
          int rung = 0;
          while (rung < kLevels && kDensityLevels[rung] <= levels.at(r, c)) ++rung;
          rungs.push_back(static_cast<uint8_t>(c >= first_text ? 0 : rung));
        }
      }
    }
  }
  void attend() {
    Tensor floats(DType::kF32, {all, width});
    AttentionCall call;
    call.q = part(exact, 0), call.k = part(exact, 1), call.v = part(exact, 2);
    call.out = {floats.raw(), DType::kF32, all, width, g.head_dim};
    call.num_heads = g.heads, call.head_dim = g.head_dim, call.scale = scale();
    cpu::CpuAttention().attention(call);
    out = converted(floats, problem_.dtype);
  }
  Row row(const Tensor& tensor, int index, int64_t token, int head, int parts) const {
    const float* from = tensor.f32() + (token * parts + index) * width + int64_t{head} * g.head_dim;
    return {from, from + g.head_dim};
  }
  struct Parts;
  Parts parts_of(int token, int head) const;
  Row change_by_mask(const Parts& parts, const std::function<bool(int c)>& keeps, double& kept) const;
  double residual_norm(const Row& change, int head) const {
    double sum = 0;
    for (int o = 0; o < kOut && problem_.weighted; ++o) {
      double value = 0;
      for (int i = 0; i < g.head_dim; ++i) value += change[i] * weight.f32()[o * width + head * g.head_dim + i];
      sum += value * value * gate.f32()[o] * gate.f32()[o];
    }
    if (!problem_.weighted) {
      for (const double value : change) sum += value * value;
    }
    return sum / kResidual;
  }
  const Problem problem_;
};

/// One query's attention, taken apart by key block.
struct Sampled::Parts {
  std::vector<double> mass, added;  ///< [blocks]: of the block, and of its summary token
  std::vector<Row> sum, mean_v;     ///< [blocks]: weighted values, and the summary's value
  Row output;
};

Sampled::Parts Sampled::parts_of(int token, int head) const {
  const auto blocks = static_cast<size_t>((all + g.block_k - 1) / g.block_k), dim = static_cast<size_t>(g.head_dim);
  const Row q = row(exact, 0, token, head, 3);
  Parts parts{std::vector<double>(blocks), std::vector<double>(blocks), std::vector<Row>(blocks, Row(dim)),
              std::vector<Row>(blocks, Row(dim)), Row(dim)};
  std::vector<Row> mean_k(blocks, Row(dim));
  std::vector<double> size(blocks);
  double total = 0;
  const auto weight_of = [&](const Row& k) {
    return std::exp(std::inner_product(q.begin(), q.end(), k.begin(), 0.0) * scale());
  };
  for (int64_t key = 0; key < all; ++key) {
    const auto c = static_cast<size_t>(key / g.block_k);
    const Row k = row(exact, 1, key, head, 3), v = row(exact, 2, key, head, 3);
    const double p = weight_of(k);
    parts.mass[c] += p, total += p, ++size[c];
    for (size_t i = 0; i < dim; ++i) parts.sum[c][i] += p * v[i], mean_k[c][i] += k[i], parts.mean_v[c][i] += v[i];
  }
  for (size_t c = 0; c < blocks; ++c) {
    parts.mass[c] /= total;
    for (size_t i = 0; i < dim; ++i) {
      parts.output[i] += parts.sum[c][i] /= total;
      mean_k[c][i] /= size[c], parts.mean_v[c][i] /= size[c];
    }
    parts.added[c] = problem_.summarize ? size[c] * weight_of(mean_k[c]) / total : 0.0;
  }
  return parts;
}

/// What the head's output is changed by when only such blocks are kept; adds the mass that is left to `kept`.
Row Sampled::change_by_mask(const Parts& parts, const std::function<bool(int c)>& keeps, double& kept) const {
  Row changed(parts.output.size());
  for (size_t c = 0; c < parts.mass.size(); ++c) {
    const bool is_kept = keeps(static_cast<int>(c));
    kept += is_kept ? parts.mass[c] : parts.added[c];
    for (size_t i = 0; i < changed.size(); ++i) {
      changed[i] += is_kept ? parts.sum[c][i] : parts.added[c] * parts.mean_v[c][i];
    }
  }
  for (size_t i = 0; i < changed.size(); ++i) changed[i] = changed[i] / kept - parts.output[i];
  return changed;
}

Errors Sampled::expected() const {
  const int rows = g.num_query_blocks(), columns = g.num_key_blocks();
  const auto dim = static_cast<size_t>(g.head_dim);
  const Tensor dense = converted(out, DType::kF32);
  Errors errors;
  errors.harm.resize(static_cast<size_t>(g.heads) * rows * columns);
  errors.harm_size = errors.harm;
  errors.level_error.resize(static_cast<size_t>(g.heads) * kLevels);
  errors.level_size = errors.level_error;
  errors.copy_error.resize(g.heads);
  const double per_row = static_cast<double>(g.block_q) / kSamples;
  for (int head = 0; head < g.heads; ++head) {
    for (const int token : tokens) {
      const Parts parts = parts_of(token, head);
      const size_t first = (static_cast<size_t>(head) * rows + token / g.block_q) * columns;
      for (int c = 0; c < columns; ++c) {
        Row change(dim), size_of(dim);
        for (size_t i = 0; i < dim; ++i) {
          change[i] = (parts.mass[c] - parts.added[c]) * parts.output[i] - parts.sum[c][i] +
                      parts.added[c] * parts.mean_v[c][i];
          size_of[i] = parts.mass[c] * std::abs(parts.output[i]) + std::abs(parts.sum[c][i]);
        }
        errors.harm[first + c] += residual_norm(change, head) / kSamples;
        errors.harm_size[first + c] += residual_norm(size_of, head) / kSamples;
      }
      for (int level = 0; level < kLevels; ++level) {
        double kept = 0;
        const Row change = change_by_mask(
            parts, [&](int c) { return c >= columns || rungs[first + c] <= level; }, kept);
        errors.level_error[head * kLevels + level] += per_row * residual_norm(change, head);
        errors.level_size[head * kLevels + level] += per_row * residual_norm(parts.output, head) / (kept * kept);
      }
      Row copied = row(dense, 0, anchors[0].query_tokens[anchors[0].source_of[token]], head, 1);
      const Row own = row(dense, 0, token, head, 1);
      for (size_t i = 0; i < dim; ++i) copied[i] -= own[i];
      errors.copy_error[head] += per_row * residual_norm(copied, head);
    }
  }
  return errors;
}

Errors on_host(const Sampled& s) {
  const Skipped skipped = s.problem().summarize ? Skipped::kSummary : Skipped::kDrop;
  OutputContext context{nullptr, {}, kResidual};
  if (s.problem().weighted) context.output_weight = &s.weight, context.gate = {s.gate.f32(), kOut};
  const MeasuredCall call{s.g,       s.part(s.qkv, 0), s.part(s.qkv, 1), s.part(s.qkv, 2), s.output(s.out),
                          s.scale(), context,          kSamples,         Sampled::kPhase,  s.anchors,
                          {},        skipped};
  const size_t per_head = s.ranking.size() / s.g.heads;
  Errors errors;
  SampledKeys keys;
  for (int head = 0; head < s.g.heads; ++head) {
    HeadReference reference;
    reference.harm[static_cast<int>(skipped)] = {s.ranking.data() + head * per_head, per_head};
    const HeadErrors found = measure_head(call, head, reference, keys);
    const std::vector<float>& harm = found.harm[static_cast<int>(skipped)];
    errors.harm.insert(errors.harm.end(), harm.begin(), harm.end());
    errors.level_error.insert(errors.level_error.end(), found.level_error.begin(), found.level_error.begin() + kLevels);
    EXPECT_EQ(found.level_error.back(), 0.0) << "everything is kept";
    errors.copy_error.push_back(found.copy_error.at(0));
  }
  return errors;
}

/// rounding: of each weight and value, relative.
void expect_close(const Errors& found, const Errors& expected, double rounding) {
  ASSERT_EQ(found.harm.size(), expected.harm.size());
  for (size_t i = 0; i < expected.harm.size(); ++i) {
    EXPECT_NEAR(std::sqrt(found.harm[i]), std::sqrt(expected.harm[i]),
                rounding * (2 * std::sqrt(expected.harm[i]) + std::sqrt(expected.harm_size[i])))
        << "block " << i;
  }
  for (size_t i = 0; i < expected.level_error.size(); ++i) {
    EXPECT_NEAR(std::sqrt(found.level_error[i]), std::sqrt(expected.level_error[i]),
                rounding * (2 * std::sqrt(expected.level_error[i]) + std::sqrt(expected.level_size[i])))
        << "head and level " << i;
  }
  for (size_t i = 0; i < expected.copy_error.size(); ++i) {
    EXPECT_NEAR(found.copy_error[i], expected.copy_error[i], 1e-3 * expected.copy_error[i]) << "head " << i;
  }
}

std::vector<Problem> problems() {
  std::vector<Problem> all;
  for (const int head_dim : {64, 128}) {
    for (const bool summarize : {true, false}) {
      all.push_back({.head_dim = head_dim, .summarize = summarize});
      all.push_back({.head_dim = head_dim, .text_tokens = 30, .summarize = summarize, .sharpness = 3});
    }
    all.push_back({.head_dim = head_dim, .weighted = false});
  }
  return all;
}

class SampledQueries : public testing::TestWithParam<Problem> {};

TEST_P(SampledQueries, OfTheHostAreTheDefinitions) {
  const Sampled sampled(GetParam());
  expect_close(on_host(sampled), sampled.expected(), 1e-3);
}

#ifdef CALIBATT_HAVE_CUDA
Tensor as_floats(cuda::CudaAttention& gpu, const Tensor& device) {
  return converted(gpu.to_host(device), DType::kF32);
}

Errors on_gpu(const Sampled& s) {
  cuda::CudaAttention gpu;
  const AttentionGeometry& g = s.g;
  const Tensor qkv = gpu.from_host(s.qkv), out = gpu.from_host(s.out);
  const std::vector<int32_t> tokens(s.tokens.begin(), s.tokens.end());
  std::vector<int32_t> sources;
  for (const int token : tokens) sources.push_back(s.anchors[0].query_tokens[s.anchors[0].source_of[token]]);
  SampledErrorsCall call;
  call.q = s.part(qkv, 0), call.k = s.part(qkv, 1), call.v = s.part(qkv, 2), call.out = s.output(out);
  call.num_heads = g.heads, call.head_dim = g.head_dim, call.scale = s.scale();
  call.block_k = g.block_k, call.key_blocks = g.num_key_blocks();
  call.tokens = tokens, call.samples = kSamples, call.sources = sources;
  call.summarize = s.problem().summarize;
  if (s.problem().weighted) call.metric = gpu.output_metric(gpu.from_host(s.weight), gpu.from_host(s.gate), g.heads);
  call.rungs = s.rungs, call.num_levels = kLevels;
  const std::optional<SampledErrors> measured = gpu.sampled_errors(call);
  Errors errors;
  if (!measured) {
    ADD_FAILURE() << "not measured on the GPU";
    return errors;
  }
  const Tensor harm = as_floats(gpu, measured->harm), levels = as_floats(gpu, measured->level_error),
               copies = as_floats(gpu, measured->copy_error);
  const double per_sample = static_cast<double>(g.num_tokens()) / static_cast<double>(tokens.size()) / kResidual;
  for (int64_t i = 0; i < harm.size(); ++i) errors.harm.push_back(harm.f32()[i] / kResidual);
  for (int64_t i = 0; i < levels.size(); ++i) errors.level_error.push_back(levels.f32()[i] * per_sample);
  for (int64_t i = 0; i < copies.size(); ++i) errors.copy_error.push_back(copies.f32()[i] * per_sample);
  // Without an earlier ranking there is harm alone, and the same.
  call.rungs = {}, call.sources = {};
  const std::optional<SampledErrors> harm_alone = gpu.sampled_errors(call);
  EXPECT_TRUE(harm_alone && harm_alone->level_error.empty() && harm_alone->copy_error.empty());
  if (harm_alone) {
    const Tensor again = as_floats(gpu, harm_alone->harm);
    EXPECT_TRUE(std::equal(again.f32(), again.f32() + again.size(), harm.f32()));
  }
  return errors;
}

TEST_P(SampledQueries, OfCudaAreTheDefinitions) {
  if (cuda::num_devices() == 0) GTEST_SKIP() << "no CUDA device";
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    Problem problem = GetParam();
    problem.dtype = dtype;
    SCOPED_TRACE(dtype_name(dtype));
    const Sampled sampled(problem);
    // Weights, outputs, changes and means are rounded once each.
    expect_close(on_gpu(sampled), sampled.expected(), dtype == DType::kBF16 ? 0x1p-7 : 0x1p-9);
  }
}

TEST(SampledQueriesOnCuda, LeavesToTheHostWhatItsKernelsDoNotTake) {
  if (cuda::num_devices() == 0) GTEST_SKIP() << "no CUDA device";
  cuda::CudaAttention gpu;
  const Tensor q = gpu.from_host(Tensor::zeros(DType::kF32, {64, 128}));
  const std::vector<int32_t> tokens{1, 2};
  SampledErrorsCall call;
  call.q = call.k = call.v = call.out = {q.raw(), DType::kF32, 64, 128, 128};
  call.head_dim = 128, call.key_blocks = 1, call.tokens = tokens;
  EXPECT_FALSE(gpu.sampled_errors(call));
}
#endif

INSTANTIATE_TEST_SUITE_P(Problems, SampledQueries, testing::ValuesIn(problems()));

}  // namespace
}  // namespace calibatt
