#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "base/tensor.h"

namespace calibatt {

/// How a file has the elements of a tensor: as values, or in 8 bits that io decodes, so that nobody else meets them.
/// Names of safetensors; OCP 8-bit Floating Point Specification (OFP8), revision 1.0.
enum class StoredForm : uint8_t {
  kValues,
  kE4M3,  ///< "F8_E4M3": 4 bits of exponent, 3 of mantissa, no infinity (torch.float8_e4m3fn)
  kE5M2   ///< "F8_E5M2": the upper half of a binary16
};

std::optional<StoredForm> stored_form_of(std::string_view dtype);  ///< of the 8-bit forms alone
float decoded(StoredForm form, uint8_t bits);

/// `count` such elements → values, BF16 (which holds all of them exactly) or F32.
void decode_elements(StoredForm form, const unsigned char* from, Tensor& to);

}  // namespace calibatt
