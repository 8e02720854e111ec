#pragma once

#include "base/tensor.h"

namespace calibatt {

/// Sinusoids of a timestep, [channels] F32 on the host: first the cosines, then the sines, of t ·
/// 10000^(−i/(channels/2)). In float32 throughout, as diffusers computes it: at t = 1000 the rounding of the angle is
/// visible in the result.
Tensor timestep_embedding(double timestep, int channels);

}  // namespace calibatt
