#pragma once

#include "backend/attention_engine.h"
#include "backend/calibration_ops.h"
#include "backend/device.h"

namespace calibatt {

/// What self-attention and its calibration need of a backend, and no more: enough for tensors of another program, which
/// brings its own linear layers. A Backend of the same device is made of it.
class AttentionBackend : public virtual Device, public virtual AttentionEngine, public CalibrationOps {};

}  // namespace calibatt
