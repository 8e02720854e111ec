#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "base/tensor.h"

namespace calibatt {

/// How a file has the elements of a tensor: as values, or in few bits that io decodes, so that nobody else meets them.
/// Of safetensors, by its names: OCP 8-bit Floating Point Specification (OFP8), revision 1.0. Of GGUF, by ggml's names
/// (github.com/ggml-org/ggml, ggml-common.h): blocks of elements with a binary16 scale.
enum class StoredForm : uint8_t {
  kValues,
  kE4M3,  ///< "F8_E4M3": 4 bits of exponent, 3 of mantissa, no infinity (torch.float8_e4m3fn)
  kE5M2,  ///< "F8_E5M2": the upper half of a binary16
  kQ8_0,
  kQ4_K,
  kQ5_K,
  kQ6_K
};

std::optional<StoredForm> stored_form_of(std::string_view dtype);  ///< of safetensors' 8-bit forms alone
float decoded(StoredForm form, uint8_t bits);                      ///< of those

/// What is stored as a whole: so many elements in so many bytes.
struct StoredBlock {
  int64_t elements = 1, bytes = 1;
};
StoredBlock stored_block(StoredForm form);

/// Whole blocks of elements → values: F32, or (8-bit floats, which it holds exactly) BF16.
void decode_elements(StoredForm form, const unsigned char* from, Tensor& to);

}  // namespace calibatt
