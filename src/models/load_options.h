#pragma once

#include <functional>
#include <string>

namespace calibatt {

/// How a model component is loaded.
struct ModelLoadOptions {
  bool offload = false;  ///< matrices of the blocks stay in host memory and are streamed to the device block by block
  std::function<void(int done, int total)> progress = {};     ///< after each block; what it throws ends the loading
  std::function<void(const std::string& message)> warn = {};  ///< one line about something odd that does no harm
};

}  // namespace calibatt
