#pragma once

#include <string>

#include "io/mapped_tensors.h"

namespace calibatt {

/// Opens a GGUF file (versions 2 and 3, little-endian): named tensors as values (F32, F16, BF16) or in blocks (Q8_0,
/// Q4_K, Q5_K, Q6_K), which `get` gives as F32. Shapes are torch's, the slowest axis first, and where a tensor has more
/// axes than GGUF takes those that city96's converter notes ("comfy.gguf.orig_shape."). Throws Error(kNotFound /
/// kUnreadable), and Error(kFormat) (`FILE: reason`) for other forms, by name, and for anything that is not sound.
MappedTensors open_gguf(const std::string& path);

}  // namespace calibatt
