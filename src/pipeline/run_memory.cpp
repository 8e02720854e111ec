#include "pipeline/run_memory.h"

#include "pipeline/precision.h"
#include "pipeline/weight_placement.h"

namespace calibatt {

MemoryEstimate run_memory(const ModelFiles& files, const GenerateOptions& options, const RankLayout& layout,
                          const Arithmetic& loaded) {
  const ModelDescription& model = files.description();
  Arithmetic arithmetic = loaded;
  arithmetic.wide_transformers = loaded.eight_bit_layers ? transformers_without_8_bits(options, model) : 0;
  arithmetic.num_ranks = layout.ranks_of_forward();
  arithmetic.decoding_ranks = layout.decoding_ranks;
  const VideoSize size = video_size(options);
  MemoryEstimate needed = files.memory(size, arithmetic);
  if (options.attention_dtype == AttentionDtype::kFP8) {
    needed.activations += eight_bit_attention_bytes(model, size, !options.plan_path.empty(), layout.ranks_of_forward());
  }
  return needed;
}

std::string run_memory_warning(const ModelFiles& files, const GenerateOptions& options, const RankLayout& layout,
                               const Arithmetic& loaded, const AvailableMemory& available) {
  const std::string more = loaded.offload ? "" : more_room(files.description(), layout, loaded.weight_ranks);
  return memory_warning(options, run_memory(files, options, layout, loaded), available, more);
}

}  // namespace calibatt
