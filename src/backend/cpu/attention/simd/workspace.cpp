#include "backend/cpu/attention/simd/workspace.h"

#include <mutex>
#include <new>
#include <utility>

namespace calibatt::cpu {

struct Workspace::Kept {
  std::mutex mutex;
  Memory data;
  size_t size_bytes = 0;
};

Workspace::Kept& Workspace::kept() {
  static Kept instance;
  return instance;
}

void Workspace::Free::operator()(std::byte* data) const {
  ::operator delete (data, std::align_val_t{kAlignment});
}

Workspace::Workspace(size_t size_bytes) {
  {
    const std::lock_guard lock(kept().mutex);
    if (kept().data && kept().size_bytes >= size_bytes) {
      data_ = std::move(kept().data);
      size_bytes_ = std::exchange(kept().size_bytes, 0);
      return;
    }
  }
  data_ = Memory(static_cast<std::byte*>(::operator new (size_bytes, std::align_val_t{kAlignment})));
  size_bytes_ = size_bytes;
}

Workspace& Workspace::operator=(Workspace&& other) noexcept {
  release();
  data_ = std::move(other.data_);
  size_bytes_ = std::exchange(other.size_bytes_, 0);
  return *this;
}

Workspace::~Workspace() {
  release();
}

void Workspace::release() {
  if (!data_ || size_bytes_ > kKeptBytes) return;
  Memory smaller;  // freed outside the lock
  const std::lock_guard lock(kept().mutex);
  if (kept().size_bytes >= size_bytes_) return;
  smaller = std::exchange(kept().data, std::move(data_));
  kept().size_bytes = std::exchange(size_bytes_, 0);
}

}  // namespace calibatt::cpu
