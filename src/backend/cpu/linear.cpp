#include "backend/cpu/linear.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "backend/cpu/onednn.h"
#include "backend/cpu/row_kernels.h"
#include "backend/cpu/scratch.h"
#include "base/thread_pool.h"

namespace calibatt::cpu {
namespace {

using Format = dnnl::memory::format_tag;
using Arguments = std::unordered_map<int, dnnl::memory>;

dnnl::memory wrap(const dnnl::memory::desc& desc, const void* data) {
  return {desc, onednn_engine(), const_cast<void*>(data)};  // oneDNN's handles are not const, its inputs are
}

/// One matmul of a fixed number of rows with everything that follows it in one pass.
struct Matmul {
  dnnl::matmul primitive;
  dnnl::memory::desc source, destination, scratchpad;
};

/// What distinguishes the primitives of one layer.
struct MatmulKey {
  int64_t rows = 0;
  DType out = DType::kF32;
  Activation activation = Activation::kNone;
  bool accumulate = false, gated = false;
  bool operator<(const MatmulKey& other) const {
    return std::tie(rows, out, activation, accumulate, gated) <
           std::tie(other.rows, other.out, other.activation, other.accumulate, other.gated);
  }
};

class OneDnnLinear final : public LinearLayer {
 public:
  OneDnnLinear(const Tensor& weight, const Tensor& bias, DType dtype, std::shared_ptr<GatheredWeights> gathered)
      : in_(weight.dim(1)),
        out_(weight.dim(0)),
        dtype_(dtype),
        compute_(dtype == DType::kBF16 && has_native_bf16() ? DType::kBF16 : DType::kF32),
        gathered_(std::move(gathered)) {
    const OneThread one_thread;
    bias_ = bias.empty() ? Tensor::zeros(DType::kF32, {out_}) : converted(bias, DType::kF32);
    CALIBATT_ASSERT(bias_.size() == out_);
    // Through `dtype` even when computing in float32, so that a bfloat16 run has the same weights on every processor.
    Tensor plain = converted(converted(weight, dtype), compute_);
    const dnnl::memory::desc plain_desc({in_, out_}, onednn_type(compute_),
                                        Format::ba);  // [out, in] seen as its transpose
    constexpr int64_t kTypicalRows = 128;
    packed_ = preferred_weights(kTypicalRows);
    fuses_gate_ = gate_is_fused(kTypicalRows);
    weights_ = Tensor(DType::kU8, {static_cast<int64_t>(packed_.get_size())});
    dnnl::memory from = wrap(plain_desc, plain.raw()), to = wrap(packed_, weights_.raw());
    dnnl::reorder(from, to).execute(onednn_stream(), from, to);
    onednn_stream().wait();
    if (gathered_ != nullptr) gathered_offset_ = gathered_->append(std::exchange(weights_, {}));
  }

  int64_t in_features() const override { return in_; }
  int64_t out_features() const override { return out_; }
  DType dtype() const override { return dtype_; }
  DType compute() const { return compute_; }
  /// oneDNN's kernels for this processor can multiply by the gate and add to the output themselves.
  bool fuses_gate() const { return fuses_gate_; }

  void run(int64_t rows, const void* input, void* out, DType out_dtype, const LinearEpilogue& epilogue) const {
    const OneThread one_thread;
    const MatmulKey key{rows, out_dtype, epilogue.activation, epilogue.accumulate, epilogue.gate != nullptr};
    const Matmul& matmul = matmul_for(key);
    Arguments arguments{{DNNL_ARG_SRC, wrap(matmul.source, input)},
                        {DNNL_ARG_WEIGHTS, wrap(packed_, weights())},
                        {DNNL_ARG_BIAS, wrap(row_desc(), bias_.raw())},
                        {DNNL_ARG_DST, wrap(matmul.destination, out)}};
    if (epilogue.gate != nullptr) {
      const int gate_position = epilogue.activation == Activation::kNone ? 0 : 1;
      arguments.emplace(DNNL_ARG_ATTR_MULTIPLE_POST_OP(gate_position) | DNNL_ARG_SRC_1,
                        wrap(row_desc(), epilogue.gate->raw()));
    }
    if (const size_t size = matmul.scratchpad.get_size(); size > 0) {
      arguments.emplace(DNNL_ARG_SCRATCHPAD, wrap(matmul.scratchpad, thread_scratch(Scratch::kOneDnn, size)));
    }
    matmul.primitive.execute(onednn_stream(), arguments);
    onednn_stream().wait();
  }

 private:
  const void* weights() const { return gathered_ != nullptr ? gathered_->memory() + gathered_offset_ : weights_.raw(); }
  dnnl::memory::desc row_desc() const { return {{1, out_}, dnnl::memory::data_type::f32, Format::ab}; }

