#pragma once

// For tests: dense runs of a model whose predictions do not depend on the latents, walked by Euler's method. There the
// errors of reused steps are exact sums, and a plain run can be compared with what the compiler says.

#include <cmath>
#include <vector>

#include "calibrate/profile/profile.h"

namespace calibatt::test {

using Vector = std::vector<double>;

inline constexpr size_t kSyntheticSize = 9;  // of the latents

/// What the model predicts at noise level sigma: of every prompt something else, curved early and straight late.
inline Vector synthetic_prediction(int prompt, double sigma) {
  Vector prediction(kSyntheticSize);
  for (size_t i = 0; i < kSyntheticSize; ++i) {
    const double phase = 1.3 * static_cast<double>(i) + 0.7 * prompt;
    prediction[i] =
        std::sin(phase) + 0.4 * sigma * sigma * sigma * std::cos(2 * phase) + 0.02 * std::sin(9 * sigma + phase);
  }
  return prediction;
}

inline double mean_product(const Vector& a, const Vector& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum / static_cast<double>(a.size());
}

/// x_0 and the predictions of all steps.
inline std::vector<Vector> synthetic_basis(const std::vector<double>& sigmas, int prompt) {
  std::vector<Vector> basis{Vector(kSyntheticSize)};
  for (size_t i = 0; i < kSyntheticSize; ++i) basis[0][i] = std::cos(3.1 * static_cast<double>(i) + prompt);
  for (const double sigma : sigmas) basis.push_back(synthetic_prediction(prompt, sigma));
  return basis;
}

/// Adds both tables to the profile of a prompt.
inline void add_synthetic_steps(const ProfileHeader& header, PromptProfile& profile) {
  const auto size = static_cast<int64_t>(header.sigmas.size()) + 1;
  const std::vector<Vector> basis = synthetic_basis(header.sigmas, profile.prompt);
  profile.step_products = Tensor(DType::kF64, {size, size});
  profile.solver_weights = Tensor::zeros(DType::kF64, {size, size});
  for (int64_t a = 0; a < size; ++a) {
    for (int64_t b = 0; b < size; ++b) {
      profile.step_products.data<double>()[a * size + b] =
          mean_product(basis[static_cast<size_t>(a)], basis[static_cast<size_t>(b)]);
    }
    double* const row = profile.solver_weights.data<double>() + a * size;
    row[0] = 1;
    for (int64_t step = 0; step < a; ++step) {
      const auto at = static_cast<size_t>(step);
      row[step + 1] = (at + 1 < header.sigmas.size() ? header.sigmas[at + 1] : 0) - header.sigmas[at];
    }
  }
}

}  // namespace calibatt::test
