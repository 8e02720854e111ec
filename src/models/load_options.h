#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/work_progress.h"
#include "calibatt/lora.h"

namespace calibatt {

class WeightOverlay;

/// How a model component is loaded.
struct ModelLoadOptions {
  bool offload = false;  ///< matrices of the blocks stay in host memory and are streamed to the device block by block
  WorkProgress progress = {};                                 ///< of blocks; several times in each
  std::function<void(const std::string& message)> warn = {};  ///< one line about something odd that does no harm
  std::vector<Lora> loras = {};                               ///< to be merged into the transformers, in this order
  std::shared_ptr<const WeightOverlay> overlay = {};          ///< changes to the transformer's tensors; null: none
};

}  // namespace calibatt
