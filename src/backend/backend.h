#pragma once

#include "backend/attention_engine.h"
#include "backend/calibration_ops.h"
#include "backend/clip_ops.h"
#include "backend/device.h"
#include "backend/eight_bit_ops.h"
#include "backend/linear.h"
#include "backend/transformer_ops.h"

namespace calibatt {

/// Where the arithmetic happens: a device that is also everything a transformer needs, and hands out three more
/// roles that it may lack. Whoever needs one role takes a reference to that role. Models are written against these
/// interfaces alone; a device backend implements them without touching models. Tensors passed in live where this
/// backend put them (from_host / empty), unless a comment says "host". Activations are dense, row-major [rows,
/// channels]; accumulation is at least float32. Shapes and dtypes are the caller's contract: a breach is an assertion,
/// not an Error, except where stated.
class Backend : public virtual Device, public LinearOps, public TransformerOps, public virtual AttentionEngine {
 public:
  /// Whether bfloat16 products run in hardware here: the precision to choose when nobody asked for one.
  virtual bool has_fast_bf16() const { return false; }
  /// Whether layers, activations and attention may be kF16 here (but for the text encoder's and the autoencoder's).
  virtual bool has_fp16() const { return false; }

  /// Null on a backend that cannot measure for calibration. It lives as long as the backend does, as the next one does.
  virtual CalibrationOps* calibration_ops() { return nullptr; }
  /// The video autoencoder's convolutions over time and space and what goes with them. Throws Error(kUsage) on a
  /// backend without.
  virtual ClipOps& clip_ops();
  /// Linear layers in 8 bits. Throws Error(kUsage), with the reason, on a backend or a device without.
  virtual EightBitOps& eight_bit_ops();
};

}  // namespace calibatt
