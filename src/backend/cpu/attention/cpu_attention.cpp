#include "backend/cpu/attention/cpu_attention.h"

#include "backend/cpu/attention/attention.h"
#include "backend/cpu/attention/output_changes.h"

namespace calibatt::cpu {

std::string_view CpuAttention::attention(const AttentionCall& call) {
  return cpu::attention(call);
}

std::string CpuAttention::attention_kernel(DType dtype, int head_dim, bool eight_bits) const {
  std::vector<float> row(static_cast<size_t>(head_dim));
  AttentionCall call;
  call.q = call.k = call.v = {row.data(), dtype, 1, head_dim, head_dim};
  call.out = {row.data(), dtype, 1, head_dim, head_dim};
  call.head_dim = head_dim;
  call.eight_bits = eight_bits;
  return std::string(choose_attention_kernel(call).name);
}

void CpuAttention::copy_heads(ConstHeadsView from, HeadsView to, int num_heads, int head_dim) {
  cpu::copy_heads(from, to, num_heads, head_dim);
}

void CpuAttention::take_video_energy(const Tensor& energy, const Tensor& tail, Tensor& video) {
  cpu::take_video_energy(energy, tail, video);
}

Tensor CpuAttention::output_metric(const Tensor& weight, const Tensor& gate, int num_heads) {
  return cpu::output_metric(weight, gate, num_heads);
}

Tensor CpuAttention::squared_changes(const Tensor& outputs, const Tensor& metric, int num_heads) {
  return cpu::squared_changes(outputs, metric, num_heads);
}

}  // namespace calibatt::cpu
