#pragma once

#include "attention/self_attention.h"
#include "calibatt/c_api.h"
#include "capi/session.h"

namespace calibatt::capi {

/// What follows a recorded call in its block, as the recorder wants it: W_o and the gate where the call computes, and
/// on the host where maps are measured. Lives as long as the call.
class RecordedOutput {
 public:
  /// Throws Error(kUsage) naming the member of call.output that cannot be.
  RecordedOutput(const Recording& recording, const calibatt_call& call, const AttentionGeometry& geometry);
  RecordedOutput(const RecordedOutput&) = delete;
  RecordedOutput& operator=(const RecordedOutput&) = delete;

  const OutputContext& context() const { return context_; }

 private:
  double asked_gain() const;

  RecordingPlace& place_;
  calibatt_output output_;
  Tensor gate_, host_weight_, host_gate_;
  OutputContext context_;
};

}  // namespace calibatt::capi
