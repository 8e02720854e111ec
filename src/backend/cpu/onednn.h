#pragma once

#include <dnnl.hpp>

#include "base/dtype.h"

namespace calibatt::cpu {

/// The process's CPU engine of oneDNN, and a stream of the calling thread.
const dnnl::engine& onednn_engine();
dnnl::stream& onednn_stream();

dnnl::memory::data_type onednn_type(DType dtype);  ///< kF32 or kBF16

// Versions 2 and 3 of oneDNN spell two things differently.

/// The description of a primitive: `what` is what its operation takes.
template <class Primitive, class... What>
typename Primitive::primitive_desc describe_primitive(const dnnl::primitive_attr& attributes, const What&... what) {
#if DNNL_VERSION_MAJOR >= 3
  return {onednn_engine(), what..., attributes};
#else
  return {typename Primitive::desc(what...), attributes, onednn_engine()};
#endif
}

inline void append_eltwise(dnnl::post_ops& post_ops, dnnl::algorithm algorithm, float alpha) {
#if DNNL_VERSION_MAJOR >= 3
  post_ops.append_eltwise(algorithm, alpha, 0);
#else
  post_ops.append_eltwise(1, algorithm, alpha, 0);
#endif
}

/// The processor multiplies bfloat16 itself (and ONEDNN_MAX_CPU_ISA does not forbid it). Elsewhere oneDNN refuses
/// bfloat16 or emulates it slowly: compute in float32 there.
bool has_native_bf16();

/// While it lives, oneDNN makes and runs primitives on the calling thread alone. oneDNN (as packaged) runs on OpenMP,
/// whose idle threads go on spinning for milliseconds after each primitive and take the processors from parallel_for
/// (measured on 2 cores: 35 % lost when the two alternate). So work is cut into pieces inside parallel_for, and each
/// piece is a one-thread primitive. Primitives need dnnl::scratchpad_mode::user to be run by several threads at once.
class OneThread {
 public:
  OneThread();
  ~OneThread();
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int previous_;
};

}  // namespace calibatt::cpu
