#pragma once

#include <string>

namespace calibatt {

/// A change to a model's transformers that is merged into their weights when they are loaded: low-rank matrices, whole
/// differences, or both.
struct Lora {
  /// Which transformers it changes, in a model of two: all, that of the high noise levels (which begins), or that of
  /// the low ones.
  enum class Expert { kAll, kHigh, kLow };

  std::string path;  ///< a safetensors file, or the folder of a PEFT adapter
  double scale = 1;  ///< factor of the whole change
  Expert expert = Expert::kAll;
};

}  // namespace calibatt
