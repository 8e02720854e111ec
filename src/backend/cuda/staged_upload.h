#pragma once

#include <array>
#include <memory>

#include "backend/cuda/device/context.h"
#include "backend/cuda/device/event.h"
#include "backend/stored_linear.h"

namespace calibatt::cuda {

/// Tensors of a mapped file → device memory, in chunks through a ring of pinned host memory: all threads read, check
/// and stage one chunk while the GPU fetches those before it. Nothing else is copied on the host; what must be
/// converted (an F32 file to bf16, say) is converted on the device.
class StagedUpload {
 public:
  explicit StagedUpload(Context& context) : context_(context) {}
  ~StagedUpload() { release(); }
  StagedUpload(const StagedUpload&) = delete;
  StagedUpload& operator=(const StagedUpload&) = delete;

  /// Enqueues the copy of a whole tensor to `device`, of device_dtype (kF32, kBF16 or kF16). The host tensor may go
  /// afterwards. Throws Error(kNumeric) that names a tensor which is not finite.
  void run(const StoredTensor& stored, void* device, DType device_dtype);

  void release();  ///< frees the pinned memory; the next run allocates it anew

 private:
  struct Chunk {
    void* memory = nullptr;
    Event fetched;
  };
  static constexpr int kNumChunks = 3;
  Context& context_;
  std::array<std::unique_ptr<Chunk>, kNumChunks> chunks_;
  int next_ = 0;
};

}  // namespace calibatt::cuda
