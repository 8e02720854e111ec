#pragma once

#include <cstddef>
#include <memory>

namespace calibatt::cpu {

/// Scratch memory of one attention call. The last one released is kept for the next call of the process: fresh pages
/// cost several percent of a short call. What is kept is at most kKeptBytes.
class Workspace {
 public:
  static constexpr size_t kKeptBytes = size_t{64} << 20;
  static constexpr size_t kAlignment = 64;

  Workspace() = default;
  explicit Workspace(size_t size_bytes);
  Workspace(Workspace&& other) noexcept = default;
  Workspace& operator=(Workspace&& other) noexcept;
  ~Workspace();

  std::byte* data() const { return data_.get(); }

  /// Hands out aligned arrays one after another; with a null base it only adds up their sizes.
  struct Carver {
    std::byte* base;
    size_t used = 0;

    template <class T>
    T* take(size_t count) {
      T* result = base ? reinterpret_cast<T*>(base + used) : nullptr;
      used += (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
      return result;
    }
    size_t size_bytes() const { return used; }
  };

 private:
  struct Free {
    void operator()(std::byte* data) const;
  };
  using Memory = std::unique_ptr<std::byte, Free>;
  struct Kept;
  static Kept& kept();
  void release();

  Memory data_;
  size_t size_bytes_ = 0;
};

}  // namespace calibatt::cpu
