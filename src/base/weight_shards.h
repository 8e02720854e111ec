#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace calibatt {

/// Bytes of a block of weights, from the block's begin.
struct ByteRange {
  size_t begin = 0, end = 0;
  size_t size() const { return end - begin; }
};

/// What one of num_ranks keeps of size_bytes: as much as the others, but for ranges that begin at multiples of
/// `alignment`. The ranges of all ranks cover all, in the order of the ranks; some may be empty.
ByteRange shard_range(size_t size_bytes, int rank, int num_ranks, size_t alignment);

/// What the ranks of one pipeline keep of the same weights: each a part of every block. A part is published when it is
/// filled, and never changes, so that whoever gathers a block waits for nobody. Ranks meet between loading and
/// computing. May be used by all ranks at a time.
class WeightShards {
 public:
  /// devices: of the ranks, as CUDA counts.
  explicit WeightShards(std::vector<int> devices) : devices_(std::move(devices)) {}

  int num_ranks() const { return static_cast<int>(devices_.size()); }
  const std::vector<int>& devices() const { return devices_; }
  /// memory: all ranks can read it for as long as somebody holds it.
  void publish(const std::string& block, int rank, const std::shared_ptr<const void>& memory);
  /// Every rank's part. Throws Error(kDevice) where one is not there: its rank could not load it, or gave it back.
  std::vector<std::shared_ptr<const void>> parts_of(const std::string& block) const;

 private:
  const std::vector<int> devices_;
  mutable std::mutex mutex_;
  std::map<std::string, std::vector<std::weak_ptr<const void>>> blocks_;  // [ranks] of each
};

/// One rank's place among those that share weights. Without `all` it keeps them whole.
struct RankShards {
  std::shared_ptr<WeightShards> all = {};
  int rank = 0;
  std::string model = {};  ///< what tells the blocks of one transformer from those of another

  explicit operator bool() const { return all != nullptr; }
  int num_ranks() const { return all != nullptr ? all->num_ranks() : 1; }
};

/// A block's place among the shards of all ranks.
struct ShardedBlock {
  RankShards shards;
  std::string name;          ///< the same on every rank, of this block alone
  size_t size_bytes = 0;     ///< of its matrices, at most (LinearOps::streamed_bytes)
  bool on_the_host = false;  ///< parts are in host memory, not on the ranks' devices

  ByteRange range(size_t filled_bytes, int rank, size_t alignment) const {
    return shard_range(filled_bytes, rank, shards.num_ranks(), alignment);
  }
  void publish(const std::shared_ptr<const void>& memory) const { shards.all->publish(name, shards.rank, memory); }
  std::vector<std::shared_ptr<const void>> parts() const { return shards.all->parts_of(name); }
};

}  // namespace calibatt
