#include "backend/cuda/clip_ops.h"

#include <cstring>
#include <utility>

#include "backend/cuda/clip_kernels.h"
#include "backend/cuda/pixel_attention.h"
#include "base/ceil_div.h"
#include "base/error.h"

namespace calibatt::cuda {
namespace {

bool same_size(const ClipView& a, const ClipView& b) {
  return a.height == b.height && a.frames == b.frames && a.width == b.width && a.channels == b.channels;
}

/// Pinned host memory, which the GPU writes while the host does something else.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  explicit PinnedBuffer(size_t size_bytes) : size_bytes_(size_bytes) {
    check(cudaMallocHost(&data_, size_bytes), "allocating pinned host memory");
  }
  PinnedBuffer(PinnedBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_bytes_(std::exchange(other.size_bytes_, 0)) {}
  PinnedBuffer& operator=(PinnedBuffer other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_bytes_, other.size_bytes_);
    return *this;
  }
  ~PinnedBuffer() {
    if (data_ != nullptr) static_cast<void>(cudaFreeHost(data_));
  }
  uint8_t* data() const { return static_cast<uint8_t*>(data_); }
  size_t size_bytes() const { return size_bytes_; }

 private:
  void* data_ = nullptr;
  size_t size_bytes_ = 0;
};

using PinnedBuffers = std::vector<PinnedBuffer>;

/// The bytes of a group and, behind them, whether there was a NaN: one copy into pinned memory that is used again.
class CudaRgb : public PendingRgb {
 public:
  CudaRgb(Context& context, std::shared_ptr<PinnedBuffers> spare, const ClipView& patches, int patch)
      : spare_(std::move(spare)) {
    picture_bytes_ = static_cast<size_t>(patches.height * patches.frames * patches.width) * 3 *
                     static_cast<size_t>(patch) * static_cast<size_t>(patch);
    flag_offset_ = (picture_bytes_ + alignof(int) - 1) / alignof(int) * alignof(int);
    const size_t bytes = flag_offset_ + sizeof(int);
    const std::shared_ptr<void> device = context.allocate_bytes(bytes);  // freed in stream order, behind the copy
    auto* const rgb = static_cast<uint8_t*>(device.get());
    int* const has_nan = reinterpret_cast<int*>(rgb + flag_offset_);
    for (size_t i = 0; i < spare_->size() && host_.size_bytes() < bytes; ++i) {
      if ((*spare_)[i].size_bytes() < bytes) continue;
      host_ = std::move((*spare_)[i]);
      spare_->erase(spare_->begin() + static_cast<std::ptrdiff_t>(i));
    }
    if (host_.size_bytes() < bytes) host_ = PinnedBuffer(bytes);
    check(cudaMemsetAsync(has_nan, 0, sizeof(int), context.stream()), "clearing memory");
    launch_rgb(patches, patch, rgb, has_nan, context.stream());
    check(cudaMemcpyAsync(host_.data(), rgb, bytes, cudaMemcpyDeviceToHost, context.stream()), "copying frames");
    check(cudaEventCreateWithFlags(&arrived_, cudaEventDisableTiming | cudaEventBlockingSync), "making an event");
    check(cudaEventRecord(arrived_, context.stream()), "recording an event");
  }
  CudaRgb(const CudaRgb&) = delete;
  CudaRgb& operator=(const CudaRgb&) = delete;
  ~CudaRgb() override {
    if (arrived_ == nullptr) return;
    static_cast<void>(cudaEventSynchronize(arrived_));  // or the GPU would write into memory of somebody else
    static_cast<void>(cudaEventDestroy(arrived_));
  }

  bool finish(uint8_t* rgb) override {
    check(cudaEventSynchronize(arrived_), "decoding frames");
    std::memcpy(rgb, host_.data(), picture_bytes_);
    int has_nan = 0;
    std::memcpy(&has_nan, host_.data() + flag_offset_, sizeof(int));
    spare_->push_back(std::move(host_));
    return has_nan == 0;
  }

 private:
  std::shared_ptr<PinnedBuffers> spare_;
  PinnedBuffer host_;
  size_t picture_bytes_ = 0, flag_offset_ = 0;
  cudaEvent_t arrived_ = nullptr;
};

