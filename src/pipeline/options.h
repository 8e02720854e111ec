#pragma once

#include "calibatt/pipeline.h"
#include "models/video_model.h"

namespace calibatt {

/// Every unset option filled in with the model's defaults; nothing is checked.
GenerateOptions with_defaults(const GenerateOptions& options, const ModelDescription& model);

/// Every unset option filled in, and all of them checked against what the model can do. Throws Error(kUsage) naming the
/// flag, the value and the nearest one that works.
GenerateOptions resolve_options(const GenerateOptions& options, const ModelDescription& model);

/// Of resolved options.
VideoSize video_size(const GenerateOptions& options);

/// What to tell of a video that takes more host memory than is available, in bytes; empty: nothing. The weights are
/// loaded already. on_host: the model computes there.
std::string memory_warning(const GenerateOptions& options, const MemoryEstimate& needed, bool on_host,
                           uint64_t available);

/// A scheduler at the first step of a run with these resolved options.
std::unique_ptr<Scheduler> make_scheduler(const GenerateOptions& options, const ModelDescription& model);

}  // namespace calibatt
