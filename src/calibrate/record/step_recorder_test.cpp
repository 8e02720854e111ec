#include "calibrate/record/step_recorder.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/thread_pool.h"

namespace calibatt {
namespace {

std::vector<Tensor> vectors_of(int count, int64_t size) {
  std::vector<Tensor> vectors;
  for (int v = 0; v < count; ++v) {
    Tensor vector(DType::kF32, {size});
    for (int64_t i = 0; i < size; ++i) {
      vector.f32()[i] = static_cast<float>(std::sin(0.37 * static_cast<double>(i) + v) + 1e-3 * v);
    }
    vectors.push_back(vector);
  }
  return vectors;
}

TEST(StepRecorder, TheProductsAreThoseOfAllPairsOnAnyNumberOfThreads) {
  const int before = num_threads();
  for (const int64_t size : {3, 64, 5003, 70001}) {
    const std::vector<Tensor> vectors = vectors_of(4, size);
    std::vector<const Tensor*> pointers;
    for (const Tensor& vector : vectors) pointers.push_back(&vector);
    std::vector<Tensor> results;
    for (const int threads : {1, 3}) {
      set_num_threads(threads);
      results.push_back(mean_products(pointers));
    }
    for (int a = 0; a < 4; ++a) {
      for (int b = 0; b < 4; ++b) {
        long double sum = 0;
        for (int64_t i = 0; i < size; ++i) {
          sum += static_cast<long double>(vectors[static_cast<size_t>(a)].f32()[i]) *
                 vectors[static_cast<size_t>(b)].f32()[i];
        }
        const double mean = static_cast<double>(sum / size);
        EXPECT_NEAR(results[0].data<double>()[a * 4 + b], mean, 1e-12 + 1e-12 * std::abs(mean)) << size;
        EXPECT_EQ(results[0].data<double>()[a * 4 + b], results[1].data<double>()[a * 4 + b]) << "bit for bit";
      }
    }
  }
  set_num_threads(before);
}

TEST(StepRecorder, KeepsTheFirstLatentsAndEveryPrediction) {
  const std::vector<Tensor> vectors = vectors_of(5, 40);
  StepRecorder recorder;
  for (int step = 0; step < 3; ++step) recorder.observe(step, vectors[4 - step], vectors[static_cast<size_t>(step)]);
  EXPECT_EQ(recorder.num_steps(), 3);
  EXPECT_EQ(recorder.noise().raw(), vectors[4].raw());
  PromptProfile profile;
  recorder.store(Tensor::zeros(DType::kF64, {4, 4}), profile);
  const Tensor expected = mean_products({&vectors[4], &vectors[0], &vectors[1], &vectors[2]});
  for (int i = 0; i < 16; ++i) EXPECT_EQ(profile.step_products.data<double>()[i], expected.data<double>()[i]);
  EXPECT_EQ(profile.solver_weights.shape(), (std::vector<int64_t>{4, 4}));
}

}  // namespace
}  // namespace calibatt