class CudaClipOps : public ClipOps {
 public:
  CudaClipOps(Context& context, const ClipOptions& options) : context_(context), options_(options) {}

  bool pools_memory() const override { return true; }
  bool defers_bias() const override { return !options_.fuse; }
  int64_t latent_frames_at_once() const override { return options_.latent_frames; }

  bool supports(DType compute) const override { return compute == DType::kF32 || compute == DType::kBF16; }

  std::unique_ptr<Convolution> make_convolution(const ConvolutionSpec& spec, const Tensor& weight, const Tensor& bias,
                                                DType compute) override {
    if (!convolutions_) convolutions_ = std::make_shared<ConvolutionEngine>(context_, options_);
    return ConvolutionEngine::make(convolutions_, spec, weight, bias, compute);
  }

  void rms_norm(const ClipView& in, const Tensor* offset, const Tensor& gamma, Activation activation,
                const ClipView& out) override {
    CALIBATT_ASSERT(offset == nullptr || (offset->size() == in.channels && offset->dtype() == DType::kF32));
    CALIBATT_ASSERT(same_size(in, out) && gamma.size() == in.channels && gamma.dtype() == DType::kF32);
    CALIBATT_ASSERT(activation == Activation::kNone || activation == Activation::kSiLU);
    launch_rms_norm(in, offset != nullptr ? offset->f32() : nullptr, gamma.f32(), activation == Activation::kSiLU, out,
                    context_.stream());
  }

  void group_norm(const ClipView& in, const Tensor* offset, const GroupNorm& norm, Activation activation,
                  const ClipView& out) override {
    const int64_t border = out.height - in.height;
    CALIBATT_ASSERT(border >= 0 && border % 2 == 0 && out.width - in.width == border && out.frames == in.frames &&
                    out.channels == in.channels);
    CALIBATT_ASSERT(norm.gamma.size() == in.channels && norm.beta.size() == in.channels);
    CALIBATT_ASSERT(offset == nullptr || offset->size() == in.channels);
    CALIBATT_ASSERT(activation == Activation::kNone || activation == Activation::kSiLU);
    const std::shared_ptr<void> workspace =
        context_.allocate_bytes(group_norm_workspace_bytes(in, norm.groups));  // freed in stream order
    const GroupNormArgs args{.offset = offset != nullptr ? offset->f32() : nullptr,
                             .gamma = norm.gamma.f32(),
                             .beta = norm.beta.f32(),
                             .groups = norm.groups,
                             .epsilon = norm.epsilon,
                             .silu = activation == Activation::kSiLU,
                             .workspace = workspace.get()};
    if (norm.ranks == nullptr) {
      launch_group_norm(in, args, out, context_.stream());
      return;
    }
    const size_t bytes = group_sums_bytes(in, norm.groups);
    const auto shards = static_cast<size_t>(norm.ranks->size());
    const std::shared_ptr<void> own = context_.allocate_bytes(bytes), all = context_.allocate_bytes(shards * bytes);
    launch_group_sums(in, args, own.get(), context_.stream());
    std::vector<Piece> receive(shards);
    for (size_t shard = 0; shard < shards; ++shard)
      receive[shard] = {static_cast<char*>(all.get()) + shard * bytes, bytes};
    norm.ranks->all_gather({own.get(), bytes}, receive);
    launch_group_norm_by_sums(in, args, all.get(), norm.ranks->size(), norm.height_of_all, out, context_.stream());
  }

  void silu(const Tensor* offset, const ClipView& x) override {
    CALIBATT_ASSERT(offset == nullptr || offset->size() == x.channels);
    launch_silu(x, offset != nullptr ? offset->f32() : nullptr, context_.stream());
  }

  void depth_to_space(const ClipView& in, const Tensor* offset, int time_factor, int space_factor,
                      const ClipView& out) override {
    CALIBATT_ASSERT(out.height == space_factor * in.height && out.width == space_factor * in.width &&
                    out.frames == time_factor * in.frames &&
                    in.channels == time_factor * space_factor * space_factor * out.channels);
    CALIBATT_ASSERT(offset == nullptr || offset->size() == in.channels);
    launch_depth_to_space(in, offset != nullptr ? offset->f32() : nullptr, time_factor, space_factor, out,
                          context_.stream());
  }

