#include "backend/cuda/device_shard.h"

#include <algorithm>
#include <string>

#include "backend/cuda/device/device_guard.h"
#include "backend/cuda/gather.h"
#include "base/error.h"

namespace calibatt::cuda {
namespace {

constexpr size_t kAlignment = 256;  // as device memory has it

/// The same memory. Whoever lets go of it last may be a rank of another GPU.
std::shared_ptr<void> freed_on(int device, std::shared_ptr<void> memory) {
  void* const data = memory.get();
  return {data, [device, memory = std::move(memory)](void*) mutable {
            const DeviceGuard guard(device);
            memory.reset();
          }};
}

}  // namespace

DeviceShard::DeviceShard(WeightStream& stream, ShardedBlock block)
    : StreamedMemory(stream, block.size_bytes), context_(stream.context()), block_(std::move(block)) {
  const int own = context_.device().index;
  for (const int other : block_.shards.all->devices()) {
    if (other == own) continue;
    if (!gpu_can_read(other, own)) {
      throw Error(ErrorKind::kUsage, "--shard-weights: GPU " + std::to_string(other) +
                                         " cannot read the memory of GPU " + std::to_string(own) +
                                         "; use GPUs that are connected (nvidia-smi topo -p2p r), --shard-weights off, "
                                         "or --offload, which needs no connection");
    }
    context_.let_read(other);
  }
}

size_t DeviceShard::append(Tensor matrix) {
  const size_t begin = append_room(matrix.dim(0), matrix.dim(1), matrix.dtype());
  matrices_.emplace_back(begin, std::move(matrix));
  return begin;
}

void DeviceShard::seal() {
  CALIBATT_ASSERT(!is_sealed());
  const ByteRange own = block_.range(size_bytes(), block_.shards.rank, kAlignment);
  own_ = freed_on(context_.device().index, context_.allocate_bytes(own.size()));
  for (const auto& [begin, matrix] : matrices_) {
    const size_t first = std::max(begin, own.begin), last = std::min(begin + matrix.size_bytes(), own.end);
    if (first >= last) continue;
    check(cudaMemcpyAsync(static_cast<char*>(own_.get()) + (first - own.begin),
                          static_cast<const char*>(matrix.raw()) + (first - begin), last - first,
                          cudaMemcpyDeviceToDevice, context_.stream()),
          "copying on the GPU");
  }
  matrices_.clear();
  context_.synchronize();  // others read it on streams of their own, and never wait for this one
  end_loading();
  block_.publish(own_);
}

void DeviceShard::copy_to(void* buffer, cudaStream_t copies) {
  if (parts_.empty()) parts_ = block_.parts();
  gather(block_, parts_, size_bytes(), kAlignment, buffer, copies);
}

}  // namespace calibatt::cuda
