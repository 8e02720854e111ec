#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "backend/cuda/weight_stream.h"
#include "base/tensor.h"
#include "base/weight_shards.h"

namespace calibatt::cuda {

/// A block of which every rank keeps a part in its GPU's memory, and which each gathers into its own buffers.
class DeviceShard final : public StreamedMemory {
 public:
  /// Throws Error(kUsage) that names two GPUs where one cannot read the other's memory.
  DeviceShard(WeightStream& stream, ShardedBlock block);
  ~DeviceShard() override { leave(); }

  /// Takes a matrix in this GPU's memory, all of it until the block is sealed. Returns where it begins in the block, in
  /// bytes.
  size_t append(Tensor matrix);

  void seal() override;

 private:
  void copy_to(void* buffer, cudaStream_t copies) override;

  Context& context_;
  ShardedBlock block_;
  std::vector<std::pair<size_t, Tensor>> matrices_;  // by where they begin; until they are cut
  std::shared_ptr<void> own_;                        // this rank's part
  std::vector<std::shared_ptr<const void>> parts_;   // of all ranks; empty until the first use
};

}  // namespace calibatt::cuda