  dnnl::matmul::primitive_desc describe(const MatmulKey& key, const dnnl::memory::desc& weights) const {
    const dnnl::memory::desc source({key.rows, in_}, onednn_type(compute_), Format::ab);
    const dnnl::memory::desc destination({key.rows, out_}, onednn_type(key.out), Format::ab);
    dnnl::post_ops post_ops;
    if (key.activation == Activation::kGeluTanh) append_eltwise(post_ops, dnnl::algorithm::eltwise_gelu_tanh, 0);
    if (key.activation == Activation::kSiLU) append_eltwise(post_ops, dnnl::algorithm::eltwise_swish, 1);
    if (key.gated) post_ops.append_binary(dnnl::algorithm::binary_mul, row_desc());
    if (key.accumulate) post_ops.append_sum(1);
    dnnl::primitive_attr attributes;
    attributes.set_post_ops(post_ops);
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);  // the library's own is not safe across threads
    return describe_primitive<dnnl::matmul>(attributes, source, weights, row_desc(), destination);
  }

  dnnl::memory::desc preferred_weights(int64_t rows) const {
    const dnnl::memory::desc any({in_, out_}, onednn_type(compute_), Format::any);
    return describe({rows, compute_}, any).weights_desc();
  }

  bool gate_is_fused(int64_t rows) const {
    const MatmulKey gated{.rows = rows, .accumulate = true, .gated = true};
    return std::string_view(describe(gated, packed_).impl_info_str()).find("ref") == std::string_view::npos;
  }

  const Matmul& matmul_for(const MatmulKey& key) const {
    const std::lock_guard lock(mutex_);
    const auto found = matmuls_.find(key);
    if (found != matmuls_.end()) return found->second;
    const dnnl::matmul::primitive_desc description = describe(key, packed_);
    return matmuls_
        .emplace(key, Matmul{dnnl::matmul(description), description.src_desc(), description.dst_desc(),
                             description.scratchpad_desc()})
        .first->second;
  }

  int64_t in_, out_;
  DType dtype_, compute_;
  bool fuses_gate_ = true;
  Tensor bias_;
  Tensor weights_;  // bytes, in the layout packed_; empty where they are gathered
  std::shared_ptr<GatheredWeights> gathered_;
  size_t gathered_offset_ = 0;
  dnnl::memory::desc packed_;
  mutable std::mutex mutex_;
  mutable std::map<MatmulKey, Matmul> matmuls_;  // nodes stay where they are while others are added
};

/// Rows per chunk: large enough to amortise a call, small enough that a chunk's output stays in a core's L2 and that
/// the last chunks balance over the threads.
int64_t chunk_rows(int64_t rows) {
  constexpr int64_t kMin = 32, kMax = 128;
  const int64_t balanced = rows / (4 * num_threads());
  return std::clamp(balanced / kMin * kMin, kMin, kMax);
}

}  // namespace

std::shared_ptr<const LinearLayer> make_linear(const Tensor& weight, const Tensor& bias, DType dtype,
                                               const std::shared_ptr<GatheredWeights>& gathered) {
  CALIBATT_ASSERT(weight.rank() == 2);
  return std::make_shared<OneDnnLinear>(weight, bias, dtype, gathered);
}

void linear(const LinearLayer& layer, const Tensor& input, Tensor& out, const LinearEpilogue& epilogue) {
  const auto& linear = dynamic_cast<const OneDnnLinear&>(layer);
  const int64_t in_features = linear.in_features(), out_features = linear.out_features();
  CALIBATT_ASSERT(input.dtype() == linear.dtype() && input.dim(-1) == in_features && out.dim(-1) == out_features);
  const int64_t rows = input.size() / in_features;
  CALIBATT_ASSERT(out.size() == rows * out_features);
  CALIBATT_ASSERT(!epilogue.accumulate || out.dtype() == DType::kF32);
  CALIBATT_ASSERT(epilogue.gate == nullptr || (epilogue.accumulate && epilogue.gate->size() == out_features));

  const bool convert_input = linear.dtype() != linear.compute();  // bfloat16 on a processor without it
  const bool convert_output = out.dtype() == DType::kBF16 && linear.compute() == DType::kF32;
  const bool gate_apart = epilogue.gate != nullptr && !linear.fuses_gate();
  const int64_t input_row_bytes = in_features * static_cast<int64_t>(dtype_size(input.dtype()));
  const int64_t out_row_bytes = out_features * static_cast<int64_t>(dtype_size(out.dtype()));
  parallel_for(rows, chunk_rows(rows), [&](int64_t begin, int64_t end, int) {
    const int64_t count = end - begin;
    const char* source = static_cast<const char*>(input.raw()) + begin * input_row_bytes;
    char* destination = static_cast<char*>(out.raw()) + begin * out_row_bytes;
    const void* operand = source;
    if (convert_input) {
      float* wide = thread_scratch_floats(Scratch::kLinearInput, count * in_features);
      widen(reinterpret_cast<const bfloat16*>(source), wide, count * in_features);
      operand = wide;
    }
    if (!convert_output && !gate_apart) {
      linear.run(count, operand, destination, out.dtype(), epilogue);
      return;
    }
    float* result = thread_scratch_floats(Scratch::kLinearOutput, count * out_features);
    linear.run(count, operand, result, DType::kF32, {.activation = epilogue.activation});
    if (convert_output) {
      narrow(result, reinterpret_cast<bfloat16*>(destination), count * out_features);
      return;
    }
    for (int64_t row = 0; row < count; ++row) {
      multiply_add(result + row * out_features, epilogue.gate->f32(),
                   reinterpret_cast<float*>(destination) + row * out_features, out_features);
    }
  });
}

}  // namespace calibatt::cpu
