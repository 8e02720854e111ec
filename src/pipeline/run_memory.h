#pragma once

#include <string>

#include "models/video_model.h"
#include "pipeline/options.h"
#include "pipeline/rank_layout.h"

namespace calibatt {

/// About what a run with these resolved options takes on each device, and in host memory for each rank. loaded: what
/// loading the model decided; what the run and its ranks decide is entered here.
MemoryEstimate run_memory(const ModelFiles& files, const GenerateOptions& options, const RankLayout& layout,
                          const Arithmetic& loaded);

/// What to tell of a run whose weights are loaded, where it takes more memory than is available; empty: nothing.
std::string run_memory_warning(const ModelFiles& files, const GenerateOptions& options, const RankLayout& layout,
                               const Arithmetic& loaded, const AvailableMemory& available);

}  // namespace calibatt
