// Only in builds with CUDA.
#ifdef CALIBATT_HAVE_CUDA

#include "backend/cuda/attention/attention.h"
#include "backend/cuda/attention/cuda_attention.h"
#include "backend/cuda/attention/schedule_buffers.h"
#include "backend/cuda/attention/stream_attention.h"
#include "backend/cuda/device/device_guard.h"
#include "backend/cuda/device/event.h"
#include "base/error.h"
#include "capi/call_place.h"

namespace calibatt::capi {
namespace {

cudaStream_t stream_of(const CallResources& resources) {
  return static_cast<cudaStream_t>(resources.stream);
}

/// On the caller's stream, with the caller's workspace.
class CudaPlace : public CallPlace {
 public:
  explicit CudaPlace(int device) : device_(device) {
    on_device([&] {
      cuda::use_capable_device(device_);
      engine_ = std::make_unique<cuda::StreamAttention>();
    });
  }
  ~CudaPlace() override {
    const cuda::DeviceGuard guard(device_);
    engine_.reset();
  }

  AttentionEngine& engine() override { return *engine_; }
  void run(const CallResources& resources, const std::function<void()>& body) override {
    const cuda::DeviceGuard guard(device_);
    engine_->set_call(stream_of(resources), resources.workspace, resources.workspace_bytes);
    body();
  }
  void on_device(const std::function<void()>& body) override {
    const cuda::DeviceGuard guard(device_);
    body();
  }
  size_t workspace_bytes(const AttentionCall& dense, bool may_have_summaries) override {
    const cuda::DeviceGuard guard(device_);
    return cuda::StreamAttention::workspace_bytes(dense, may_have_summaries);
  }

 private:
  const int device_;
  std::unique_ptr<cuda::StreamAttention> engine_;
};

/// On a stream of its own that joins the caller's before and behind each call, with memory of its own.
class CudaRecordingPlace : public RecordingPlace {
 public:
  explicit CudaRecordingPlace(int device) : device_(device), callers_device_(cuda::DeviceGuard::current()) {
    on_device([&] {
      cuda::use_capable_device(device_);
      backend_ = std::make_unique<cuda::CudaAttention>();
      mark_ = std::make_unique<cuda::Event>();
    });
  }
  ~CudaRecordingPlace() override {
    const cuda::DeviceGuard guard(device_);
    mark_.reset();
    backend_.reset();
  }

  AttentionBackend& backend() override { return *backend_; }
  void run(const CallResources& resources, const std::function<void()>& body) override {
    const cuda::DeviceGuard guard(device_);
    caller_ = stream_of(resources);
    join(caller_, own());
    try {
      body();
    } catch (...) {
      join(own(), caller_);  // what was enqueued still reads the caller's memory
      throw;
    }
    join(own(), caller_);
  }
  void aside(const std::function<void()>& body) override {
    join(own(), caller_);
    off_device(body);
    join(caller_, own());
  }
  void on_device(const std::function<void()>& body) override {
    const cuda::DeviceGuard guard(device_);
    body();
  }
  void off_device(const std::function<void()>& body) override {
    const cuda::DeviceGuard guard(callers_device_);
    body();
  }

 private:
  cudaStream_t own() { return backend_->context().stream(); }
  void join(cudaStream_t first, cudaStream_t second) {
    mark_->record(first);
    mark_->hold_back(second);
  }

  const int device_, callers_device_;
  std::unique_ptr<cuda::CudaAttention> backend_;
  std::unique_ptr<cuda::Event> mark_;
  cudaStream_t caller_ = nullptr;
};

}  // namespace

void require_cuda() {
  if (cuda::num_devices() > 0 && cuda::has_capable_device()) return;
  cuda::use_capable_device(0);  // says why not
}

std::optional<int> usual_gpu() {
  return cuda::has_capable_device() ? std::optional(cuda::first_compute_capability()) : std::nullopt;
}

std::unique_ptr<CallPlace> make_cuda_call_place(int device) {
  return std::make_unique<CudaPlace>(device);
}

std::unique_ptr<RecordingPlace> make_cuda_recording_place(int device) {
  return std::make_unique<CudaRecordingPlace>(device);
}

}  // namespace calibatt::capi

#endif
