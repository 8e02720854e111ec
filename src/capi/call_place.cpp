#include "capi/call_place.h"

#include "backend/cpu/attention/cpu_attention.h"
#include "base/error.h"
#include "calibatt/c_api.h"
#include "capi/guarded.h"

namespace calibatt::capi {
namespace {

class CpuPlace : public RecordingPlace {
 public:
  AttentionBackend& backend() override { return backend_; }
  bool computes_halves() const override { return false; }
  void run(const CallResources&, const std::function<void()>& body) override { body(); }

 private:
  cpu::CpuAttention backend_;
};

}  // namespace

std::unique_ptr<CallPlace> make_call_place(int device) {
  if (device == CALIBATT_CPU) return std::make_unique<CpuPlace>();
  return make_cuda_call_place(device);
}

std::unique_ptr<RecordingPlace> make_recording_place(int device) {
  if (device == CALIBATT_CPU) return std::make_unique<CpuPlace>();
  return make_cuda_recording_place(device);
}

#ifndef CALIBATT_HAVE_CUDA
void require_cuda() {
  throw Error(ErrorKind::kDevice,
              "this library was built without CUDA kernels; compute on the CPU, or build calibatt where nvcc is");
}

std::optional<int> usual_gpu() {
  return std::nullopt;
}

std::unique_ptr<CallPlace> make_cuda_call_place(int) {
  require_cuda();
  return nullptr;
}

std::unique_ptr<RecordingPlace> make_cuda_recording_place(int) {
  require_cuda();
  return nullptr;
}
#endif

}  // namespace calibatt::capi
