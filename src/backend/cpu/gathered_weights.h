#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "backend/slot_ring.h"
#include "backend/streamed_weights.h"
#include "base/tensor.h"
#include "base/weight_shards.h"

namespace calibatt::cpu {

/// Two buffers for blocks that are gathered from all ranks: those of one rank's backend.
struct GatherRing {
  SlotRing slots{2};
  std::array<Tensor, 2> buffers;
};

/// A block of which every rank keeps a part: what a GPU does by copies beside its computing, here at once. It saves
/// memory, and is the reference of the other.
class GatheredWeights final : public StreamedWeights {
 public:
  GatheredWeights(GatherRing& ring, ShardedBlock block, int64_t id) : ring_(ring), block_(std::move(block)), id_(id) {}
  ~GatheredWeights() override;
  GatheredWeights(const GatheredWeights&) = delete;
  GatheredWeights& operator=(const GatheredWeights&) = delete;

  /// Takes a matrix, in whatever layout. Returns where it begins in the block, in bytes.
  size_t append(Tensor matrix);
  /// The block, all of it; only between begin_use and end_use.
  const char* memory() const;

  void seal() override;
  void prefetch() override;
  void begin_use() override;
  void end_use() override;

 private:
  void fill(int slot);

  GatherRing& ring_;
  ShardedBlock block_;
  int64_t id_;
  std::vector<std::pair<size_t, Tensor>> matrices_;  // by where they begin; until they are cut
  size_t size_bytes_ = 0;
  Tensor own_;                                      // this rank's part; empty until sealed
  std::vector<std::shared_ptr<const void>> parts_;  // of all ranks; empty until the first use
  int slot_ = -1;                                   // while in use
};

}  // namespace calibatt::cpu
