#include "backend/cpu/attention/reference/attention_reference.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/thread_pool.h"

namespace calibatt::cpu {
namespace {

/// One key (or summary token) as a query sees it: its logit, then its share of the softmax, and its value row.
struct Candidate {
  double weight = 0;
  const double* value = nullptr;
  int key_block = 0;
};

/// The keys and values of one head in double, with the mean of every key block.
struct HeadKeys {
  int64_t num_keys = 0, num_blocks = 0;
  std::vector<double> keys, values;            ///< [num_keys, head_dim]
  std::vector<double> mean_keys, mean_values;  ///< [num_blocks, head_dim]
};

template <class View>
double element(const View& view, int64_t token, int head, int dim) {
  const int64_t index = token * view.token_stride + head * view.head_stride + dim;
  if (view.dtype == DType::kF32) return static_cast<const float*>(view.data)[index];
  return static_cast<float>(static_cast<const bfloat16*>(view.data)[index]);
}

void set_element(const HeadsView& view, int64_t token, int head, int dim, double value) {
  const int64_t index = token * view.token_stride + head * view.head_stride + dim;
  if (view.dtype == DType::kF32) {
    static_cast<float*>(view.data)[index] = static_cast<float>(value);
  } else {
    static_cast<bfloat16*>(view.data)[index] = bfloat16(static_cast<float>(value));
  }
}

int64_t block_size(const HeadKeys& head, int64_t block, int block_k) {
  return std::min<int64_t>(block_k, head.num_keys - block * block_k);
}

HeadKeys gather_head(const AttentionCall& call, int head) {
  HeadKeys result;
  result.num_keys = call.k.num_tokens;
  result.num_blocks = (result.num_keys + call.block_k - 1) / call.block_k;
  result.keys.resize(result.num_keys * call.head_dim);
  result.values.resize(result.num_keys * call.head_dim);
  result.mean_keys.assign(result.num_blocks * call.head_dim, 0.0);
  result.mean_values.assign(result.num_blocks * call.head_dim, 0.0);
  for (int64_t s = 0; s < result.num_keys; ++s) {
    const int64_t block = s / call.block_k;
    const double share = 1.0 / static_cast<double>(block_size(result, block, call.block_k));
    for (int d = 0; d < call.head_dim; ++d) {
      result.keys[s * call.head_dim + d] = element(call.k, s, head, d);
      result.values[s * call.head_dim + d] = element(call.v, s, head, d);
      result.mean_keys[block * call.head_dim + d] += share * result.keys[s * call.head_dim + d];
      result.mean_values[block * call.head_dim + d] += share * result.values[s * call.head_dim + d];
    }
  }
  return result;
}

std::vector<char> kept_blocks(const HeadSchedule& schedule, int64_t query_block, int64_t num_blocks) {
  if (schedule.intervals == nullptr) return std::vector<char>(num_blocks, 1);
  std::vector<char> kept(num_blocks, 0);
  for (const BlockInterval& interval : schedule.intervals->row(static_cast<int>(query_block))) {
    for (uint32_t block = interval.begin; block < interval.end; ++block) kept[block] = 1;
  }
  return kept;
}

double dot(const double* a, const double* b, int size) {
  double sum = 0;
  for (int d = 0; d < size; ++d) sum += a[d] * b[d];
  return sum;
}

/// One query row: output row and, per key block, the softmax mass.
void attend_row(const AttentionCall& call, const HeadSchedule& schedule, const HeadKeys& keys,
                const std::vector<char>& kept, const double* query, std::vector<Candidate>& candidates, double* output,
                double* block_mass) {
  candidates.clear();
  for (int64_t block = 0; block < keys.num_blocks; ++block) {
    const int64_t first = block * call.block_k, count = block_size(keys, block, call.block_k);
    if (kept[block]) {
      for (int64_t s = first; s < first + count; ++s) {
        const double bias = call.key_bias.empty() ? 0.0 : call.key_bias[s];
        const double logit = call.scale * dot(query, &keys.keys[s * call.head_dim], call.head_dim) + bias;
        candidates.push_back({logit, &keys.values[s * call.head_dim], static_cast<int>(block)});
      }
    } else if (schedule.summarize_skipped) {
      const double logit = call.scale * dot(query, &keys.mean_keys[block * call.head_dim], call.head_dim) +
                           std::log(static_cast<double>(count));
      candidates.push_back({logit, &keys.mean_values[block * call.head_dim], static_cast<int>(block)});
    }
  }
  double maximum = -INFINITY, sum = 0;
  for (const Candidate& candidate : candidates) {
    // A NaN logit is carried on, as in any softmax: comparing with it must not lose it.
    if (!(candidate.weight <= maximum)) maximum = candidate.weight;
  }
  for (Candidate& candidate : candidates) sum += candidate.weight = std::exp(candidate.weight - maximum);
  std::fill(output, output + call.head_dim, 0.0);
  for (const Candidate& candidate : candidates) {
    const double probability = candidate.weight / sum;
    for (int d = 0; d < call.head_dim; ++d) output[d] += probability * candidate.value[d];
    block_mass[candidate.key_block] += probability;
  }
}

void attend_query_block(const AttentionCall& call, int head, const HeadKeys& keys, int64_t query_block) {
  const HeadSchedule schedule = call.heads.empty() ? HeadSchedule{} : call.heads[head];
  const int64_t num_queries =
      schedule.anchors ? static_cast<int64_t>(schedule.anchors->query_tokens.size()) : call.q.num_tokens;
  const int64_t first = query_block * call.block_q, last = std::min<int64_t>(first + call.block_q, num_queries);
  const std::vector<char> kept = kept_blocks(schedule, query_block, keys.num_blocks);
  std::vector<double> query(call.head_dim), output(call.head_dim), block_mass(keys.num_blocks, 0.0);
  std::vector<Candidate> candidates;
  std::vector<std::vector<int64_t>> destinations(last - first);
  if (schedule.anchors) {
    for (int64_t token = 0; token < call.q.num_tokens; ++token) {
      const int64_t row = schedule.anchors->source_of[token] - first;
      if (row >= 0 && row < last - first) destinations[row].push_back(token);
    }
  } else {
    for (int64_t row = 0; row < last - first; ++row) destinations[row] = {first + row};
  }
  for (int64_t row = first; row < last; ++row) {
    const int64_t token = schedule.anchors ? schedule.anchors->query_tokens[row] : row;
    for (int d = 0; d < call.head_dim; ++d) query[d] = element(call.q, token, head, d);
    attend_row(call, schedule, keys, kept, query.data(), candidates, output.data(), block_mass.data());
    for (const int64_t destination : destinations[row - first]) {
      for (int d = 0; d < call.head_dim; ++d) set_element(call.out, destination, head, d, output[d]);
    }
  }
  if (call.block_energy == nullptr) return;
  const int64_t num_query_blocks = (num_queries + call.block_q - 1) / call.block_q;
  float* energy = call.block_energy + (head * num_query_blocks + query_block) * keys.num_blocks;
  for (int64_t block = 0; block < keys.num_blocks; ++block) {
    energy[block] = static_cast<float>(block_mass[block] / static_cast<double>(last - first));
  }
}

}  // namespace

void attention_reference(const AttentionCall& call) {
  for (int head = 0; head < call.num_heads; ++head) {
    const HeadKeys keys = gather_head(call, head);
    const AnchorRows* anchors = call.heads.empty() ? nullptr : call.heads[head].anchors;
    const int64_t num_queries = anchors ? static_cast<int64_t>(anchors->query_tokens.size()) : call.q.num_tokens;
    const int64_t num_query_blocks = (num_queries + call.block_q - 1) / call.block_q;
    parallel_for(num_query_blocks, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t block = begin; block < end; ++block) attend_query_block(call, head, keys, block);
    });
  }
}

}  // namespace calibatt::cpu
