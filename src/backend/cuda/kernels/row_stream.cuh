#pragma once

#include <algorithm>

#include "backend/cuda/device/ptx/tma.cuh"
#include "backend/cuda/device/vector_access.cuh"
#include "backend/cuda/kernels/resident_blocks.h"
#include "backend/cuda/kernels/row_units.cuh"

namespace calibatt::cuda {

/// Rows of a matrix, shared out as row_units.cuh says; each of kParts parts of a row, which are as long, is shared out
/// alike. Where blocks stay (kStays), one takes rows blockIdx.x, blockIdx.x + gridDim.x, …, and Hopper's copy engine
/// has the next two on their way to shared memory while a row is worked on: with what is in registers alone the memory
/// idles while sums are waited for. Else a block takes one row: on other GPUs, where elements go one at a time, in the
/// widest form, and where a kernel does not want it (kMayStay), because blocks for narrow rows are many and hide each
/// other's waits.
template <class T, int n, int kUnits, bool kWanted, int kParts = 1>
class RowStream {
 public:
  static constexpr int kStages = 3;
  static constexpr bool kMayStay = kWanted && n * sizeof(T) == 16 && kUnits != kMaxUnits;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  static constexpr bool kStays = kMayStay;
#else
  static constexpr bool kStays = false;
#endif
  static constexpr int kBarrierBytes = 32;
  static constexpr size_t shared_bytes(int64_t units) {
    return kBarrierBytes + size_t{16} * kStages * kParts * units;
  }

  /// Takes all of the shared memory that the kernel was launched with. units: of a part.
  __device__ RowStream(const T* x, int64_t rows, int units)
      : from_(x + int64_t{blockIdx.x} * units * kParts * n), units_(units) {
    if constexpr (kStays) {
      if (threadIdx.x == 0) {
        left_ = static_cast<int>((rows - blockIdx.x + gridDim.x - 1) / gridDim.x);
        for (int stage = 0; stage < kStages; ++stage) ptx::mbarrier_init(barriers() + stage, 1);
        ptx::mbarrier_init_fence();
        for (int stage = 0; stage < kStages - 1; ++stage) fetch(stage);
      }
      __syncthreads();
    }
  }

  /// Whether there is another row; `row` becomes its number.
  __device__ __forceinline__ bool next(int64_t& row, int64_t rows) const {
    row += gridDim.x;
    return kStays && row < rows;
  }

  /// This thread's units of the next row, an array for each part. Between two rows the block meets at a barrier.
  template <class... Parts>
  __device__ __forceinline__ void take(Parts&... parts) {
    static_assert(sizeof...(Parts) == kParts);
    int part = 0;
    if constexpr (kStays) {
      if (threadIdx.x == 0) fetch(stage_ == 0 ? kStages - 1 : stage_ - 1);
      ptx::mbarrier_wait(barriers() + stage_, parity_);
      const T* const row = reinterpret_cast<const T*>(slot(stage_));
      (load_part<Reuse::kCached>(row + part++ * units_ * n, parts), ...);
      if (++stage_ == kStages) stage_ = 0, parity_ ^= 1;
    } else {
      (load_part<Reuse::kStream>(from_ + part++ * units_ * n, parts), ...);
    }
  }

 private:
  static __device__ __forceinline__ uint64_t* barriers() {
    extern __shared__ uint4 row_memory[];
    return reinterpret_cast<uint64_t*>(row_memory);
  }
  __device__ __forceinline__ uint4* slot(int stage) const {
    extern __shared__ uint4 row_memory[];
    return row_memory + kBarrierBytes / 16 + stage * kParts * units_;
  }

  template <Reuse reuse>
  __device__ __forceinline__ void load_part(const T* from, float (&values)[kUnits][n]) const {
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      if (has_unit<kUnits>(i, units_)) load<reuse>(from + unit_of(i) * n, values[i]);
    }
  }
  __device__ __forceinline__ void fetch(int stage) {
    if (left_ == 0) return;
    const uint32_t bytes = 16 * kParts * static_cast<uint32_t>(units_);
    ptx::mbarrier_arrive_expect(barriers() + stage, bytes);
    ptx::bulk_load(slot(stage), from_, bytes, barriers() + stage);
    from_ += int64_t{gridDim.x} * units_ * kParts * n;
    --left_;
  }

  const T* from_;
  int left_ = 0, units_, stage_ = 0;
  uint32_t parity_ = 0;
};

/// Enqueues a kernel that reads rows by a RowStream: a block for each row, or as many as the device holds at a time.
template <class Stream, class Call>
void launch_row_stream(void (*kernel)(Call), const Call& call, int64_t rows, int64_t units, unsigned threads,
                       cudaStream_t stream) {
  unsigned blocks = static_cast<unsigned>(rows);
  size_t shared_bytes = 0;
  if constexpr (Stream::kMayStay) {
    cudaFuncAttributes attributes;
    check(cudaFuncGetAttributes(&attributes, kernel), "asking about a kernel");
    if (attributes.ptxVersion >=
        90) {  // what __CUDA_ARCH__ was; a binary made from older code at run time is of the GPU's
      shared_bytes = Stream::shared_bytes(units);
      blocks = static_cast<unsigned>(std::min<int64_t>(rows, resident_blocks(kernel, threads, shared_bytes)));
    }
  }
  kernel<<<blocks, threads, shared_bytes, stream>>>(call);
}

}  // namespace calibatt::cuda
