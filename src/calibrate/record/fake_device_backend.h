#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#include "backend/attention_backend.h"
#include "backend/cpu/cpu_backend.h"
#include "calibrate/profile/level_code.h"
#include "calibrate/record/recording_backend.h"

namespace calibatt {

/// For tests and benchmarks: what a recording uses of a backend, whose tensors live where the host cannot read or
/// write. The same pages are mapped twice: once without any permission, at the addresses that tensors have, and once
/// more for the backend itself, which computes with the CPU's attention. Code that follows a device pointer ends with a
/// segmentation fault.
class FakeDeviceBackend : public AttentionBackend {
 public:
  explicit FakeDeviceBackend(bool encodes_levels = false, size_t bytes = size_t{64} << 20)
      : encodes_levels_(encodes_levels), bytes_(bytes) {
    const int file = memfd_create("fake device", 0);
    if (file < 0 || ftruncate(file, static_cast<off_t>(bytes_)) != 0) throw std::runtime_error("memfd_create failed");
    device_ = static_cast<char*>(mmap(nullptr, bytes_, PROT_NONE, MAP_SHARED, file, 0));
    inside_ = static_cast<char*>(mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
    close(file);
    if (device_ == MAP_FAILED || inside_ == MAP_FAILED) throw std::runtime_error("mmap failed");
  }
  ~FakeDeviceBackend() override {
    munmap(device_, bytes_);
    munmap(inside_, bytes_);
  }

  operator RecordingBackend() { return {*this}; }

  std::string_view name() const override { return "fake"; }
  bool in_host_memory() const override { return false; }
  Tensor empty(DType dtype, std::vector<int64_t> shape) override {
    const size_t size = Tensor(dtype, shape).size_bytes(), begin = used_;
    used_ += (size + 63) / 64 * 64;
    if (used_ > bytes_) throw std::runtime_error("the fake device is full");
    return {dtype, std::move(shape), std::shared_ptr<void>(device_ + begin, [](void*) {})};
  }
  Tensor from_host(const Tensor& host) override {
    Tensor device = empty(host.dtype(), host.shape());
    std::memcpy(inside(device.raw()), host.raw(), host.size_bytes());
    return device;
  }
  Tensor to_host(const Tensor& device) override {
    Tensor host(device.dtype(), device.shape());
    std::memcpy(host.raw(), inside(device.raw()), host.size_bytes());
    ++copies_to_host;
    return host;
  }
  HostHeads heads_to_host(ConstHeadsView view, int num_heads, int head_dim) override {
    Tensor host(view.dtype, {view.num_tokens, num_heads, head_dim});
    const size_t element = dtype_size(view.dtype), row = element * static_cast<size_t>(head_dim);
    char* to = static_cast<char*>(host.raw());
    for (int64_t token = 0; token < view.num_tokens; ++token) {
      for (int64_t head = 0; head < num_heads; ++head, to += row) {
        const int64_t offset = token * view.token_stride + head * view.head_stride;
        std::memcpy(to, inside(view.data) + offset * static_cast<int64_t>(element), row);
      }
    }
    return {{host.raw(), view.dtype, view.num_tokens, int64_t{num_heads} * head_dim, head_dim}, host};
  }
  std::string_view attention(const AttentionCall& call) override {
    AttentionCall real = call;
    real.q.data = inside(call.q.data), real.k.data = inside(call.k.data), real.v.data = inside(call.v.data);
    real.out.data = inside(call.out.data);
    if (call.block_energy != nullptr) real.block_energy = reinterpret_cast<float*>(inside(call.block_energy));
    return cpu_->attention(real);
  }
  bool encode_energy_levels(const Tensor& energy, std::span<const uint32_t> ladder, Tensor& codes) override {
    if (!encodes_levels_) return false;
    if (ladder.size() != kNumCodeLevels) throw std::runtime_error("unexpected ladder");
    Tensor host(DType::kF32, energy.shape());
    std::memcpy(host.raw(), inside(energy.raw()), host.size_bytes());
    encode_levels(host, reinterpret_cast<uint8_t*>(inside(codes.raw())));
    return true;
  }

  void copy_heads(ConstHeadsView from, HeadsView to, int num_heads, int head_dim) override {
    from.data = inside(from.data), to.data = inside(to.data);
    cpu_->copy_heads(from, to, num_heads, head_dim);
  }
  void take_video_energy(const Tensor& energy, const Tensor& tail, Tensor& video) override {
    Tensor inside_video = visible(video);
    cpu_->calibration_ops()->take_video_energy(visible(energy), tail.empty() ? tail : visible(tail), inside_video);
  }
  Tensor output_metric(const Tensor&, const Tensor&, int) override { refuse(); }
  Tensor squared_changes(const Tensor& outputs, const Tensor& metric, int num_heads) override {
    if (!metric.empty()) refuse();
    return from_host(cpu_->calibration_ops()->squared_changes(visible(outputs), metric, num_heads));
  }

  int copies_to_host = 0;

 private:
  [[noreturn]] static void refuse() { throw std::runtime_error("the fake device only attends"); }

 protected:
  /// The same tensor where the backend itself sees it.
  Tensor visible(const Tensor& tensor) const {
    return {tensor.dtype(), tensor.shape(), std::shared_ptr<void>(inside(tensor.raw()), [](void*) {})};
  }
  char* inside(const void* device_pointer) const {
    const auto offset = static_cast<const char*>(device_pointer) - device_;
    if (offset < 0 || offset >= static_cast<ptrdiff_t>(bytes_)) throw std::runtime_error("not a device pointer");
    return inside_ + offset;
  }

 private:
  const bool encodes_levels_;
  const size_t bytes_;
  char *device_ = nullptr, *inside_ = nullptr;
  size_t used_ = 0;
  std::unique_ptr<Backend> cpu_ = cpu::make_cpu_backend();
};

}  // namespace calibatt
