#pragma once

#include "backend/attention_call.h"
#include "base/tensor.h"

/// Device::copy_heads; CalibrationOps::take_video_energy, output_metric and squared_changes. All threads; sums in
/// float64.
namespace calibatt::cpu {

void copy_heads(ConstHeadsView from, HeadsView to, int num_heads, int head_dim);
void take_video_energy(const Tensor& energy, const Tensor& tail, Tensor& video);
Tensor output_metric(const Tensor& stored, const Tensor& gate, int num_heads);
Tensor squared_changes(const Tensor& outputs, const Tensor& metric, int num_heads);

}  // namespace calibatt::cpu
