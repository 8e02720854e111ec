#include "calibrate/record/step_recorder.h"

#include <algorithm>

#include "base/error.h"
#include "base/thread_pool.h"

namespace calibatt {

void StepRecorder::observe(int step, const Tensor& latents, const Tensor& prediction) {
  CALIBATT_ASSERT(step == num_steps());
  if (step == 0) noise_ = latents;
  predictions_.push_back(prediction);
}

void StepRecorder::store(const Tensor& solver_weights, PromptProfile& profile) const {
  std::vector<const Tensor*> vectors{&noise_};
  for (const Tensor& prediction : predictions_) vectors.push_back(&prediction);
  CALIBATT_ASSERT(solver_weights.dim(0) == static_cast<int64_t>(vectors.size()));
  profile.step_products = mean_products(vectors);
  profile.solver_weights = solver_weights;
}

Tensor mean_products(const std::vector<const Tensor*>& vectors) {
  CALIBATT_ASSERT(!vectors.empty());
  const auto count = static_cast<int64_t>(vectors.size());
  const int64_t size = vectors[0]->size();
  constexpr int64_t kChunk = 4096;  // elements; so much of every vector stays in a cache
  constexpr int64_t kParts = 64;    // sums are added up in one order, whoever made them
  std::vector<std::vector<double>> parts(kParts, std::vector<double>(static_cast<size_t>(count * count), 0.0));
  parallel_for(kParts, 1, [&](int64_t first, int64_t last, int) {
    for (int64_t part = first; part < last; ++part) {
      double* sums = parts[static_cast<size_t>(part)].data();
      const int64_t end = size * (part + 1) / kParts;
      for (int64_t begin = size * part / kParts; begin < end; begin += kChunk) {
        const int64_t stop = std::min(end, begin + kChunk);
        for (int64_t a = 0; a < count; ++a) {
          const float* const left = vectors[static_cast<size_t>(a)]->f32();
          for (int64_t b = 0; b <= a; ++b) {
            const float* const right = vectors[static_cast<size_t>(b)]->f32();
            double lanes[8] = {};  // independent sums, which a compiler may keep in one register
            int64_t i = begin;
            for (; i + 8 <= stop; i += 8) {
              for (int lane = 0; lane < 8; ++lane) lanes[lane] += double{left[i + lane]} * right[i + lane];
            }
            for (; i < stop; ++i) lanes[0] += double{left[i]} * right[i];
            for (const double lane : lanes) sums[a * count + b] += lane;
          }
        }
      }
    }
  });
  Tensor products = Tensor::zeros(DType::kF64, {count, count});
  double* means = products.data<double>();
  for (const std::vector<double>& part : parts) {
    for (int64_t i = 0; i < count * count; ++i) means[i] += part[static_cast<size_t>(i)] / static_cast<double>(size);
  }
  for (int64_t a = 0; a < count; ++a) {
    for (int64_t b = 0; b < a; ++b) means[b * count + a] = means[a * count + b];
  }
  return products;
}

}  // namespace calibatt
