#pragma once

#include <cstddef>
#include <cstdint>

namespace calibatt::cpu {

/// Buffers of one thread that live as long as it does, one per purpose, so that a chunk of work need not allocate.
enum class Scratch { kOneDnn, kLinearInput, kLinearOutput, kAttention, kCount };

/// At least this many bytes, 64-byte aligned, contents undefined; valid until the same thread asks for more of the
/// same.
void* thread_scratch(Scratch purpose, size_t size_bytes);

inline float* thread_scratch_floats(Scratch purpose, int64_t count) {
  return static_cast<float*>(thread_scratch(purpose, static_cast<size_t>(count) * sizeof(float)));
}

}  // namespace calibatt::cpu
