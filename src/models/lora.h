#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "calibatt/lora.h"
#include "io/mapped_tensors.h"
#include "models/weight_overlay.h"

namespace calibatt {

/// What one LoRA changes in a transformer, laid over whatever `overlay` does already: weight += scale · alpha/rank ·
/// up·down, and whole differences of weights (`.diff`), biases (`.diff_b`) and modulations (`.diff_m`), all by `scale`.
/// Without an alpha it is the rank. Names of layers may be Wan-AI's, diffusers' or kohya's (with underscores), with any
/// of the usual prefixes; matrices lora_down/lora_up or lora_A/lora_B; a PEFT adapter's alpha comes from its config,
/// adapter_config.json beside the file (8 where that does not say it, as in PEFT).
///
/// transformer: its tensors under diffusers' names. Keys that change nothing here are told to `warn`, in one line with
/// their number and the first names. Throws Error(kNotFound / kFormat) for a file that is none, kMismatch, naming
/// tensor and layer, for other shapes, for kinds of LoRA that are not read, and where no key fits at all; kNumeric for
/// a factor above 10000. Where the sum does not fit the weight's dtype, asking for the tensor throws kNumeric.
void add_lora(const Lora& lora, const MappedTensors& transformer, WeightOverlay& overlay,
              const std::function<void(const std::string& message)>& warn = {});

/// All that changes expert number `expert` of `num_experts`, over `first` (may be null). Null where nothing does.
/// Throws Error(kUsage) for a LoRA of one expert where there is one transformer alone.
std::shared_ptr<const WeightOverlay> merged_overlay(const std::vector<Lora>& loras, int expert, int num_experts,
                                                    const MappedTensors& transformer,
                                                    std::shared_ptr<const WeightOverlay> first,
                                                    const std::function<void(const std::string& message)>& warn = {});

/// Of what it is made from, without a look at the transformer: the bytes of its file and of the config that is read
/// beside it, and its scale. Errors as for add_lora.
std::string lora_fingerprint(const Lora& lora);

/// The file of its tensors: itself, or the one in a PEFT adapter's folder.
std::string lora_file(const Lora& lora);

/// Whether it changes this expert.
bool concerns(const Lora& lora, int expert, int num_experts);

}  // namespace calibatt
