#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/tensor.h"

namespace calibatt {

/// The 32-bit Mersenne Twister (Matsumoto and Nishimura, 1998).
class MersenneTwister {
 public:
  explicit MersenneTwister(uint32_t seed);
  uint32_t next();

 private:
  static constexpr int kStateSize = 624;
  void refill();
  std::array<uint32_t, kStateSize> state_{};
  int position_ = kStateSize;
};

/// Gives the numbers of torch.Generator("cpu").manual_seed(seed), so that one seed starts the same video here and in
/// diffusers. Only the low 32 bits of the seed count, as in torch. Equal to torch within 1e-6 (torch's own vector
/// kernels differ by as much from one another).
class TorchGenerator {
 public:
  explicit TorchGenerator(uint64_t seed) : engine_(static_cast<uint32_t>(seed)) {}

  /// torch.randn(n, generator=…, dtype=torch.float32). The numbers depend on n, not only on how many were drawn before:
  /// torch takes two paths, below 16 values and from 16 on.
  void randn(std::span<float> values);
  Tensor randn(std::vector<int64_t> shape);  ///< F32

 private:
  float uniform();          ///< [0, 1), 24 random bits
  double uniform_double();  ///< [0, 1), 53 random bits
  double normal();
  MersenneTwister engine_;
  std::optional<double> cached_normal_;  ///< second value of the last Box–Muller pair; lives across calls, as in torch
};

}  // namespace calibatt
