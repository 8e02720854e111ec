#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <vector>

#include "base/weight_shards.h"

namespace calibatt::cuda {

/// Enqueues a copy of each rank's part of filled_bytes into `buffer`, the next rank's first and this one's own last, so
/// that no part is read by all ranks at a time. Parts are pinned host memory, or memory of GPUs that this one may read.
void gather(const ShardedBlock& block, const std::vector<std::shared_ptr<const void>>& parts, size_t filled_bytes,
            size_t alignment, void* buffer, cudaStream_t copies);

}  // namespace calibatt::cuda
