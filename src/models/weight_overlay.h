#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/tensor.h"
#include "io/mapped_tensors.h"

namespace calibatt {

/// Changes to named tensors of a model's transformer, made in memory over the weights on disk: how a LoRA or another
/// delta comes in. It is laid over the tensors when a component is opened (original_layout.h), so that whoever asks
/// for a tensor afterwards (layers, the W_o of calibration, the fingerprint) sees the changed values and cannot see
/// others. A tensor is changed when it is asked for, some rows at a time, and not kept. Names are diffusers', also for
/// a checkpoint in the original layout.
class WeightOverlay {
 public:
  /// The tensor's values are these. F32, BF16 or F16; of the shape that the model has.
  void replace(const std::string& name, Tensor values);
  /// The delta is added to what is there, stored or changed before: in F32, the sum rounded to the stored dtype, as
  /// fusing a LoRA in diffusers and saving the model does.
  void add(const std::string& name, Tensor delta);

  /// Adds to some rows of a tensor: F32 [count, elements of a row], the first of them being `first_row`.
  using AddToRows = std::function<void(int64_t first_row, Tensor& rows)>;
  /// The same for a delta of this shape that is made when it is needed. `prepare` is called each time the tensor is
  /// asked for, and what it gives for consecutive rows.
  void add(const std::string& name, std::vector<int64_t> shape, std::function<AddToRows()> prepare);

  bool empty() const { return changes_.empty(); }
  /// Throws Error(kMismatch) for a name that the model does not have, or of which it has another shape.
  MappedTensors over(const MappedTensors& tensors) const;

 private:
  struct Change {
    std::vector<int64_t> shape;
    bool replaces = false;
    std::function<AddToRows()> prepare;
  };
  static Tensor changed(const std::vector<Change>& changes, const Tensor& stored);
  std::map<std::string, std::vector<Change>> changes_;  ///< in the order in which they are made
};

}  // namespace calibatt
