#pragma once

#include "base/tensor.h"

namespace calibatt {

/// Classifier-free guidance (Ho and Salimans, 2022, arXiv 2207.12598): conditional ← unconditional + scale ·
/// (conditional − unconditional). Both F32 on the host, of one shape.
void guide(Tensor& conditional, const Tensor& unconditional, double scale);

}  // namespace calibatt
