#pragma once

#include <cmath>
#include <vector>

#include "attention/self_attention.h"
#include "backend/backend.h"
#include "base/random.h"
#include "base/tensor.h"
#include "sparsity/geometry.h"

namespace calibatt {

/// For tests: queries, keys and values of a call whose heads have the structures that calibration looks for. Head 0
/// attends to where the token is (frame, row, column), head 1 to columns only (so all rows of a frame attend alike),
/// head 2 to a few tokens that everybody looks at, further heads to nothing in particular. The prompt changes it a
/// little, steps and layers more.
class SyntheticAttention {
 public:
  SyntheticAttention(const AttentionGeometry& geometry, int prompt, int step, int layer) : geometry_(geometry) {
    const int64_t tokens = geometry.num_tokens(), heads = geometry.heads, dim = geometry.head_dim;
    TorchGenerator common(static_cast<uint64_t>(1000 + 17 * step + layer)),
        own(static_cast<uint64_t>(7 + prompt * 5000 + 17 * step + layer));
    q = common.randn({tokens, heads, dim});
    k = common.randn({tokens, heads, dim});
    v = common.randn({tokens, heads, dim});
    const Tensor noise = own.randn({tokens, heads, dim});
    const std::vector<int32_t> raster_of = geometry.raster_of_position();
    const auto at = [&](Tensor& tensor, int64_t token, int64_t head) {
      return tensor.f32() + (token * heads + head) * dim;
    };
    for (int64_t token = 0; token < tokens; ++token) {
      const int raster = raster_of[token];
      const int column = raster % geometry.width, row = raster / geometry.width % geometry.height;
      const int frame = raster / (geometry.width * geometry.height);
      for (int64_t head = 0; head < heads; ++head) {
        float *query = at(q, token, head), *key = at(k, token, head), *value = at(v, token, head);
        for (int64_t i = 0; i < dim; ++i) {
          const double phase = 0.35 * static_cast<double>(i + 1) / static_cast<double>(dim);
          const double place = head == 0   ? std::cos(phase * (3 * frame + 2 * row + column) + i)
                               : head == 1 ? std::cos(phase * 4 * column + i)
                                           : 0.0;
          const float random = noise.f32()[(token * heads + head) * dim + i];
          query[i] =
              static_cast<float>(head < 2 ? 2.2 * place + 0.15 * query[i] + 0.1 * random : query[i] + 0.3 * random);
          key[i] = static_cast<float>(head < 2 ? 2.2 * place + 0.15 * key[i] : key[i] + 0.3 * random);
          if (head == 2 && token % 37 == 5) key[i] = query[i] = 1.2f + 0.2f * random;
          if (head == 2) query[i] += 0.5f;
          value[i] += 0.3f * random + static_cast<float>(place);
        }
      }
    }
  }

  ConstHeadsView view(const Tensor& tensor) const {
    const int64_t dim = geometry_.head_dim, heads = geometry_.heads;
    return {tensor.raw(), DType::kF32, geometry_.num_tokens(), heads * dim, dim};
  }
  HeadsView output_view(Tensor& tensor) const {
    const int64_t dim = geometry_.head_dim, heads = geometry_.heads;
    return {tensor.raw(), DType::kF32, geometry_.num_tokens(), heads * dim, dim};
  }

  Tensor q, k, v;

 private:
  const AttentionGeometry& geometry_;
};

/// For tests: a "model" of `layers` self-attention calls, run for all `steps` under classifier-free guidance.
inline void run_synthetic(const AttentionGeometry& geometry, int steps, int layers, int prompt,
                          SelfAttention& attention) {
  TorchGenerator generator(3);
  const int64_t width = static_cast<int64_t>(geometry.heads) * geometry.head_dim;
  const Tensor weight = generator.randn({width, width}), gate = generator.randn({width});
  for (int step = 0; step < steps; ++step) {
    for (const GuidanceBranch branch : {GuidanceBranch::kConditional, GuidanceBranch::kUnconditional}) {
      attention.begin_forward(step, branch);
      for (int layer = 0; layer < layers; ++layer) {
        const SyntheticAttention call(geometry, prompt, step, layer);
        Tensor out(DType::kF32, {geometry.num_tokens(), geometry.heads, geometry.head_dim});
        OutputContext context;
        if (attention.wants_output_context()) {
          context = {&weight, {gate.f32(), static_cast<size_t>(width)}, 1e4 * (1 + layer), weight, &gate};
        }
        attention.attend(layer, geometry, call.view(call.q), call.view(call.k), call.view(call.v),
                         call.output_view(out), context);
      }
    }
  }
}

}  // namespace calibatt
