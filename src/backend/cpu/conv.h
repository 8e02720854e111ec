#pragma once

#include <array>
#include <map>
#include <memory>
#include <mutex>

#include "backend/clip_ops.h"
#include "backend/cpu/onednn.h"

namespace calibatt::cpu {

/// One piece of a convolution, on one thread: its shape decides it, the weights do not, so convolutions share it.
struct ConvolutionPrimitive {
  dnnl::convolution_forward primitive;
  dnnl::memory::desc src, weights, bias, dst, scratchpad;
};

/// Primitives by shape. Making one costs milliseconds (oneDNN compiles code for it).
class ConvolutionPrimitives {
 public:
  struct Key {
    ConvolutionSpec spec;
    DType compute = DType::kF32, out = DType::kF32;
    bool accumulate = false;
    int64_t height_in = 0, frames_in = 0, width_in = 0;
  };
  const ConvolutionPrimitive& get(const Key& key);

 private:
  using Words = std::array<int64_t, 16>;
  std::mutex mutex_;
  std::map<Words, std::unique_ptr<ConvolutionPrimitive>> primitives_;
};

/// A convolution through oneDNN: rows of the output are cut into blocks, each a one-thread primitive.
std::unique_ptr<Convolution> make_convolution(std::shared_ptr<ConvolutionPrimitives> primitives,
                                              const ConvolutionSpec& spec, const Tensor& weight, const Tensor& bias,
                                              DType compute);

}  // namespace calibatt::cpu
