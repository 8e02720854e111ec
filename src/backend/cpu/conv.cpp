#include "backend/cpu/conv.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "backend/cpu/scratch.h"
#include "base/error.h"
#include "base/thread_pool.h"

namespace calibatt::cpu {
namespace {

using dnnl::memory;

// oneDNN's depth × height × width are our rows × frames × columns; activations are channels-last.
constexpr auto kActivations = memory::format_tag::ndhwc;

// A piece smaller than this is not worth the cost of starting a primitive (a few microseconds).
constexpr int64_t kMinMacsPerPiece = 4 << 20;
constexpr int64_t kPiecesPerThread = 4;

int64_t size_out(const ConvolutionSpec& spec, int axis, int64_t size_in) {
  const int64_t padding = axis == 2 ? spec.pad_left + spec.pad_right : 0;
  return (size_in + padding - spec.kernel[axis]) / spec.stride[axis] + 1;
}

std::unique_ptr<ConvolutionPrimitive> make_primitive(const ConvolutionPrimitives::Key& key) {
  const ConvolutionSpec& spec = key.spec;
  const auto type = onednn_type(key.compute);
  const memory::desc src({1, spec.in_channels, key.height_in, key.frames_in, key.width_in}, type, kActivations);
  const memory::desc dst({1, spec.out_channels, size_out(spec, 0, key.height_in), size_out(spec, 1, key.frames_in),
                          size_out(spec, 2, key.width_in)},
                         onednn_type(key.out), kActivations);
  const memory::desc weights({spec.out_channels, spec.in_channels, spec.kernel[0], spec.kernel[1], spec.kernel[2]},
                             type, memory::format_tag::any);
  const memory::desc bias({spec.out_channels}, memory::data_type::f32, memory::format_tag::a);

  const OneThread one_thread;
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (key.accumulate) {
    dnnl::post_ops sum;
    sum.append_sum(1.0f);
    attributes.set_post_ops(sum);
  }
  const auto chosen = describe_primitive<dnnl::convolution_forward>(
      attributes, dnnl::prop_kind::forward_inference, dnnl::algorithm::convolution_direct, src, weights, bias, dst,
      memory::dims{spec.stride[0], spec.stride[1], spec.stride[2]}, memory::dims{0, 0, spec.pad_left},
      memory::dims{0, 0, spec.pad_right});
  return std::make_unique<ConvolutionPrimitive>(ConvolutionPrimitive{dnnl::convolution_forward(chosen),
                                                                     chosen.src_desc(), chosen.weights_desc(), bias,
                                                                     chosen.dst_desc(), chosen.scratchpad_desc()});
}

class OneDnnConvolution : public Convolution {
 public:
  OneDnnConvolution(std::shared_ptr<ConvolutionPrimitives> primitives, const ConvolutionSpec& spec,
                    const Tensor& weight, const Tensor& bias, DType compute)
      : primitives_(std::move(primitives)),
        spec_(spec),
        compute_(compute),
        bias_(bias),
        no_bias_(Tensor::zeros(DType::kF32, {spec.out_channels})),
        original_(weight) {
    CALIBATT_ASSERT(bias.dtype() == DType::kF32);
    CALIBATT_ASSERT((weight.shape() == std::vector<int64_t>{spec.out_channels, spec.in_channels, spec.kernel[1],
                                                            spec.kernel[0], spec.kernel[2]}));
    CALIBATT_ASSERT(bias.size() == spec.out_channels);
    // torch stores frames × rows × columns, we compute rows × frames × columns: the same array with other strides.
    const memory::dims dims = {spec.out_channels, spec.in_channels, spec.kernel[0], spec.kernel[1], spec.kernel[2]};
    const int64_t kernel_size = spec.kernel[0] * spec.kernel[1] * spec.kernel[2];
    const memory::dims strides = {spec.in_channels * kernel_size, kernel_size, spec.kernel[2],
                                  spec.kernel[0] * spec.kernel[2], 1};
    original_desc_ = memory::desc(dims, onednn_type(weight.dtype()), strides);
  }

  const ConvolutionSpec& spec() const override { return spec_; }

  void run(const ClipView& in, const ClipView& out, bool accumulate, bool add_bias) const override {
    CALIBATT_ASSERT(in.dense() && out.dense() && in.dtype == compute_);
    CALIBATT_ASSERT(in.channels == spec_.in_channels && out.channels == spec_.out_channels);
    CALIBATT_ASSERT(out.height == size_out(spec_, 0, in.height) && out.frames == size_out(spec_, 1, in.frames) &&
                    out.width == size_out(spec_, 2, in.width));
    const int64_t rows = rows_per_piece(out);
    const int64_t num_pieces = (out.height + rows - 1) / rows;
    const int64_t rows_last = out.height - (num_pieces - 1) * rows;
    const Piece whole = piece(in, out, rows, accumulate);
    const Piece last = rows_last == rows ? whole : piece(in, out, rows_last, accumulate);

    parallel_for(num_pieces, 1, [&](int64_t begin, int64_t end, int) {
      const OneThread one_thread;
      for (int64_t index = begin; index < end; ++index) {
        run_piece(index == num_pieces - 1 ? last : whole, in.at(index * rows * spec_.stride[0], 0),
                  add_bias ? bias_ : no_bias_, out.at(index * rows, 0));
      }
    });
  }

