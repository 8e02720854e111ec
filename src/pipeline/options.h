#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/eight_bit_parts.h"
#include "calibatt/pipeline.h"
#include "models/video_model.h"

namespace calibatt {

/// Every unset option filled in with the model's defaults; nothing is checked.
GenerateOptions with_defaults(const GenerateOptions& options, const ModelDescription& model);

/// Every unset option filled in, and all of them checked against what the model can do. Throws Error(kUsage) naming the
/// flag, the value and the nearest one that works.
GenerateOptions resolve_options(const GenerateOptions& options, const ModelDescription& model);

/// What a run's options allow in 8 bits. eight_bit_layers: the model is loaded with them.
EightBitParts allowed_eight_bits(const GenerateOptions& options, bool eight_bit_layers);

/// As resolve_options above; and refuses GenerateOptions::kept_steps where nothing is allowed in 8 bits.
GenerateOptions resolve_options(const GenerateOptions& options, const ModelDescription& model, EightBitParts allowed);

/// One line for each of these options that is given and that no step of its run reads. Throws as resolve_options.
std::vector<std::string> unread_options(const GenerateOptions& options, const ModelDescription& model);

/// The components that are not the model folder's.
ModelParts parts_of(const LoadOptions& options);
/// RunReport::parts.
std::map<std::string, std::string> names_of_parts(const LoadOptions& options);
/// RunReport::files_hash: the files' order and names do not matter.
std::string hash_of_files(const std::vector<std::string>& weight_files, const std::vector<Lora>& loras = {});
/// What a report says of a model's files.
struct FileHashes {
  std::string files, tokenizer, settings;
};
FileHashes hashes_of(const ModelDescription& model, const std::vector<Lora>& loras);
void enter_hashes(const FileHashes& hashes, RunReport& report);

/// RunReport::weights_dtype.
std::string weights_dtype_name(const LoadOptions& options);

/// Of resolved options.
VideoSize video_size(const GenerateOptions& options);

/// In bytes.
struct AvailableMemory {
  uint64_t host = 0;
  std::optional<uint64_t> device;  ///< absent: the model computes on the host
};
/// What to tell of a video that takes more memory than is available; empty: nothing. The weights are loaded already.
/// more_room: ", or …", what else than a smaller size would leave a device more; or empty.
std::string memory_warning(const GenerateOptions& options, const MemoryEstimate& needed,
                           const AvailableMemory& available, const std::string& more_room);

/// Which parts of each step's forwards are computed in 8 bits in a run with these resolved options: what `allowed` has,
/// but for the first GenerateOptions::kept_steps; where these are not given and a plan says it (`planned`, of each
/// step; empty: none does), as the plan says.
std::vector<EightBitParts> eight_bit_parts(const GenerateOptions& options, EightBitParts allowed,
                                           const std::vector<EightBitParts>& planned = {});
/// Of how many of the model's transformers some steps of a run with these resolved options have no layers in 8 bits, as
/// long as no plan that is not read yet says otherwise.
int transformers_without_8_bits(const GenerateOptions& options, const ModelDescription& model);

/// Of each step of a run with these resolved options.
std::vector<double> noise_levels(const GenerateOptions& options, const ModelDescription& model);

/// A scheduler at the first step of a run with these resolved options.
std::unique_ptr<Scheduler> make_scheduler(const GenerateOptions& options, const ModelDescription& model);

/// Of resolved options: one of each expert.
std::vector<double> guidance_scales(const GenerateOptions& options);

}  // namespace calibatt
