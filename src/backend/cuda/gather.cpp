#include "backend/cuda/gather.h"

#include "backend/cuda/device/device.h"

namespace calibatt::cuda {

void gather(const ShardedBlock& block, const std::vector<std::shared_ptr<const void>>& parts, size_t filled_bytes,
            size_t alignment, void* buffer, cudaStream_t copies) {
  const int num_ranks = block.shards.num_ranks();
  for (int turn = 1; turn <= num_ranks; ++turn) {
    const int rank = (block.shards.rank + turn) % num_ranks;
    const ByteRange range = block.range(filled_bytes, rank, alignment);
    if (range.size() == 0) continue;
    check(cudaMemcpyAsync(static_cast<char*>(buffer) + range.begin, parts[static_cast<size_t>(rank)].get(),
                          range.size(), cudaMemcpyDefault, copies),
          "gathering weights from the ranks that keep them");
  }
}

}  // namespace calibatt::cuda
