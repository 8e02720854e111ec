#include "backend/cuda/convolution.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "backend/cuda/clip_kernels.h"
#include "base/error.h"
#include "base/thread_pool.h"

namespace calibatt::cuda {
namespace {

using cudnn::ConvolutionData;
using cudnn::ConvolutionPlan;
using cudnn::ConvolutionShape;

constexpr int64_t kMaxWorkspaceBytes = int64_t{8} << 30;  // float32 engines transpose their inputs there
constexpr int64_t kTensorCoreChannels = 8;                // 16 bytes of bfloat16: what engines want pixels to start at

int64_t padded_channels(int64_t channels, DType compute) {
  if (compute == DType::kF32) return channels;
  return (channels + kTensorCoreChannels - 1) / kTensorCoreChannels * kTensorCoreChannels;
}

ConvolutionSpec padded(ConvolutionSpec spec, DType compute) {
  spec.in_channels = padded_channels(spec.in_channels, compute);
  spec.out_channels = padded_channels(spec.out_channels, compute);
  if (spec.pad_left != spec.pad_right) spec.pad_left = spec.pad_right = 0;  // part of the input then
  return spec;
}

ClipView dense_view(void* data, DType dtype, int64_t height, int64_t frames, int64_t width, int64_t channels) {
  return {data, dtype, height, frames, width, channels, frames * width * channels};
}

/// torch's [out, in, frames, rows, columns] → [out, rows, frames, columns, in] of the compute type, channels padded.
Tensor arranged(const Tensor& weight, const ConvolutionSpec& spec, const ConvolutionSpec& wide, DType compute) {
  const int64_t rows = spec.kernel[0], frames = spec.kernel[1], columns = spec.kernel[2];
  Tensor result = Tensor::zeros(compute, {wide.out_channels, rows, frames, columns, wide.in_channels});
  parallel_for(spec.out_channels, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t out = begin; out < end; ++out) {
      int64_t from = out * spec.in_channels * frames * rows * columns;
      for (int64_t in = 0; in < spec.in_channels; ++in) {
        for (int64_t t = 0; t < frames; ++t) {
          for (int64_t y = 0; y < rows; ++y) {
            for (int64_t x = 0; x < columns; ++x, ++from) {
              const float value = weight.dtype() == DType::kF32 ? weight.data<float>()[from]
                                                                : static_cast<float>(weight.data<bfloat16>()[from]);
              const int64_t to = (((out * rows + y) * frames + t) * columns + x) * wide.in_channels + in;
              if (compute == DType::kF32) {
                result.data<float>()[to] = value;
              } else {
                result.data<bfloat16>()[to] = bfloat16(value);
              }
            }
          }
        }
      }
    }
  });
  return result;
}

class CudnnConvolution : public Convolution {
 public:
  CudnnConvolution(std::shared_ptr<ConvolutionEngine> engine, const ConvolutionSpec& spec, const Tensor& weight,
                   const Tensor& bias, DType compute)
      : engine_(std::move(engine)), spec_(spec), wide_(padded(spec, compute)), compute_(compute) {
    CALIBATT_ASSERT(compute == DType::kF32 || compute == DType::kBF16);
    CALIBATT_ASSERT(weight.dtype() == DType::kF32 || weight.dtype() == DType::kBF16);
    CALIBATT_ASSERT((weight.shape() == std::vector<int64_t>{spec.out_channels, spec.in_channels, spec.kernel[1],
                                                            spec.kernel[0], spec.kernel[2]}));
    CALIBATT_ASSERT(bias.dtype() == DType::kF32 && bias.size() == spec.out_channels);
    const Tensor host = arranged(weight, spec_, wide_, compute_);
    weight_ = upload(host);
    bias_ = upload(bias);
    no_bias_ = upload(Tensor::zeros(DType::kF32, bias.shape()));
  }

  const ConvolutionSpec& spec() const override { return spec_; }

