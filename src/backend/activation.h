#pragma once

#include <cstdint>

namespace calibatt {

enum class Activation : uint8_t {
  kNone,
  kSiLU,  ///< x·sigmoid(x)
  kTanh,
  kGeluTanh,  ///< 0.5x(1 + tanh(√(2/π)(x + 0.044715x³))): torch's gelu(approximate="tanh"), transformers' gelu_new
};

}  // namespace calibatt
