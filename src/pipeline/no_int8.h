#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/attention/cpu_attention.h"
#include "base/error.h"

namespace calibatt {

/// Of a device that has layers in e4m3 alone.
class NoInt8 final : public EightBitOps {
 public:
  void require(DType layers) const override {
    if (layers == DType::kI8) throw Error(ErrorKind::kUsage, "no int8 here");
  }
  void layer_norm(const Tensor&, const LayerNorm&, EightBitRows&) override {}
  void rms_norm(const Tensor&, const Tensor&, float, EightBitRows&) override {}
  void add_rms_norm(const Tensor&, const Tensor&, float, Tensor&, const Tensor&, EightBitRows&) override {}
  void swiglu(const Tensor&, EightBitRows&) override {}
  void quantise(const Tensor&, Activation, EightBitRows&) override {}
  void linear(const LinearLayer&, const EightBitRows&, Tensor&, const LinearEpilogue&) override {}
};

/// Such a device, to be asked what it has; it computes no layers.
class NoInt8Backend final : public Backend, public cpu::CpuAttention {
 public:
  std::string_view name() const override { return "no-int8"; }
  EightBitOps& eight_bit_ops() override { return ops_; }

  std::shared_ptr<const LinearLayer> make_linear(const Tensor&, const Tensor&, const LinearFormat&) override {
    return nullptr;
  }
  std::shared_ptr<StreamedWeights> make_sharded_weights(ShardedBlock) override { return nullptr; }
  void linear(const LinearLayer&, const Tensor&, Tensor&, const LinearEpilogue&) override {}
  Tensor weight_of(const LinearLayer&, const Tensor&) override { return {}; }
  void layer_norm(const Tensor&, const Tensor*, const Tensor*, bool, float, Tensor&) override {}
  void rms_norm(const Tensor&, const Tensor&, float, Tensor&) override {}
  void add_rms_norm(const Tensor&, const Tensor&, float, Tensor&, const FollowingNorm*) override {}
  void norm_and_rotate(HeadsView, int, int, const Tensor*, float, const RopeTable*) override {}
  void norm_and_rotate_heads(HeadsView, HeadsView, int, int, const HeadNorms&, const RopeFactors*) override {}
  void activate(Activation, const Tensor&, Tensor&) override {}
  void multiply(const Tensor&, const Tensor&, Tensor&) override {}
  void swiglu(const Tensor&, Tensor&) override {}
  void add(const Tensor&, const Tensor&, Tensor&) override {}
  void convert(const Tensor&, Tensor&) override {}
  double sum_of_squares(const Tensor&) override { return 0; }
  void patchify(const Tensor&, const PatchLayout&, Tensor&) override {}
  void unpatchify(const Tensor&, const PatchLayout&, Tensor&) override {}
  void biased_attention(ConstHeadsView, ConstHeadsView, ConstHeadsView, const Tensor&, int, int, HeadsView) override {}

 private:
  NoInt8 ops_;
};

}  // namespace calibatt
