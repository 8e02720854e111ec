#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/clip_ops.h"
#include "backend/cuda/context.h"
#include "base/error.h"

namespace calibatt::bench {

/// As much of a backend as the video autoencoder uses, with a Context whose memory can be asked about.
class VaeBackend : public Backend {
 public:
  explicit VaeBackend(const cuda::ClipOptions& options) : ops_(cuda::make_clip_ops(context_, options)) {}

  cuda::Context& context() { return context_; }
  std::string_view name() const override { return "cuda (autoencoder alone)"; }
  ClipOps& clip_ops() override { return *ops_; }

  Tensor empty(DType dtype, std::vector<int64_t> shape) override { return context_.allocate(dtype, std::move(shape)); }
  Tensor from_host(const Tensor& host) override {
    Tensor device = context_.allocate(host.dtype(), host.shape());
    context_.copy_to_device(device.raw(), host.raw(), host.size_bytes());
    return device;
  }
  Tensor to_host(const Tensor& device) override {
    Tensor host(device.dtype(), device.shape());
    context_.copy_to_host(host.raw(), device.raw(), device.size_bytes());
    return host;
  }

  std::shared_ptr<const LinearLayer> make_linear(const Tensor&, const Tensor&, DType) override { absent(); }
  void linear(const LinearLayer&, const Tensor&, Tensor&, const LinearEpilogue&) override { absent(); }
  void layer_norm(const Tensor&, const Tensor*, const Tensor*, bool, float, Tensor&) override { absent(); }
  void rms_norm(const Tensor&, const Tensor&, float, Tensor&) override { absent(); }
  void norm_and_rotate(HeadsView, int, int, const Tensor*, float, const RopeTable*) override { absent(); }
  void activate(Activation, const Tensor&, Tensor&) override { absent(); }
  void multiply(const Tensor&, const Tensor&, Tensor&) override { absent(); }
  void add(const Tensor&, const Tensor&, Tensor&) override { absent(); }
  void convert(const Tensor&, Tensor&) override { absent(); }
  double sum_of_squares(const Tensor&) override { absent(); }
  void patchify(const Tensor&, const PatchLayout&, Tensor&) override { absent(); }
  void unpatchify(const Tensor&, const PatchLayout&, Tensor&) override { absent(); }
  void attention(const AttentionCall&) override { absent(); }
  void biased_attention(ConstHeadsView, ConstHeadsView, ConstHeadsView, const Tensor&, int, int, HeadsView) override {
    absent();
  }

 private:
  [[noreturn]] static void absent() {
    throw Error(ErrorKind::kUsage, "the autoencoder's benchmark has no operation but those of ClipOps");
  }

  cuda::Context context_;
  std::unique_ptr<ClipOps> ops_;
};

}  // namespace calibatt::bench
