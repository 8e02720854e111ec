#pragma once

#include <cudnn.h>

#include <array>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backend/clip_ops.h"
#include "backend/cuda/cudnn/conv_plan.h"
#include "backend/cuda/device/context.h"

namespace calibatt::cuda {

struct ClipOptions {
  /// Bias and sum inside the convolution's kernel. cuDNN compiles such kernels at run time, about a quarter of a second
  /// for each shape; without, a bias is added by the norm that reads the result or by a pass of our own
  /// (clip_kernels.h), and plans are made in milliseconds.
  bool fuse = false;
  /// Plans of each shape to time on their first use; 1: the one that cuDNN's heuristics put first, untimed, which takes
  /// 18 % longer to decode a video at 720p on an H100 (docs/performance.md).
  int candidates = 4;
  /// ClipOps::latent_frames_at_once: more need more memory, and copy less history per frame.
  int latent_frames = 1;
};

/// Convolutions by cuDNN's graph API, in bfloat16 on tensor cores or in float32 without them (never TF32); sums are
/// float32. Plans are made when a shape is first seen, and kept. Its channels must be multiples of 8 in bfloat16:
/// others are padded with zeros, and different numbers of padding columns left and right become part of the input.
class ConvolutionEngine {
 public:
  /// The context must outlive it. Throws Error(kDevice) when cuDNN cannot be used.
  ConvolutionEngine(Context& context, const ClipOptions& options);
  ConvolutionEngine(const ConvolutionEngine&) = delete;
  ConvolutionEngine& operator=(const ConvolutionEngine&) = delete;
  ~ConvolutionEngine();

  Context& context() const { return context_; }

  /// As ClipOps::make_convolution.
  static std::unique_ptr<Convolution> make(std::shared_ptr<ConvolutionEngine> engine, const ConvolutionSpec& spec,
                                           const Tensor& weight, const Tensor& bias, DType compute);

  /// Enqueues out = conv(in), with bias and sum when the shape has them. Channels are the padded ones.
  /// Throws Error(kDevice) naming the shape when cuDNN has no engine for it.
  void run(const cudnn::ConvolutionShape& shape, cudnn::ConvolutionData data);
  /// Whether the shape can and should run as one kernel, bias and sum included.
  bool in_one_step(const cudnn::ConvolutionShape& shape);

  /// One line per shape seen so far: the shape, its engine, its workspace; for reports.
  std::vector<std::string> report() const;

 private:
  using Key = std::array<int64_t, 16>;
  static Key key_of(const cudnn::ConvolutionShape& shape);
  void keep_fastest(std::vector<cudnn::ConvolutionPlan>& plans, const cudnn::ConvolutionData& data);

  /// Of one shape: what heuristics offer, of which only one is left after the first run. Empty: no engine takes it.
  std::vector<cudnn::ConvolutionPlan>& plans_of(const cudnn::ConvolutionShape& shape);

  Context& context_;
  ClipOptions options_;
  cudnnHandle_t handle_ = nullptr;
  cudnn::Descriptor device_;
  std::map<Key, std::vector<cudnn::ConvolutionPlan>> plans_;
};

}  // namespace calibatt::cuda
