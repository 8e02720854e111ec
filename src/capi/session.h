#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "attention/run_attention.h"
#include "calibatt/c_api.h"
#include "calibrate/profile/profile.h"
#include "capi/call_place.h"

namespace calibatt::capi {

/// What a session measures, where it is one of calibatt_record.
struct Recording {
  RecordingPlace& place;
  SelfAttention& recorder;
  Measured measured;
};

/// Of a session: calls wait for each other. A callback that a call makes may not call again, since it would wait for
/// itself: lock then throws Error(kUsage).
class CallMutex {
 public:
  void lock();
  void unlock();

 private:
  std::mutex mutex_;
  std::atomic<std::thread::id> owner_{};
};

}  // namespace calibatt::capi

/// Calls wait for each other, by `mutex_`; nothing is shared between sessions but the plan, which does not change.
struct calibatt_session {
  /// Of a run. plan: null is dense; checksum: the plan's; reuses_steps: the caller makes predictions without forwards.
  calibatt_session(std::shared_ptr<const calibatt::Plan> plan, std::string checksum,
                   const calibatt::RunDescription& run, int device, calibatt::OnMismatch on_mismatch,
                   bool reuses_steps);
  /// Of a prompt that is recorded; everything outlives the session.
  calibatt_session(const calibatt::capi::Recording& recording, const calibatt::RunDescription& run);

  void write_token_order(int32_t* raster_of_position) const;
  calibatt_prediction prediction(int step) const;
  void begin_forward(int step, calibatt::GuidanceBranch branch);
  size_t workspace_bytes(const calibatt_call& call) const;
  void attend(const calibatt_call& call);
  void prefetch(int step, int layer);
  bool wants_output() const;
  bool is_recording() const { return recording_.has_value(); }
  void wait() const;  ///< until no call runs
  std::string json() const;
  /// Rethrows what the first call threw that failed for another reason than its arguments, so that a recording whose
  /// caller passes over that does not end well.
  void rethrow_failure() const;

 private:
  void require_step(int step) const;
  calibatt::StepReuse reuse_of(int step) const;
  void remembering(const std::function<void()>& body);
  calibatt::AttentionGeometry geometry_of(const calibatt_call& call) const;
  void attend_sample(const calibatt_call& call, const calibatt::AttentionGeometry& geometry, int64_t sample);
  void require_recordable(const calibatt_call& call) const;

  mutable calibatt::capi::CallMutex mutex_;
  std::shared_ptr<const calibatt::Plan> plan_;
  std::string checksum_;
  std::unique_ptr<calibatt::capi::CallPlace> own_place_;
  std::unique_ptr<calibatt::RunAttention> run_;  // null while recording
  std::optional<calibatt::capi::Recording> recording_;
  calibatt::capi::CallPlace* place_ = nullptr;
  calibatt::SelfAttention* attention_ = nullptr;
  calibatt::AttentionGeometry geometry_;  // of the video's tokens
  int num_layers_ = 0;
  std::vector<double> sigmas_;                   // of the run's steps
  std::vector<int> step_transformer_;            // empty where there is one
  std::vector<calibatt::StepReuse> step_reuse_;  // empty: all steps run
  int64_t forwards_ = 0;
  bool begun_ = false;
  calibatt::DType dtype_ = calibatt::DType::kBF16;  // of the last call
  std::exception_ptr failure_;
};
