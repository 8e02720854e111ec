#include "backend/cuda/attention/stream_attention.h"

#include <algorithm>

#include "backend/cuda/attention/attention.h"
#include "backend/cuda/attention/cuda_attention.h"
#include "backend/cuda/attention/schedule_buffers.h"

namespace calibatt::cuda {

StreamAttention::StreamAttention() : schedules_(std::make_unique<CudaScheduleBuffers>()) {}

void StreamAttention::set_call(cudaStream_t stream, void* workspace, size_t workspace_bytes) {
  stream_ = stream;
  workspace_ = workspace;
  workspace_bytes_ = workspace_bytes;
}

size_t StreamAttention::workspace_bytes(const AttentionCall& dense, bool may_have_summaries) {
  AttentionArgs args = make_args(dense, DeviceSchedule{}, false);
  const size_t bytes = attention_workspace_bytes(args);
  if (!may_have_summaries) return bytes;
  alignas(256) static std::byte somewhere[256];  // only that there is something is looked at
  DeviceSchedule schedule;
  schedule.tiles = reinterpret_cast<const Tile*>(somewhere);
  schedule.ranges = reinterpret_cast<const ChunkRange*>(somewhere);
  schedule.kept_bits = reinterpret_cast<const uint32_t*>(somewhere);
  schedule.num_tiles = 1;
  set_schedule(args, schedule, true);
  return std::max(bytes, attention_workspace_bytes(args));
}

std::string_view StreamAttention::attention(const AttentionCall& call) {
  const ScheduleStream::Lease lease = schedules_.get(call, stream_);
  return cuda::attention(make_args(call, lease.device(), lease.has_summaries()), workspace_, workspace_bytes_, stream_);
}

std::string StreamAttention::attention_kernel(DType dtype, int head_dim, bool eight_bits) const {
  return dense_attention_kernel(dtype, head_dim, eight_bits);
}

}  // namespace calibatt::cuda
