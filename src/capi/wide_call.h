#pragma once

#include "base/tensor.h"
#include "calibatt/c_api.h"
#include "sparsity/geometry.h"

namespace calibatt::capi {

/// One sample of a call on halves, computed on F32 copies in host memory: the CPU's kernels know F32 and BF16.
class WideCall {
 public:
  WideCall(const calibatt_call& call, const AttentionGeometry& geometry, int64_t sample);

  calibatt_call& call() { return wide_; }  ///< of one sample, F32
  void write_back() const;                 ///< out, rounded, to where the call wants it

 private:
  const int64_t tokens_, heads_, dim_;
  calibatt_heads out_;
  Tensor q_, k_, v_, wide_out_;
  calibatt_call wide_;
};

}  // namespace calibatt::capi
