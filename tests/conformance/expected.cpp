#include "expected.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <tuple>

#include "backend/cpu/attention/attention.h"
#include "base/half.h"
#include "base/thread_pool.h"
#include "eight_bits.h"

namespace calibatt {

float element(const ConstHeadsView& view, int64_t token, int head, int dim) {
  const int64_t index = token * view.token_stride + head * view.head_stride + dim;
  return view.dtype == DType::kF32 ? static_cast<const float*>(view.data)[index]
                                   : static_cast<float>(static_cast<const bfloat16*>(view.data)[index]);
}

namespace {

double norm(const std::vector<double>& values) {
  double sum = 0;
  for (const double x : values) sum += x * x;
  return std::sqrt(sum);
}

/// Relative error of a plain softmax over all keys on some rows of a head: in float, or with weights rounded to
/// bfloat16.
double plain_error(const AttentionCall& call, int head) {
  const bool bf16 = call.q.dtype == DType::kBF16;
  std::vector<double> exact, difference;
  const int64_t stride = std::max<int64_t>(1, call.q.num_tokens / 16);
  for (int64_t row = 0; row < call.q.num_tokens; row += stride) {
    std::vector<double> logits(call.k.num_tokens);
    std::vector<float> plain_logits(call.k.num_tokens);
    for (int64_t s = 0; s < call.k.num_tokens; ++s) {
      for (int d = 0; d < call.head_dim; ++d) {
        const float q = element(call.q, row, head, d);
        const float k = element(call.k, s, head, d);
        logits[s] += static_cast<double>(q) * k;
        plain_logits[s] += q * k;
      }
      logits[s] *= call.scale;
      plain_logits[s] *= call.scale;
    }
    const double maximum = *std::ranges::max_element(logits);
    const float plain_maximum = *std::ranges::max_element(plain_logits);
    std::vector<double> output(call.head_dim), plain(call.head_dim);
    double sum = 0, plain_sum = 0;
    for (int64_t s = 0; s < call.k.num_tokens; ++s) {
      const double p = std::exp(logits[s] - maximum);
      const float plain_p = std::exp(plain_logits[s] - plain_maximum);
      const float rounded_p = bf16 ? static_cast<float>(bfloat16(plain_p)) : plain_p;
      sum += p;
      plain_sum += plain_p;
      for (int d = 0; d < call.head_dim; ++d) {
        output[d] += p * element(call.v, s, head, d);
        plain[d] += static_cast<double>(rounded_p) * element(call.v, s, head, d);
      }
    }
    for (int d = 0; d < call.head_dim; ++d) {
      exact.push_back(output[d] / sum);
      difference.push_back(plain[d] / plain_sum - output[d] / sum);
    }
  }
  return norm(difference) / norm(exact);
}

float rounded_to_16(float value, DType dtype) {
  return dtype == DType::kF16 ? half_to_float(float_to_half(value)) : static_cast<float>(bfloat16(value));
}

GatheredRows gather(const AttentionCall& call, int head, DType type) {
  const int64_t num_keys = call.k.num_tokens, num_blocks = (num_keys + call.block_k - 1) / call.block_k;
  GatheredRows rows;
  const auto gather_one = [&](const ConstHeadsView& view, std::vector<float>& out) {
    out.resize((num_keys + num_blocks) * call.head_dim);
    for (int64_t s = 0; s < num_keys; ++s) {
      for (int d = 0; d < call.head_dim; ++d) out[s * call.head_dim + d] = element(view, s, head, d);
    }
    for (int64_t block = 0; block < num_blocks; ++block) {
      const int64_t begin = block * call.block_k, end = std::min(begin + call.block_k, num_keys);
      for (int d = 0; d < call.head_dim; ++d) {
        double sum = 0;
        for (int64_t s = begin; s < end; ++s) sum += out[s * call.head_dim + d];
        out[(num_keys + block) * call.head_dim + d] =
            rounded_to_16(static_cast<float>(sum / static_cast<double>(end - begin)), type);
      }
    }
  };
  gather_one(call.k, rows.keys);
  gather_one(call.v, rows.values);
  rows.mean_value.resize(static_cast<size_t>(call.head_dim));
  return rows;
}

/// The rows of GatheredRows that a query block sees, and the bias of each one's logit.
struct SeenRow {
  int64_t row = 0;
  double bias = 0;
};

std::vector<SeenRow> seen_rows(const AttentionCall& call, const HeadSchedule& schedule, int64_t query_block) {
  const int64_t num_keys = call.k.num_tokens, num_blocks = (num_keys + call.block_k - 1) / call.block_k;
  std::vector<char> kept(num_blocks, schedule.intervals == nullptr);
  if (schedule.intervals != nullptr) {
    for (const auto [begin, end] : schedule.intervals->row(static_cast<int>(query_block))) {
      std::fill(kept.begin() + begin, kept.begin() + end, 1);
    }
  }
  std::vector<SeenRow> seen;
  for (int64_t block = 0; block < num_blocks; ++block) {
    const int64_t begin = block * call.block_k, end = std::min(begin + call.block_k, num_keys);
    for (int64_t s = begin; kept[block] && s < end; ++s) {
      seen.push_back({s, call.key_bias.empty() ? 0.0 : double{call.key_bias[s]}});
    }
    if (!kept[block] && schedule.summarize_skipped) {
      seen.push_back({num_keys + block, std::log(static_cast<double>(end - begin))});
    }
  }
  return seen;
}

/// Sums of squares and of fourth powers of a row's weights, and its largest logit.
struct RowStatistics {
  double squares = 0, fourths = 0, largest_logit = 0;
};

/// A run's types: of the inputs and the output, and whether products are of bytes.
struct Precision {
  DType type = DType::kBF16;
  bool eight_bits = false;
};

RowStatistics plain_row(const AttentionCall& call, const GatheredRows& rows, const std::vector<SeenRow>& seen,
                        const std::vector<float>& query, Precision precision, float* output) {
  const size_t dims = query.size();
  std::vector<float> weights(seen.size());
  RowStatistics statistics;
  float maximum = -INFINITY;
  for (size_t i = 0; i < seen.size(); ++i) {
    const float* key = &rows.keys[static_cast<size_t>(seen[i].row) * dims];
    double dot = 0;
    for (size_t d = 0; d < dims; ++d) dot += static_cast<double>(query[d]) * key[d];
    weights[i] = static_cast<float>(dot * call.scale + seen[i].bias);
    maximum = std::max(maximum, weights[i]);
    if (std::isfinite(weights[i])) {
      statistics.largest_logit = std::max(statistics.largest_logit, std::abs(weights[i]) * 1.4427);
    }
  }
  float sum = 0;
  for (float& weight : weights) sum += weight = std::exp(weight - maximum);
  std::vector<float> total(dims);
  for (size_t i = 0; i < seen.size(); ++i) {
    const double p = static_cast<double>(weights[i]) / sum;
    statistics.squares += p * p;
    statistics.fourths += p * p * p * p;
    const float* value = &rows.values[static_cast<size_t>(seen[i].row) * dims];
    const float weight = precision.eight_bits ? rounded_to_e4m3(weights[i] * kLargestE4m3) / kLargestE4m3
                                              : rounded_to_16(weights[i], precision.type);
    for (size_t d = 0; d < dims; ++d) total[d] += weight * value[d];
  }
  for (size_t d = 0; d < dims; ++d) output[d] = rounded_to_16(total[d] / sum + rows.mean_value[d], precision.type);
  return statistics;
}

PlainRun make_plain_run(const AttentionCall& call, Precision precision) {
  const int64_t num_tokens = call.q.num_tokens, dims = call.head_dim;
  PlainRun run;
  run.outputs.resize(call.num_heads * num_tokens * dims);
  run.num_roundings = INFINITY;
  for (int head = 0; head < call.num_heads; ++head) {
    const HeadSchedule schedule = call.heads.empty() ? HeadSchedule{} : call.heads[head];
    GatheredRows rows = gather(call, head, precision.type);
    if (precision.eight_bits) round_to_eight_bits(rows, call.k.num_tokens);
    const int64_t num_computed = schedule.anchors ? std::ssize(schedule.anchors->query_tokens) : num_tokens;
    const int64_t query_blocks = (num_computed + call.block_q - 1) / call.block_q;
    std::vector<float> computed(num_computed * dims);
    std::vector<RowStatistics> statistics(num_computed);
    parallel_for(query_blocks, 1, [&](int64_t first, int64_t last, int) {
      std::vector<float> query(dims);
      for (int64_t block = first; block < last; ++block) {
        const std::vector<SeenRow> seen = seen_rows(call, schedule, block);
        for (int64_t r = block * call.block_q; r < std::min((block + 1) * call.block_q, num_computed); ++r) {
          const int64_t token = schedule.anchors ? schedule.anchors->query_tokens[r] : r;
          for (int64_t d = 0; d < dims; ++d) query[d] = element(call.q, token, head, static_cast<int>(d));
          if (precision.eight_bits) round_to_bytes(query);
          statistics[r] = plain_row(call, rows, seen, query, precision, &computed[r * dims]);
        }
      }
    });
    RowStatistics total;
    for (const RowStatistics& row : statistics) {
      total.squares += row.squares;
      total.fourths += row.fourths;
      run.largest_logit = std::max(run.largest_logit, row.largest_logit);
    }
    run.num_roundings = std::min(run.num_roundings, total.squares * total.squares / total.fourths);
    for (int64_t token = 0; token < num_tokens; ++token) {
      const int64_t source = schedule.anchors ? schedule.anchors->source_of[token] : token;
      std::copy_n(&computed[source * dims], dims, &run.outputs[(head * num_tokens + token) * dims]);
    }
  }
  return run;
}

/// A problem that the CPU reads (it does not compute F16), of these values.
AttentionProblem host_problem(const AttentionCase& attention_case, DType values) {
  return {attention_case, values == DType::kBF16 ? values : DType::kF32, DType::kF32, values};
}

}  // namespace

const Expected& expected(const AttentionCase& attention_case, DType values) {
  static std::map<std::pair<std::string, DType>, Expected> cache;
  Expected& result = cache[{attention_case.name, values}];
  if (result.outputs.empty()) {
    AttentionProblem problem = host_problem(attention_case, values);
    cpu::attention(problem.call(), "reference");
    result = {problem.outputs(), problem.energy(), 0};
    for (int head = 0; head < attention_case.num_heads; ++head) {
      result.plain_error = std::max(result.plain_error, plain_error(problem.call(), head));
    }
  }
  return result;
}

const PlainRun& plain_run(const AttentionCase& attention_case, DType values, bool eight_bits) {
  static std::map<std::tuple<std::string, DType, bool>, PlainRun> cache;
  PlainRun& result = cache[{attention_case.name, values, eight_bits}];
  if (result.outputs.empty()) {
    AttentionProblem problem = host_problem(attention_case, values);
    result = make_plain_run(problem.call(), {values, eight_bits});
  }
  return result;
}

Errors relative_errors(const std::vector<float>& actual, const std::vector<float>& wanted, int num_heads,
                       int row_size) {
  Errors errors;
  const size_t head_size = wanted.size() / static_cast<size_t>(num_heads);
  for (size_t head = 0; head < wanted.size(); head += head_size) {
    double total = 0, total_difference = 0;
    for (size_t i = head; i < head + head_size; ++i) total += double{wanted[i]} * wanted[i];
    const double mean_row = total * row_size / static_cast<double>(head_size);
    for (size_t row = head; row < head + head_size; row += static_cast<size_t>(row_size)) {
      double size = 0, difference = 0;
      for (size_t i = row; i < row + static_cast<size_t>(row_size); ++i) {
        size += double{wanted[i]} * wanted[i];
        difference += (double{actual[i]} - wanted[i]) * (double{actual[i]} - wanted[i]);
      }
      total_difference += difference;
      errors.row = std::max(errors.row, std::sqrt(difference / std::max(size, mean_row)));
    }
    errors.head = std::max(errors.head, std::sqrt(total_difference / total));
  }
  return errors;
}

}  // namespace calibatt
