#include "backend/cuda/staged_upload.h"

#include <algorithm>

#include "backend/cuda/kernels/elementwise.h"
#include "base/checked_copy.h"
#include "base/error.h"

namespace calibatt::cuda {
namespace {

constexpr size_t kChunkBytes = size_t{32} << 20;  // some hundred pieces for the threads, under a millisecond of PCIe

}  // namespace

void StagedUpload::run(const StoredTensor& stored, void* device, DType device_dtype) {
  const DType dtype = stored.tensor.dtype(), staged_dtype = dtype == DType::kF64 ? DType::kF32 : dtype;
  const size_t element = dtype_size(dtype), staged_element = dtype_size(staged_dtype);
  const auto chunk_elements = static_cast<int64_t>(kChunkBytes / staged_element);
  const cudaStream_t stream = context_.stream();

  ValueCheck found;
  for (int64_t begin = 0; begin < stored.tensor.size(); begin += chunk_elements) {
    std::unique_ptr<Chunk>& chunk = chunks_[static_cast<size_t>(next_)];
    next_ = (next_ + 1) % kNumChunks;
    if (chunk == nullptr) {
      auto made = std::make_unique<Chunk>();
      check(cudaMallocHost(&made->memory, kChunkBytes), "allocating pinned host memory");
      chunk = std::move(made);
    }
    chunk->fetched.wait();

    const int64_t count = std::min(chunk_elements, stored.tensor.size() - begin);
    const auto* const from = static_cast<const char*>(stored.tensor.raw()) + static_cast<size_t>(begin) * element;
    found.join(checked_copy(from, dtype, chunk->memory, staged_dtype, count));
    if (!found.finite) accept_values(stored, found);
    void* const to = static_cast<char*>(device) + static_cast<size_t>(begin) * dtype_size(device_dtype);
    const size_t bytes = static_cast<size_t>(count) * staged_element;
    if (staged_dtype == device_dtype) {
      check(cudaMemcpyAsync(to, chunk->memory, bytes, cudaMemcpyHostToDevice, stream), "copying to the GPU");
    } else {
      const std::shared_ptr<void> raw = context_.allocate_bytes(bytes);  // goes back in stream order
      check(cudaMemcpyAsync(raw.get(), chunk->memory, bytes, cudaMemcpyHostToDevice, stream), "copying to the GPU");
      convert(raw.get(), staged_dtype, to, device_dtype, count, stream);
    }
    chunk->fetched.record(stream);
  }
  accept_values(stored, found);
}

void StagedUpload::release() {
  for (std::unique_ptr<Chunk>& chunk : chunks_) {
    if (chunk == nullptr) continue;
    chunk->fetched.wait_quietly();
    static_cast<void>(cudaFreeHost(chunk->memory));
    chunk.reset();
  }
}

}  // namespace calibatt::cuda
