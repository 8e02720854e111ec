#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "backend/attention_backend.h"

namespace calibatt::capi {

/// Of one call: where its work is enqueued, and the device memory that it may use meanwhile.
struct CallResources {
  void* stream = nullptr;
  void* workspace = nullptr;
  size_t workspace_bytes = 0;
};

/// Where the calls of one session compute. One call at a time.
class CallPlace {
 public:
  virtual ~CallPlace() = default;
  virtual AttentionEngine& engine() = 0;
  virtual bool computes_halves() const { return true; }
  /// Runs the host's part of a call. What `body` asks of the engine comes after what the call's stream had before, and
  /// before what it gets later.
  virtual void run(const CallResources& resources, const std::function<void()>& body) = 0;
  /// Within `run`: `body` is the caller's, which may enqueue on the call's stream, and sees what was computed.
  virtual void aside(const std::function<void()>& body) { body(); }
  /// Runs what makes or frees memory of the device outside calls.
  virtual void on_device(const std::function<void()>& body) { body(); }
  /// Within on_device: `body` is the caller's.
  virtual void off_device(const std::function<void()>& body) { body(); }
  /// What a call of this form needs, dense or planned.
  virtual size_t workspace_bytes(const AttentionCall& /*dense*/, bool /*may_have_summaries*/) { return 0; }
};

/// One that can also measure, in memory of its own.
class RecordingPlace : public CallPlace {
 public:
  virtual AttentionBackend& backend() = 0;
  AttentionEngine& engine() override { return backend(); }
};

/// device: CALIBATT_CPU or a GPU's index. Throws Error(kUsage, kDevice).
std::unique_ptr<CallPlace> make_call_place(int device);
std::unique_ptr<RecordingPlace> make_recording_place(int device);

/// Of a library with CUDA; the others throw Error(kDevice).
std::unique_ptr<CallPlace> make_cuda_call_place(int device);
std::unique_ptr<RecordingPlace> make_cuda_recording_place(int device);
/// Throws Error(kDevice) that says what is missing.
void require_cuda();
/// The compute capability (90 is 9.0) of the GPU that `calibatt calibrate` would compute on here; none: on the CPU.
std::optional<int> usual_gpu();

}  // namespace calibatt::capi
