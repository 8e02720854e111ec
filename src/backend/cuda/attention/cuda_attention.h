#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "backend/attention_backend.h"
#include "backend/cuda/attention/schedule_stream.h"
#include "backend/cuda/device/context.h"
#include "backend/cuda/device/device_ranks.h"
#include "backend/cuda/device/event_timer.h"

namespace calibatt::cuda {

/// Attention and calibration on the thread's current GPU: what CudaBackend is made of, and needs neither cuBLAS nor
/// cuDNN. Memory and order: Context.
class CudaAttention : public AttentionBackend {
 public:
  CudaAttention();

  std::string_view name() const override { return "cuda"; }
  std::string device_name() const override { return context_.device().name; }
  void make_current() override { use_device(context_.device().index); }
  std::unique_ptr<Communicator> join(Communicator& hosts) override {
    return std::make_unique<DeviceRanks>(hosts, context_);
  }
  void synchronize() override { context_.synchronize(); }
  std::unique_ptr<Timer> make_timer() override { return std::make_unique<EventTimer>(context_.stream()); }
  void limit_run_ahead() override { context_.limit_run_ahead(); }

  Tensor empty(DType dtype, std::vector<int64_t> shape) override { return context_.allocate(dtype, std::move(shape)); }
  Tensor from_host(const Tensor& host) override;
  Tensor to_host(const Tensor& device) override;
  HostHeads heads_to_host(ConstHeadsView view, int num_heads, int head_dim) override;
  void copy_heads(ConstHeadsView from, HeadsView to, int num_heads, int head_dim) override;
  bool in_host_memory() const override { return false; }
  size_t available_memory_bytes() const override { return context_.available_bytes(); }
  bool is_readable_by(int device) const override { return gpu_can_read(device, context_.device().index); }
  size_t peak_memory_bytes() const override { return context_.peak_bytes() + schedules_.stats().peak_device_bytes; }
  void reset_peak_memory() override { context_.reset_peak(); }
  void trim_memory() override { context_.trim(); }

  std::string_view attention(const AttentionCall& call) override;
  std::string attention_kernel(DType dtype, int head_dim, bool eight_bits) const override;
  void prefetch_schedule(const std::shared_ptr<const ScheduleSource>& schedule, const ScheduleSizes& sizes) override {
    schedules_.prefetch(schedule, sizes);
  }
  MaskStreaming mask_streaming() const override { return schedules_.stats(); }

  bool encode_energy_levels(const Tensor& energy, std::span<const uint32_t> ladder, Tensor& codes) override;
  void take_video_energy(const Tensor& energy, const Tensor& tail, Tensor& video) override;
  Tensor output_metric(const Tensor& weight, const Tensor& gate, int num_heads) override;
  Tensor squared_changes(const Tensor& outputs, const Tensor& metric, int num_heads) override;
  std::optional<SampledErrors> sampled_errors(const SampledErrorsCall& call) override;

  Context& context() { return context_; }

 protected:
  Context context_;

 private:
  ScheduleStream schedules_;
};

/// The kernel that the current GPU runs for dense calls of this dtype and head size, in 8 bits or not. Errors: as of
/// choose_attention_kernel.
std::string dense_attention_kernel(DType dtype, int head_dim, bool eight_bits = false);

}  // namespace calibatt::cuda
