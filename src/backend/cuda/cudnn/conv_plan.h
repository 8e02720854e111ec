#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "backend/clip_ops.h"
#include "backend/cuda/cudnn/descriptor.h"

namespace calibatt::cuda::cudnn {

/// What the GPU is, as cuDNN wants to know it when it chooses and compiles.
Descriptor device_properties(int device_index);
/// The same of a GPU that need not be here (cuDNN's own JSON): plans can be made and tested on any machine.
Descriptor device_properties(const std::string& json);

/// One convolution that cuDNN can be asked for. Its axes depth × height × width are our rows × frames × columns,
/// channels innermost: activations [rows, frames, columns, channels], weights [out, rows, frames, columns, in].
struct ConvolutionShape {
  ConvolutionSpec spec;  ///< pad_left must be pad_right
  DType compute = DType::kBF16;
  DType out = DType::kBF16;
  int64_t height_in = 0, frames_in = 0, width_in = 0;
  bool add_bias = false;    ///< [out] F32, in the same kernel
  bool accumulate = false;  ///< adds what the output holds, in the same kernel

  int64_t size_out(int axis) const;  ///< 0: rows, 1: frames, 2: columns
  std::string describe() const;  ///< "96→96 channels, 3×3×3, BF16 to BF16, 722×6×1282 pixels, bias, accumulated"
};

/// What a plan reads and writes; device memory, 16-byte aligned.
struct ConvolutionData {
  const void* in = nullptr;
  const void* weight = nullptr;
  const float* bias = nullptr;
  void* out = nullptr;
  void* workspace = nullptr;  ///< of workspace_bytes
};

/// A compiled way to compute one ConvolutionShape.
class ConvolutionPlan {
 public:
  ConvolutionPlan(Descriptor plan, std::string name, int64_t workspace_bytes, const ConvolutionShape& shape)
      : plan_(std::move(plan)), name_(std::move(name)), workspace_bytes_(workspace_bytes), shape_(shape) {}

  const std::string& name() const { return name_; }  ///< cuDNN's number of the engine, as "engine 12"
  int64_t workspace_bytes() const { return workspace_bytes_; }
  const ConvolutionShape& shape() const { return shape_; }
  void run(cudnnHandle_t handle, const ConvolutionData& data) const;  ///< enqueues on the handle's stream

 private:
  Descriptor plan_;
  std::string name_;
  int64_t workspace_bytes_;
  ConvolutionShape shape_;
};

/// Up to `at_most` plans, best first by cuDNN's heuristics (mode A, then its fallback list); none when no engine takes
/// the shape. F32 is computed without tensor cores, hence never in TF32. Sums are F32 always.
std::vector<ConvolutionPlan> make_plans(const Descriptor& device, const ConvolutionShape& shape, int at_most,
                                        int64_t max_workspace_bytes);

}  // namespace calibatt::cuda::cudnn
