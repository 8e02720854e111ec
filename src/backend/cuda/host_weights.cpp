#include "backend/cuda/host_weights.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <utility>

#include "backend/cuda/gather.h"
#include "base/checked_copy.h"
#include "base/eight_bits.h"
#include "base/error.h"
#include "base/thread_pool.h"

namespace calibatt::cuda {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr int64_t kQuantisedElements = int64_t{8} << 20;  // widened at a time: large enough for all threads

std::string gigabytes(size_t bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.2f GB", static_cast<double>(bytes) * 1e-9);
  return text;
}

size_t page_bytes() {
  static const auto bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

}  // namespace

/// Plain pages, pinned once they are filled: pinning empty memory would have one thread clear it first.
class HostWeights::Pages {
 public:
  explicit Pages(size_t capacity_bytes) : size_bytes_((capacity_bytes + kHugePage - 1) / kHugePage * kHugePage) {
    host_ = mmap(nullptr, size_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (host_ == MAP_FAILED) {
      host_ = nullptr;
      throw Error(ErrorKind::kDevice, "--offload: " + gigabytes(size_bytes_) +
                                          " of host memory for weights cannot be had; close other programs or run "
                                          "without --offload");
    }
    static_cast<void>(madvise(host_, size_bytes_, MADV_HUGEPAGE));  // fewer pages to pin; does without
  }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  ~Pages() {
    if (pinned_) static_cast<void>(cudaHostUnregister(host_));
    if (host_ != nullptr && size_bytes_ > 0) munmap(host_, size_bytes_);
  }

  char* memory() const { return static_cast<char*>(host_); }

  /// Gives everything else back; `memory` is then where the range begins. It begins at a page.
  void keep(const ByteRange& range) {
    const size_t page = page_bytes(), end = std::min(size_bytes_, (range.end + page - 1) / page * page);
    CALIBATT_ASSERT(range.begin % page == 0 && range.begin <= end);
    if (end < size_bytes_) munmap(memory() + end, size_bytes_ - end);
    if (range.begin > 0) munmap(host_, range.begin);
    host_ = memory() + range.begin;
    size_bytes_ = end - range.begin;
  }

  void pin() {
    if (size_bytes_ == 0) return;
    const cudaError_t status = cudaHostRegister(host_, size_bytes_, cudaHostRegisterPortable);
    if (status == cudaErrorMemoryAllocation) {
      static_cast<void>(cudaGetLastError());
      throw Error(ErrorKind::kDevice, "--offload: " + gigabytes(size_bytes_) +
                                          " of host memory cannot be pinned; close other programs, raise the limit on "
                                          "locked memory (ulimit -l), or run without --offload");
    }
    check(status, "pinning host memory");
    pinned_ = true;
  }

 private:
  void* host_ = nullptr;
  size_t size_bytes_ = 0;
  bool pinned_ = false;
};

HostWeights::HostWeights(WeightStream& stream, size_t capacity_bytes)
    : StreamedMemory(stream, capacity_bytes), pages_(std::make_shared<Pages>(capacity_bytes)) {}

HostWeights::HostWeights(WeightStream& stream, ShardedBlock block) : HostWeights(stream, block.size_bytes) {
  block_ = std::move(block);
}

size_t HostWeights::append_rows(const std::vector<StoredTensor>& parts, DType dtype) {
  int64_t rows = 0;
  for (const StoredTensor& part : parts) rows += part.tensor.dim(0);
  return append_room(rows, parts.at(0).tensor.dim(1), dtype);
}

size_t HostWeights::append(const std::vector<StoredTensor>& parts, DType dtype) {
  const size_t begin = append_rows(parts, dtype);
  char* to = pages_->memory() + begin;
  for (const StoredTensor& part : parts) {
    const int64_t count = part.tensor.size();
    accept_values(part, checked_copy(part.tensor.raw(), part.tensor.dtype(), to, dtype, count));
    to += static_cast<size_t>(count) * dtype_size(dtype);
  }
  return begin;
}

size_t HostWeights::append_eight_bits(const std::vector<StoredTensor>& parts, DType dtype, float* scales) {
  const size_t begin = append_rows(parts, dtype);
  char* to = pages_->memory() + begin;
  for (const StoredTensor& part : parts) {
    const int64_t rows = part.tensor.dim(0), columns = part.tensor.dim(1);
    const int64_t at_a_time = std::clamp<int64_t>(kQuantisedElements / columns, 1, rows);
    const size_t row_bytes = static_cast<size_t>(columns) * dtype_size(part.tensor.dtype());
    Tensor wide(DType::kF32, {at_a_time, columns});
    ValueCheck found;
    for (int64_t first = 0; first < rows; first += at_a_time) {
      const int64_t count = std::min(at_a_time, rows - first);
      found.join(checked_copy(static_cast<const char*>(part.tensor.raw()) + static_cast<size_t>(first) * row_bytes,
                              part.tensor.dtype(), wide.raw(), DType::kF32, count * columns));
      if (!found.finite) accept_values(part, found);
      with_eight_bits(dtype, [&]<class Element>(Element) {
        auto* elements = reinterpret_cast<Element*>(to) + first * columns;
        parallel_for(count, 1, [&](int64_t row, int64_t end, int) {
          for (; row < end; ++row) {
            scales[first + row] = quantise_row(wide.f32() + row * columns, elements + row * columns, columns);
          }
        });
      });
    }
    accept_values(part, found);
    to += rows * columns;
    scales += rows;
  }
  return begin;
}

void HostWeights::seal() {
  CALIBATT_ASSERT(!is_sealed());
  if (block_) pages_->keep(block_->range(size_bytes(), block_->shards.rank, page_bytes()));
  pages_->pin();
  end_loading();
  if (block_) block_->publish(std::shared_ptr<const void>(pages_, pages_->memory()));
}

void HostWeights::copy_to(void* buffer, cudaStream_t copies) {
  if (block_) {
    if (parts_.empty()) parts_ = block_->parts();
    return gather(*block_, parts_, size_bytes(), page_bytes(), buffer, copies);
  }
  check(cudaMemcpyAsync(buffer, pages_->memory(), size_bytes(), cudaMemcpyHostToDevice, copies),
        "copying weights to the GPU");
}

}  // namespace calibatt::cuda
