#pragma once

#include <optional>
#include <vector>

#include "backend/cuda/weight_stream.h"
#include "backend/stored_linear.h"
#include "base/weight_shards.h"

namespace calibatt::cuda {

/// Weights in pages of host memory, filled by all threads straight from the mapped file and then pinned. Where ranks
/// share a block, each of them fills all of it, and pins and keeps its own part.
class HostWeights final : public StreamedMemory {
 public:
  HostWeights(WeightStream& stream, size_t capacity_bytes);
  HostWeights(WeightStream& stream, ShardedBlock block);
  ~HostWeights() override { leave(); }

  /// Appends tensors one below the other, converted to dtype. Returns where they begin, in bytes from the group's
  /// begin. Throws Error(kNumeric) that names a tensor which is not finite.
  size_t append(const std::vector<StoredTensor>& parts, DType dtype);
  /// The same in 8 bits (base/eight_bits.h); scales: host, one for each row of all.
  size_t append_eight_bits(const std::vector<StoredTensor>& parts, DType dtype, float* scales);

  void seal() override;

 private:
  class Pages;
  size_t append_rows(const std::vector<StoredTensor>& parts, DType dtype);
  void copy_to(void* buffer, cudaStream_t copies) override;

  std::shared_ptr<Pages> pages_;
  std::optional<ShardedBlock> block_;
  std::vector<std::shared_ptr<const void>> parts_;  // of all ranks; empty until the first use
};

}  // namespace calibatt::cuda
