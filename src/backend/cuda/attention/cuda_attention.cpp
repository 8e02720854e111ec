#include "backend/cuda/attention/cuda_attention.h"

#include "backend/cuda/attention/attention.h"
#include "backend/cuda/attention/energy_levels.h"
#include "backend/cuda/attention/output_changes.h"
#include "backend/cuda/attention/schedule_buffers.h"
#include "base/error.h"

namespace calibatt::cuda {

CudaAttention::CudaAttention() : schedules_(std::make_unique<CudaScheduleBuffers>()) {}

Tensor CudaAttention::from_host(const Tensor& host) {
  Tensor device = context_.allocate(host.dtype(), host.shape());
  context_.copy_to_device(device.raw(), host.raw(), host.size_bytes());
  return device;
}

Tensor CudaAttention::to_host(const Tensor& device) {
  Tensor host(device.dtype(), device.shape());
  context_.copy_to_host(host.raw(), device.raw(), device.size_bytes());
  return host;
}

std::string dense_attention_kernel(DType dtype, int head_dim, bool eight_bits) {
  alignas(256) static std::byte somewhere_aligned;  // only its address is looked at
  AttentionCall call;
  call.q = call.k = call.v = {&somewhere_aligned, dtype, 1, head_dim, head_dim};
  call.out = {&somewhere_aligned, dtype, 1, head_dim, head_dim};
  call.head_dim = head_dim;
  call.eight_bits = eight_bits;
  return std::string(choose_attention_kernel(make_args(call, {}), current_device()).name);
}

std::string CudaAttention::attention_kernel(DType dtype, int head_dim, bool eight_bits) const {
  return dense_attention_kernel(dtype, head_dim, eight_bits);
}

HostHeads CudaAttention::heads_to_host(ConstHeadsView view, int num_heads, int head_dim) {
  const int64_t width = int64_t{num_heads} * head_dim;
  CALIBATT_ASSERT(view.num_tokens > 0 && (view.head_stride == head_dim || num_heads == 1));
  Tensor host(view.dtype, {view.num_tokens, num_heads, head_dim});
  const size_t element = dtype_size(view.dtype), row_bytes = static_cast<size_t>(width) * element;
  check(cudaMemcpy2DAsync(host.raw(), row_bytes, view.data, static_cast<size_t>(view.token_stride) * element, row_bytes,
                          static_cast<size_t>(view.num_tokens), cudaMemcpyDeviceToHost, context_.stream()),
        "copying from the GPU");
  context_.synchronize();
  if (view.dtype == DType::kF16) host = converted(host, DType::kF32);  // the host has no arithmetic on halves
  return {{host.raw(), host.dtype(), view.num_tokens, width, head_dim}, host};
}

void CudaAttention::copy_heads(ConstHeadsView from, HeadsView to, int num_heads, int head_dim) {
  CALIBATT_ASSERT(from.dtype == to.dtype && from.num_tokens == to.num_tokens);
  CALIBATT_ASSERT(num_heads == 1 || (from.head_stride == head_dim && to.head_stride == head_dim));
  const size_t element = dtype_size(from.dtype);
  const auto pitch = [&](int64_t token_stride) { return static_cast<size_t>(token_stride) * element; };
  check(cudaMemcpy2DAsync(to.data, pitch(to.token_stride), from.data, pitch(from.token_stride),
                          static_cast<size_t>(num_heads) * static_cast<size_t>(head_dim) * element,
                          static_cast<size_t>(from.num_tokens), cudaMemcpyDeviceToDevice, context_.stream()),
        "copying on the GPU");
}

std::string_view CudaAttention::attention(const AttentionCall& call) {
  // Empty for a dense call. The slot is free for the next schedule once the kernel enqueued here is done with it.
  const ScheduleStream::Lease lease = schedules_.get(call, context_.stream());
  const AttentionArgs args = make_args(call, lease.device(), lease.has_summaries());
  const size_t workspace_bytes = attention_workspace_bytes(args);
  const std::shared_ptr<void> workspace = context_.allocate_bytes(workspace_bytes);
  return cuda::attention(args, workspace.get(), workspace_bytes, context_.stream());
}

bool CudaAttention::encode_energy_levels(const Tensor& energy, std::span<const uint32_t> ladder, Tensor& codes) {
  const int64_t columns = energy.dim(-1), rows = energy.size() / columns;
  if (columns > kMostEncodedColumns) return false;
  CALIBATT_ASSERT(codes.size() == rows * ((columns + 1) / 2));
  cuda::encode_energy_levels(energy.f32(), rows, static_cast<int>(columns), ladder, codes.data<uint8_t>(),
                             context_.stream());
  return true;
}

void CudaAttention::take_video_energy(const Tensor& energy, const Tensor& tail, Tensor& video) {
  const int64_t columns = video.dim(2), rows = video.size() / columns;
  CALIBATT_ASSERT(energy.dim(2) >= columns && energy.size() == rows * energy.dim(2));
  CALIBATT_ASSERT(tail.empty() || tail.size() == rows * tail.dim(2));
  cuda::take_video_energy(energy.f32(), energy.dim(2), tail.empty() ? nullptr : tail.f32(),
                          tail.empty() ? 0 : tail.dim(2), rows, columns, video.f32(), context_.stream());
}

Tensor CudaAttention::output_metric(const Tensor& weight, const Tensor& gate, int num_heads) {
  const int64_t out = weight.dim(0), in = weight.dim(1), head_dim = in / num_heads;
  CALIBATT_ASSERT(head_dim * num_heads == in && gate.size() == out);
  Tensor metric = context_.allocate(DType::kF32, {num_heads, head_dim, head_dim});
  cuda::output_metric(weight.raw(), weight.dtype(), gate.f32(), static_cast<int>(out), num_heads,
                      static_cast<int>(head_dim), metric.f32(), context_.stream());
  return metric;
}

Tensor CudaAttention::squared_changes(const Tensor& outputs, const Tensor& metric, int num_heads) {
  const int64_t groups = outputs.dim(0), rows = outputs.dim(1), head_dim = outputs.dim(2) / num_heads;
  CALIBATT_ASSERT(groups >= 2 && head_dim * num_heads == outputs.dim(2));
  CALIBATT_ASSERT(metric.empty() || metric.size() == num_heads * head_dim * head_dim);
  Tensor changes = context_.allocate(DType::kF32, {num_heads, groups - 1});
  cuda::squared_changes(outputs.f32(), metric.empty() ? nullptr : metric.f32(), static_cast<int>(groups - 1), rows,
                        num_heads, static_cast<int>(head_dim), changes.f32(), context_.stream());
  return changes;
}

}  // namespace calibatt::cuda
