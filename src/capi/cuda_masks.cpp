#include "capi/masks.h"

#ifdef CALIBATT_HAVE_CUDA

#include "backend/cuda/attention/attention.h"
#include "backend/cuda/device/device_guard.h"

namespace calibatt::capi {
namespace {

class CudaMasks : public ResidentMasks {
 public:
  CudaMasks(int device, std::span<const HeadSchedule> heads, const ScheduleShape& shape)
      : device_(device), schedule_(heads, shape.num_queries, shape.num_keys, shape.block_q, shape.block_k) {}
  ~CudaMasks() override {
    const cuda::DeviceGuard guard(device_);
    schedule_ = {};
  }
  size_t size_bytes() const override { return schedule_.size_bytes(); }
  const cuda::ResidentSchedule& schedule() const { return schedule_; }

 private:
  const int device_;
  cuda::ResidentSchedule schedule_;
};

/// The first sample's arguments, then what a call of one sample does not have.
cuda::AttentionArgs args_of(const BatchedCall& call) {
  cuda::AttentionArgs args = cuda::make_args(call.sample, {});
  args.batch = call.batch;
  args.q.batch_stride = call.q_stride;
  args.k.batch_stride = call.k_stride;
  args.v.batch_stride = call.v_stride;
  args.out.batch_stride = call.out_stride;
  if (call.masks != nullptr) {
    const cuda::ResidentSchedule& schedule = static_cast<const CudaMasks*>(call.masks)->schedule();
    cuda::set_schedule(args, schedule.device(), schedule.has_summaries());
  }
  return args;
}

}  // namespace

std::unique_ptr<ResidentMasks> make_cuda_masks(int device, std::span<const HeadSchedule> heads,
                                               const ScheduleShape& shape) {
  const cuda::DeviceGuard guard(device);
  cuda::use_capable_device(device);
  return std::make_unique<CudaMasks>(device, heads, shape);
}

ChosenKernel choose_cuda_kernel(int device, const BatchedCall& call) {
  const cuda::DeviceGuard guard(device);
  cuda::use_capable_device(device);
  const cuda::AttentionArgs args = args_of(call);
  const size_t bytes = cuda::attention_workspace_bytes(args, call.kernel);
  return {cuda::choose_attention_kernel(args, cuda::current_device(), call.kernel).name.data(), bytes};
}

void run_on_cuda(int device, const BatchedCall& call) {
  const cuda::DeviceGuard guard(device);
  cuda::attention(args_of(call), call.resources.workspace, call.resources.workspace_bytes,
                  static_cast<cudaStream_t>(call.resources.stream), call.kernel);
}

}  // namespace calibatt::capi

#else

namespace calibatt::capi {

std::unique_ptr<ResidentMasks> make_cuda_masks(int, std::span<const HeadSchedule>, const ScheduleShape&) {
  require_cuda();
  return nullptr;
}

ChosenKernel choose_cuda_kernel(int, const BatchedCall&) {
  require_cuda();
  return {};
}

void run_on_cuda(int, const BatchedCall&) {
  require_cuda();
}

}  // namespace calibatt::capi

#endif