  void run(const ClipView& in, const ClipView& out, bool accumulate, bool add_bias) const override {
    CALIBATT_ASSERT(in.dense() && out.dense() && in.dtype == compute_);
    CALIBATT_ASSERT(out.dtype == compute_ || out.dtype == DType::kF32);
    CALIBATT_ASSERT(in.channels == spec_.in_channels && out.channels == spec_.out_channels);
    Context& context = engine_->context();
    const cudaStream_t stream = context.stream();

    ClipView input = in;
    std::shared_ptr<void> padded_input;
    if (wide_.in_channels != spec_.in_channels || wide_.pad_left != spec_.pad_left ||
        wide_.pad_right != spec_.pad_right) {
      const bool has_columns = wide_.pad_left == spec_.pad_left && wide_.pad_right == spec_.pad_right;
      const int64_t left = has_columns ? 0 : spec_.pad_left, right = has_columns ? 0 : spec_.pad_right;
      const int64_t width = in.width + left + right;
      padded_input = context.allocate_bytes(bytes(in.height * in.frames * width * wide_.in_channels, compute_));
      input = dense_view(padded_input.get(), compute_, in.height, in.frames, width, wide_.in_channels);
      launch_copy(in, left, input, stream);
    }

    ConvolutionShape shape{wide_, compute_, out.dtype, input.height, input.frames, input.width, add_bias, accumulate};
    CALIBATT_ASSERT(shape.size_out(0) == out.height && shape.size_out(1) == out.frames &&
                    shape.size_out(2) == out.width);
    ConvolutionData data;
    data.in = input.data;
    data.weight = weight_.raw();
    if (wide_.out_channels == spec_.out_channels && out.dtype == compute_ && engine_->in_one_step(shape)) {
      data.bias = bias_.f32();
      data.out = out.data;
      engine_->run(shape, data);
      return;
    }
    // Two steps: the product, in place where that is possible; then bias and sum, in float32.
    shape.add_bias = shape.accumulate = false;
    shape.out = compute_;
    ClipView product = out;
    std::shared_ptr<void> separate;
    if (accumulate || out.dtype != compute_ || wide_.out_channels != spec_.out_channels) {
      separate = context.allocate_bytes(bytes(out.height * out.frames * out.width * wide_.out_channels, compute_));
      product = dense_view(separate.get(), compute_, out.height, out.frames, out.width, wide_.out_channels);
    }
    data.out = product.data;
    engine_->run(shape, data);
    launch_add_bias(product, add_bias ? bias_.f32() : no_bias_.f32(), accumulate, out, stream);
  }

 private:
  static size_t bytes(int64_t elements, DType dtype) { return static_cast<size_t>(elements) * dtype_size(dtype); }

  Tensor upload(const Tensor& host) const {
    Tensor device = engine_->context().allocate(host.dtype(), host.shape());
    engine_->context().copy_to_device(device.raw(), host.raw(), host.size_bytes());
    return device;
  }

  std::shared_ptr<ConvolutionEngine> engine_;
  ConvolutionSpec spec_, wide_;
  DType compute_;
  Tensor weight_, bias_, no_bias_;
};

/// Two events around one piece of work on a stream.
class Stopwatch {
 public:
  explicit Stopwatch(cudaStream_t stream) : stream_(stream) {
    check(cudaEventCreate(&begin_), "making an event");
    check(cudaEventCreate(&end_), "making an event");
  }
  Stopwatch(const Stopwatch&) = delete;
  ~Stopwatch() {
    static_cast<void>(cudaEventDestroy(begin_));
    static_cast<void>(cudaEventDestroy(end_));
  }
  void start() { check(cudaEventRecord(begin_, stream_), "recording an event"); }
  float stop() {
    check(cudaEventRecord(end_, stream_), "recording an event");
    check(cudaEventSynchronize(end_), "timing convolutions");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin_, end_), "timing convolutions");
    return milliseconds;
  }

 private:
  cudaStream_t stream_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

}  // namespace

ConvolutionEngine::ConvolutionEngine(Context& context, const ClipOptions& options)
    : context_(context), options_(options) {
  cudnn::check(cudnnCreate(&handle_), "starting");
  try {
    cudnn::check(cudnnSetStream(handle_, context.stream()), "setting the stream");
    device_ = cudnn::device_properties(context.device().index);
  } catch (...) {
    static_cast<void>(cudnnDestroy(handle_));
    throw;
  }
}

ConvolutionEngine::~ConvolutionEngine() {
  static_cast<void>(cudnnDestroy(handle_));
}

