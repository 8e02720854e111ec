#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "base/weight_shards.h"
#include "base/work_progress.h"
#include "calibatt/lora.h"

namespace calibatt {

class WeightOverlay;

/// Components that are taken from elsewhere than the model's folder: files or folders, as open_transformer,
/// open_text_encoder and open_vae (original_layout.h) take them. Empty: from the folder.
struct ModelParts {
  std::string transformer, text_encoder, vae;
  std::string second_transformer;  ///< of the low noise levels; only beside `transformer`

  bool empty() const {
    return transformer.empty() && text_encoder.empty() && vae.empty() && second_transformer.empty();
  }
};

/// How a model component is loaded.
struct ModelLoadOptions {
  bool offload = false;  ///< matrices of the blocks stay in host memory and are streamed to the device block by block
  /// Where ranks keep parts of the matrices in place of all of them: on their devices or, with `offload`, in host
  /// memory.
  RankShards shards = {};
  bool eight_bit_layers = false;              ///< the blocks' linear layers in 8 bits, where they bear it (EightBitOps)
  DType eight_bit_type = DType::kE4M3;        ///< of these: kE4M3 or kI8
  std::vector<std::string> kept_layers = {};  ///< that stay in the run's type nevertheless: parts of diffusers' names
  WorkProgress progress = {};                 ///< of blocks; several times in each
  std::function<void(const std::string& message)> warn = {};  ///< one line about something odd that does no harm
  std::vector<Lora> loras = {};                               ///< to be merged into the transformers, in this order
  std::string settings = {};  ///< folder whose config.json says what the tensors of a single file do not; may lack it
  std::shared_ptr<const WeightOverlay> overlay = {};  ///< changes to the transformer's tensors; null: none
};

}  // namespace calibatt
