#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/work_progress.h"

namespace calibatt {

class WeightOverlay;

/// How a model component is loaded.
struct ModelLoadOptions {
  bool offload = false;  ///< matrices of the blocks stay in host memory and are streamed to the device block by block
  WorkProgress progress = {};                                 ///< of blocks; several times in each
  std::function<void(const std::string& message)> warn = {};  ///< one line about something odd that does no harm
  std::shared_ptr<const WeightOverlay> overlay = {};          ///< changes to the transformer's tensors; null: none
};

}  // namespace calibatt