std::unique_ptr<Convolution> ConvolutionEngine::make(std::shared_ptr<ConvolutionEngine> engine,
                                                     const ConvolutionSpec& spec, const Tensor& weight,
                                                     const Tensor& bias, DType compute) {
  return std::make_unique<CudnnConvolution>(std::move(engine), spec, weight, bias, compute);
}

ConvolutionEngine::Key ConvolutionEngine::key_of(const ConvolutionShape& shape) {
  const ConvolutionSpec& spec = shape.spec;
  return {spec.in_channels,
          spec.out_channels,
          spec.kernel[0],
          spec.kernel[1],
          spec.kernel[2],
          spec.stride[0],
          spec.stride[1],
          spec.stride[2],
          spec.pad_left,
          static_cast<int64_t>(shape.compute),
          static_cast<int64_t>(shape.out),
          shape.height_in,
          shape.frames_in,
          shape.width_in,
          shape.add_bias,
          shape.accumulate};
}

std::vector<ConvolutionPlan>& ConvolutionEngine::plans_of(const ConvolutionShape& shape) {
  const Key key = key_of(shape);
  auto found = plans_.find(key);
  if (found == plans_.end()) {
    found = plans_.emplace(key, cudnn::make_plans(device_, shape, options_.candidates, kMaxWorkspaceBytes)).first;
  }
  return found->second;
}

bool ConvolutionEngine::in_one_step(const ConvolutionShape& shape) {
  return (options_.fuse || !shape.add_bias) && !plans_of(shape).empty();
}

void ConvolutionEngine::run(const ConvolutionShape& shape, ConvolutionData data) {
  std::vector<ConvolutionPlan>& plans = plans_of(shape);
  if (plans.empty()) {
    throw Error(ErrorKind::kDevice, "cuDNN " + std::to_string(cudnnGetVersion()) + " has no engine on " +
                                        context_.device().name + " for a convolution of " + shape.describe() +
                                        "; use another cuDNN 9, or the CPU backend");
  }
  if (plans.size() > 1) keep_fastest(plans, data);
  const std::shared_ptr<void> workspace = context_.allocate_bytes(static_cast<size_t>(plans[0].workspace_bytes()));
  data.workspace = workspace.get();
  plans[0].run(handle_, data);
}

void ConvolutionEngine::keep_fastest(std::vector<ConvolutionPlan>& plans, const ConvolutionData& data) {
  int64_t workspace_bytes = 0;
  for (const ConvolutionPlan& plan : plans) workspace_bytes = std::max(workspace_bytes, plan.workspace_bytes());
  const ConvolutionShape& shape = plans[0].shape();
  const std::shared_ptr<void> workspace = context_.allocate_bytes(static_cast<size_t>(workspace_bytes));
  // Elsewhere, because an accumulating plan may run only once on what `out` holds.
  const int64_t elements = shape.size_out(0) * shape.size_out(1) * shape.size_out(2) * shape.spec.out_channels;
  const std::shared_ptr<void> out = context_.allocate_bytes(static_cast<size_t>(elements) * dtype_size(shape.out));
  ConvolutionData trial = data;
  trial.out = out.get();
  trial.workspace = workspace.get();
  Stopwatch stopwatch(context_.stream());
  size_t best = 0;
  float best_milliseconds = std::numeric_limits<float>::infinity();
  for (size_t i = 0; i < plans.size(); ++i) {
    plans[i].run(handle_, trial);  // the first run loads the kernel
    stopwatch.start();
    plans[i].run(handle_, trial);
    const float milliseconds = stopwatch.stop();
    if (milliseconds < best_milliseconds) {
      best_milliseconds = milliseconds;
      best = i;
    }
  }
  ConvolutionPlan winner = std::move(plans[best]);
  plans.clear();
  plans.push_back(std::move(winner));
}

std::vector<std::string> ConvolutionEngine::report() const {
  std::vector<std::string> lines;
  for (const auto& [key, plans] : plans_) {
    for (const ConvolutionPlan& plan : plans) {
      lines.push_back(plan.shape().describe() + ": " + plan.name() + ", workspace " +
                      std::to_string(plan.workspace_bytes() >> 20) + " MiB");
    }
  }
  return lines;
}

}  // namespace calibatt::cuda
