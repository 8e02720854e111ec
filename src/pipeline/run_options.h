#pragma once

#include <string>

#include "calibatt/pipeline.h"
#include "models/wan/config.h"
#include "models/wan/vae_config.h"
#include "sampling/scheduler.h"

namespace calibatt {

/// What a model folder says about itself, apart from its components.
struct ModelFolder {
  std::string path;
  std::string transformer, text_encoder, tokenizer, vae;  ///< as the components' loaders take them: folder or file
  std::string name;                                       ///< the folder's own name
  SchedulerConfig scheduler;
  // generation_config.json (calibatt's own, optional); else the defaults of Wan 2.1.
  int width = 832, height = 480, video_frames = 81, steps = 50;
  double cfg_scale = 5, fps = 16;

  /// Reads model_index.json, generation_config.json and the scheduler's configuration. A folder without
  /// model_index.json may be Wan-AI's original one: the transformer in it, models_t5_umt5-xxl-enc-bf16.pth and
  /// Wan2.1_VAE.pth (or .safetensors of the same names) and google/umt5-xxl/, and the defaults of Wan-AI's generate.py.
  /// Throws Error(kNotFound / kFormat / kMismatch); for missing components, naming them.
  static ModelFolder open(const std::string& path);
};

/// Every unset option filled in, and all of them checked against what the model can do. Throws Error(kUsage) naming the
/// flag, the value and the nearest one that works.
GenerateOptions resolve_options(const GenerateOptions& options, const ModelFolder& folder, const WanVaeConfig& vae,
                                const WanTransformerConfig& transformer);

}  // namespace calibatt
