#include "base/weight_shards.h"

#include <algorithm>

#include "base/error.h"

namespace calibatt {

ByteRange shard_range(size_t size_bytes, int rank, int num_ranks, size_t alignment) {
  CALIBATT_ASSERT(rank >= 0 && rank < num_ranks && alignment > 0);
  const size_t units = (size_bytes + alignment - 1) / alignment, ranks = static_cast<size_t>(num_ranks);
  const auto begin_of = [&](size_t of) { return std::min(size_bytes, units * of / ranks * alignment); };
  return {begin_of(static_cast<size_t>(rank)), begin_of(static_cast<size_t>(rank) + 1)};
}

void WeightShards::publish(const std::string& block, int rank, const std::shared_ptr<const void>& memory) {
  const std::lock_guard lock(mutex_);
  std::vector<std::weak_ptr<const void>>& parts = blocks_[block];
  parts.resize(devices_.size());
  parts.at(static_cast<size_t>(rank)) = memory;
}

std::vector<std::shared_ptr<const void>> WeightShards::parts_of(const std::string& block) const {
  const std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<const void>> parts(devices_.size());
  const auto found = blocks_.find(block);
  for (size_t rank = 0; rank < parts.size(); ++rank) {
    if (found != blocks_.end()) parts[rank] = found->second[rank].lock();
    if (parts[rank] != nullptr) continue;
    throw Error(ErrorKind::kDevice, "rank " + std::to_string(rank) + " of " + std::to_string(parts.size()) +
                                        " does not have its part of " + block + "; load the model again");
  }
  return parts;
}

}  // namespace calibatt
