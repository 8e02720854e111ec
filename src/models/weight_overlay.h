#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/tensor.h"
#include "io/mapped_tensors.h"

namespace calibatt {

/// Changes to named tensors of a model's transformer, made in memory over the weights on disk: how a LoRA or another
/// delta will come in. It is laid over the tensors when a component is opened (original_layout.h), so that whoever asks
/// for a tensor afterwards (layers, the W_o of calibration, the fingerprint) sees the changed values and cannot see
/// others. Names are diffusers', also for a checkpoint in the original layout.
class WeightOverlay {
 public:
  /// The tensor's values are these. F32, BF16 or F16; of the shape that the model has.
  void replace(const std::string& name, Tensor values);
  /// The delta is added to what is there, stored or changed before: in F32, the sum rounded to the stored dtype, as
  /// fusing a LoRA in diffusers and saving the model does.
  void add(const std::string& name, Tensor delta);

  /// Throws Error(kMismatch) for a name that the model does not have, or of which it has another shape.
  MappedTensors over(const MappedTensors& tensors) const;

 private:
  struct Change {
    Tensor values;
    bool replaces = false;
  };
  std::map<std::string, std::vector<Change>> changes_;  ///< in the order in which they are made
};

}  // namespace calibatt
