#pragma once

#include <vector>

#include "base/tensor.h"
#include "calibrate/profile/profile.h"

namespace calibatt {

/// Keeps what the steps of a dense run predicted, for what reuse of steps needs to know: the products of these vectors.
class StepRecorder {
 public:
  /// Of each step in turn: its latents and (guided) prediction, F32 on the host. Both are kept, not copied.
  void observe(int step, const Tensor& latents, const Tensor& prediction);
  int num_steps() const { return static_cast<int>(predictions_.size()); }
  const Tensor& noise() const { return noise_; }  ///< the first step's latents
  const Tensor& prediction(int step) const { return predictions_.at(static_cast<size_t>(step)); }

  /// Adds the products of a finished run to its prompt's profile; solver_weights: as sampling's function of that name.
  void store(const Tensor& solver_weights, PromptProfile& profile) const;

 private:
  Tensor noise_;
  std::vector<Tensor> predictions_;
};

/// Mean over the elements of the products of any two of these F32 vectors of one size: F64 [n, n]. The same numbers on
/// any number of threads.
Tensor mean_products(const std::vector<const Tensor*>& vectors);

}  // namespace calibatt
