#pragma once

// For tests of attention: one layer's tensors, and the run that a plan was made for.

#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "attention/run_attention.h"
#include "plan/test_plans.h"

namespace calibatt::test {

// q, k, v and out of one layer, [tokens, heads, head_dim], small enough to check in obvious loops.
struct Layer {
  explicit Layer(const AttentionGeometry& geometry, unsigned seed) : geometry(geometry) {
    std::mt19937 random(seed);
    for (auto* array : {&q, &k, &v}) {
      array->resize(static_cast<size_t>(geometry.num_tokens()) * row());
      for (float& x : *array) x = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
    }
    out.assign(q.size(), std::nanf(""));
  }
  size_t row() const { return static_cast<size_t>(geometry.heads) * static_cast<size_t>(geometry.head_dim); }
  template <class View, class Array>
  View view(Array& array) const {
    View result;
    result.data = array.data();
    result.num_tokens = geometry.num_tokens();
    result.token_stride = static_cast<int64_t>(row());
    result.head_stride = geometry.head_dim;
    return result;
  }
  void run(SelfAttention& attention, int layer) {
    attention.attend(layer, geometry, view<ConstHeadsView>(q), view<ConstHeadsView>(k), view<ConstHeadsView>(v),
                     view<HeadsView>(out), {});
  }
  double dot(int query, int head, const double* key) const {
    double sum = 0;
    for (int d = 0; d < geometry.head_dim; ++d) sum += q[at(query, head, d)] * key[d];
    return sum / std::sqrt(geometry.head_dim);
  }
  size_t at(int token, int head, int d) const {
    return static_cast<size_t>(token) * row() + static_cast<size_t>(head * geometry.head_dim + d);
  }

  // What the plan's head says the output row of this token is, in obvious loops.
  std::vector<double> expected(const Plan& plan, const HeadPlan& plan_of_head, int head, int token) const {
    const int packed = plan_of_head.anchored ? plan.anchor_rows().source_of[static_cast<size_t>(token)] : token;
    const int query = plan_of_head.anchored ? plan.anchor_rows().query_tokens[static_cast<size_t>(packed)] : token;
    const int block_k = plan.geometry().block_k, dim = geometry.head_dim;
    double weight_sum = 0;
    std::vector<double> result(static_cast<size_t>(dim)), key(result), value(result);
    const auto add = [&](double bias) {
      const double weight = std::exp(dot(query, head, key.data()) + bias);
      weight_sum += weight;
      for (int d = 0; d < dim; ++d) result[static_cast<size_t>(d)] += weight * value[static_cast<size_t>(d)];
    };
    const BlockMask mask = plan_of_head.intervals ? plan_of_head.intervals->to_mask() : BlockMask();
    for (int block = 0; block < plan.geometry().num_key_blocks(); ++block) {
      const int begin = block * block_k, size = plan.geometry().key_block_size(block);
      const bool kept = !plan_of_head.intervals || mask.kept(packed / plan.geometry().block_q, block);
      if (!kept && !plan.info().summarize_skipped) continue;
      std::fill(key.begin(), key.end(), 0.0);
      std::fill(value.begin(), value.end(), 0.0);
      for (int s = begin; s < begin + size; ++s) {
        for (int d = 0; d < dim; ++d) {
          const double share = kept ? 1.0 : 1.0 / size;
          key[static_cast<size_t>(d)] = (kept ? 0 : key[static_cast<size_t>(d)]) + share * k[at(s, head, d)];
          value[static_cast<size_t>(d)] = (kept ? 0 : value[static_cast<size_t>(d)]) + share * v[at(s, head, d)];
        }
        if (kept) add(0);
      }
      if (!kept) add(std::log(size));
    }
    for (double& x : result) x /= weight_sum;
    return result;
  }

  AttentionGeometry geometry;
  std::vector<float> q, k, v, out;
};

// The run that the plan was made for.
inline RunDescription run_of(const Plan& plan) {
  const PlanProvenance& made = plan.info().provenance;
  RunDescription run;
  run.transformers = {
      {"this model", [fingerprint = made.transformers[0].fingerprint](const std::string&) { return fingerprint; }}};
  run.geometry = plan.geometry();
  run.num_layers = plan.num_layers();
  run.video_frames = made.video_frames;
  run.video_height = made.video_height;
  run.video_width = made.video_width;
  run.sigmas = plan.info().sigmas;
  run.flow_shift = made.flow_shift;
  run.guidance_scale = made.guidance_scale;
  run.scheduler = made.scheduler;
  return run;
}

inline std::vector<RunTransformer> of_fingerprint(const std::string& fingerprint) {
  return {{"this model", [fingerprint](const std::string&) { return fingerprint; }}};
}

inline std::shared_ptr<const Plan> example() {
  return std::make_shared<const Plan>(test::example_parts());
}

}  // namespace calibatt::test
