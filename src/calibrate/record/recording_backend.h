#pragma once

#include "backend/attention_backend.h"
#include "backend/backend.h"

namespace calibatt {

/// What a recording uses of a backend; any Backend or AttentionBackend will do.
struct RecordingBackend {
  RecordingBackend(Backend& backend) : RecordingBackend(backend, backend, backend.calibration_ops()) {}
  RecordingBackend(AttentionBackend& backend) : RecordingBackend(backend, backend, &backend) {}
  RecordingBackend(Device& device, AttentionEngine& engine, CalibrationOps* calibration_ops)
      : device(device), engine(engine), calibration_ops(calibration_ops) {}

  Device& device;
  AttentionEngine& engine;
  CalibrationOps* calibration_ops;  ///< null where the backend has none
};

}  // namespace calibatt