 private:
  struct Piece {
    const ConvolutionPrimitive* primitive = nullptr;
    const memory* weights = nullptr;
  };

  int64_t rows_per_piece(const ClipView& out) const {
    const int64_t macs_per_row = out.frames * out.width * spec_.out_channels * spec_.in_channels * spec_.kernel[0] *
                                 spec_.kernel[1] * spec_.kernel[2];
    const int64_t rows_for_threads = out.height / (num_threads() * kPiecesPerThread);
    const int64_t rows_for_size = kMinMacsPerPiece / macs_per_row;
    const int64_t rows = std::clamp<int64_t>(std::max(rows_for_threads, rows_for_size), 1, out.height);
    const int64_t num_pieces = (out.height + rows - 1) / rows;
    return (out.height + num_pieces - 1) / num_pieces;  // as even as can be
  }

  Piece piece(const ClipView& in, const ClipView& out, int64_t rows, bool accumulate) const {
    const int64_t height_in = (rows - 1) * spec_.stride[0] + spec_.kernel[0];
    try {
      const ConvolutionPrimitive& primitive =
          primitives_->get({spec_, compute_, out.dtype, accumulate, height_in, in.frames, in.width});
      return {&primitive, &weights_for(primitive.weights)};
    } catch (const dnnl::error& error) {
      throw Error(ErrorKind::kUsage, "oneDNN cannot run a convolution of " + std::to_string(spec_.in_channels) +
                                         " to " + std::to_string(spec_.out_channels) + " channels in " +
                                         std::string(dtype_name(compute_)) + " on this processor (" + error.what() +
                                         "); use F32");
    }
  }

  /// The weights in the layout that a primitive asks for: made once per layout. All shapes of one convolution usually
  /// ask for the same one.
  const memory& weights_for(const memory::desc& desc) const {
    const std::lock_guard lock(mutex_);
    for (const auto& weights : weights_) {
      if (weights->get_desc() == desc) return *weights;
    }
    const OneThread one_thread;
    auto weights = std::make_unique<memory>(desc, onednn_engine());
    memory original(original_desc_, onednn_engine(), const_cast<void*>(original_.raw()));
    dnnl::reorder(original, *weights).execute(onednn_stream(), original, *weights);
    onednn_stream().wait();
    weights_.push_back(std::move(weights));
    return *weights_.back();
  }

  void run_piece(const Piece& piece, void* in, const Tensor& bias, void* out) const {
    const ConvolutionPrimitive& primitive = *piece.primitive;
    void* const scratchpad = thread_scratch(Scratch::kOneDnn, primitive.scratchpad.get_size());
    const dnnl::engine& engine = onednn_engine();
    primitive.primitive.execute(onednn_stream(),
                                {{DNNL_ARG_SRC, memory(primitive.src, engine, in)},
                                 {DNNL_ARG_WEIGHTS, *piece.weights},
                                 {DNNL_ARG_BIAS, memory(primitive.bias, engine, const_cast<void*>(bias.raw()))},
                                 {DNNL_ARG_DST, memory(primitive.dst, engine, out)},
                                 {DNNL_ARG_SCRATCHPAD, memory(primitive.scratchpad, engine, scratchpad)}});
    onednn_stream().wait();
  }

  std::shared_ptr<ConvolutionPrimitives> primitives_;
  ConvolutionSpec spec_;
  DType compute_;
  Tensor bias_, no_bias_, original_;
  memory::desc original_desc_;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<memory>> weights_;
};

}  // namespace

const ConvolutionPrimitive& ConvolutionPrimitives::get(const Key& key) {
  const ConvolutionSpec& spec = key.spec;
  const Words words = {spec.in_channels,
                       spec.out_channels,
                       spec.kernel[0],
                       spec.kernel[1],
                       spec.kernel[2],
                       spec.stride[0],
                       spec.stride[1],
                       spec.stride[2],
                       spec.pad_left,
                       spec.pad_right,
                       static_cast<int64_t>(key.compute),
                       static_cast<int64_t>(key.out),
                       key.accumulate,
                       key.height_in,
                       key.frames_in,
                       key.width_in};
  const std::lock_guard lock(mutex_);
  std::unique_ptr<ConvolutionPrimitive>& primitive = primitives_[words];
  if (!primitive) primitive = make_primitive(key);
  return *primitive;
}

std::unique_ptr<Convolution> make_convolution(std::shared_ptr<ConvolutionPrimitives> primitives,
                                              const ConvolutionSpec& spec, const Tensor& weight, const Tensor& bias,
                                              DType compute) {
  return std::make_unique<OneDnnConvolution>(std::move(primitives), spec, weight, bias, compute);
}

}  // namespace calibatt::cpu
