#include "backend/cpu/scratch.h"

#include <array>

#include "base/tensor.h"

namespace calibatt::cpu {

void* thread_scratch(Scratch purpose, size_t size_bytes) {
  thread_local std::array<Tensor, static_cast<size_t>(Scratch::kCount)> buffers;
  Tensor& buffer = buffers[static_cast<size_t>(purpose)];
  if (buffer.empty() || buffer.size_bytes() < size_bytes) {
    buffer = Tensor(DType::kU8, {static_cast<int64_t>(size_bytes)});
  }
  return buffer.raw();
}

}  // namespace calibatt::cpu
