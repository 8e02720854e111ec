#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "backend/attention_backend.h"

namespace calibatt::cpu {

/// Attention and calibration on host tensors, shared out by parallel_for. It has no state, and may be used from several
/// threads.
class CpuAttention : public AttentionBackend {
 public:
  std::string_view name() const override { return "cpu"; }
  Tensor empty(DType dtype, std::vector<int64_t> shape) override { return {dtype, std::move(shape)}; }
  Tensor from_host(const Tensor& host) override { return host; }
  Tensor to_host(const Tensor& device) override { return device; }
  HostHeads heads_to_host(ConstHeadsView view, int, int) override { return {view, {}}; }
  void copy_heads(ConstHeadsView from, HeadsView to, int num_heads, int head_dim) override;

  std::string_view attention(const AttentionCall& call) override;
  std::string attention_kernel(DType dtype, int head_dim, bool eight_bits) const override;

  void take_video_energy(const Tensor& energy, const Tensor& tail, Tensor& video) override;
  Tensor output_metric(const Tensor& weight, const Tensor& gate, int num_heads) override;
  Tensor squared_changes(const Tensor& outputs, const Tensor& metric, int num_heads) override;
};

}  // namespace calibatt::cpu