  void upsample(const ClipView& in, int time_factor, const ClipView& out) override {
    CALIBATT_ASSERT(time_factor == 1 || time_factor == 2);
    CALIBATT_ASSERT(out.height == 2 * in.height && out.width == 2 * in.width && in.dtype == out.dtype &&
                    out.frames == time_factor * in.frames && in.channels == time_factor * out.channels);
    launch_upsample(in, time_factor, out, context_.stream());
  }

  void add_repeated(const ClipView& in, int time_factor, int space_factor, int64_t first_frame,
                    const ClipView& out) override {
    const int64_t t = time_factor, s = space_factor;
    CALIBATT_ASSERT(out.height == s * in.height && out.width == s * in.width &&
                    out.frames + first_frame == t * in.frames && out.channels * t * s * s % in.channels == 0);
    launch_add_repeated(in, time_factor, space_factor, first_frame, out, context_.stream());
  }

  void add_averaged(const ClipView& in, int time_factor, int space_factor, const ClipView& out) override {
    const int64_t t = time_factor, s = space_factor;
    CALIBATT_ASSERT(in.height == s * out.height && in.width == s * out.width && out.frames == ceil_div(in.frames, t) &&
                    in.channels * t * s * s % out.channels == 0);
    launch_add_averaged(in, time_factor, space_factor, out, context_.stream());
  }

  void copy(const ClipView& in, const ClipView& out) override {
    CALIBATT_ASSERT(same_size(in, out));
    launch_copy(in, 0, out, context_.stream());
  }

  void zero(const ClipView& out) override {
    const size_t element = dtype_size(out.dtype);
    check(cudaMemset2DAsync(out.data, static_cast<size_t>(out.row_stride) * element, 0,
                            static_cast<size_t>(out.frames * out.frame_stride()) * element,
                            static_cast<size_t>(out.height), context_.stream()),
          "clearing memory");
  }

  void add_bias(const Tensor& bias, const ClipView& x) override {
    CALIBATT_ASSERT(bias.size() == x.channels && bias.dtype() == DType::kF32 && x.dense());
    launch_add_bias(x, bias.f32(), false, x, context_.stream());
  }

  void attention(const ClipView& qkv, int64_t first_row, const ClipView& out) override {
    CALIBATT_ASSERT(qkv.frames == 1 && out.frames == 1 && qkv.dense() && out.dense() && qkv.dtype == out.dtype);
    CALIBATT_ASSERT(qkv.width == out.width && qkv.channels == 3 * out.channels);
    CALIBATT_ASSERT(first_row >= 0 && first_row + out.height <= qkv.height);
    if (!attention_) attention_ = std::make_unique<PixelAttention>(context_);
    attention_->run(qkv, first_row, out);
  }

  std::unique_ptr<PendingRgb> start_rgb(const ClipView& patches, int patch) override {
    CALIBATT_ASSERT(patches.dtype == DType::kF32 && patches.channels == 3 * patch * patch);
    return std::make_unique<CudaRgb>(context_, spare_, patches, patch);
  }

  std::vector<std::string> report() const {
    return convolutions_ ? convolutions_->report() : std::vector<std::string>();
  }

 private:
  Context& context_;
  ClipOptions options_;
  std::shared_ptr<ConvolutionEngine> convolutions_;
  std::unique_ptr<PixelAttention> attention_;
  std::shared_ptr<PinnedBuffers> spare_ = std::make_shared<PinnedBuffers>();
};

}  // namespace

std::unique_ptr<ClipOps> make_clip_ops(Context& context, const ClipOptions& options) {
  return std::make_unique<CudaClipOps>(context, options);
}

std::vector<std::string> convolution_report(const ClipOps& ops) {
  const auto* const ours = dynamic_cast<const CudaClipOps*>(&ops);
  return ours != nullptr ? ours->report() : std::vector<std::string>();
}

}  // namespace calibatt::cuda
