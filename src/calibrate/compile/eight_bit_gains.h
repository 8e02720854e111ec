#pragma once

#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "base/eight_bit_parts.h"

namespace calibatt {

/// How many times as fast 8 bits make the parts of a forward on a family of devices. Measured constants, not measured
/// anew where a plan is made: a plan may be made for another machine, and one card's clock is not another's.
struct EightBitGains {
  double layers = 1;  ///< of everything but self-attention
  /// Of self-attention at this size. Between two, gains are linear in density and in the logarithm of tokens, and
  /// constant outside.
  struct Attention {
    int tokens = 0;
    double density = 1, gain = 1;
  };
  std::vector<Attention> attention;  ///< by rising tokens, then by rising density; empty: nothing is gained

  double of_attention(int tokens, double density) const;
  /// Parts that gain anything at some density.
  EightBitParts parts(int tokens) const;
};

/// Of a backend by its name (Device::name), a transformer by its class, and the type of its linear layers in 8 bits
/// (kE4M3 or kI8). Backends that are not in the table gain nothing; transformers that are not gain as Wan's.
EightBitGains eight_bit_gains(std::string_view backend, std::string_view transformer, DType layers);
/// The same of a GPU of this compute capability (90 is 9.0). Those that are no Hopper gain nothing.
EightBitGains eight_bit_gains(int compute_capability, std::string_view transformer, DType layers);

}  // namespace calibatt
