#include "backend/cuda/cuda_backend.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "backend/cpu/make_backend.h"
#include "backend/cuda/attention/attention.h"
#include "backend/cuda/attention/cuda_attention.h"
#include "backend/cuda/clip_ops.h"
#include "backend/cuda/device_shard.h"
#include "backend/cuda/eight_bit.h"
#include "backend/cuda/host_weights.h"
#include "backend/cuda/kernels/biased_attention.h"
#include "backend/cuda/kernels/elementwise.h"
#include "backend/cuda/kernels/few_keys.h"
#include "backend/cuda/kernels/head_norm.h"
#include "backend/cuda/kernels/norm.h"
#include "backend/cuda/kernels/patches.h"
#include "backend/cuda/linear.h"
#include "backend/cuda/row_calls.h"
#include "base/error.h"

namespace calibatt::cuda {
namespace {

/// All rows of a video, mostly: a gated product scales its weight once per call. Products of the 14B model stay below
/// 2³¹ elements.
constexpr int64_t kRowsAtATime = 131072;

class CudaBackend final : public Backend, public CudaAttention {
 public:
  explicit CudaBackend(const ClipOptions& clip_options) : clip_ops_(make_clip_ops(context_, clip_options)) {}

  bool has_fast_bf16() const override { return true; }
  bool has_fp16() const override { return true; }
  int64_t rows_at_a_time() const override { return kRowsAtATime; }

  void trim_memory() override {
    linear_.release_staging();
    linear_.weight_stream().release();
    context_.trim();
  }

  std::shared_ptr<const LinearLayer> make_linear(const Tensor& weight, const Tensor& bias,
                                                 const LinearFormat& format) override {
    require_known_format(format, name());
    return linear_.make(weight, bias, format.dtype);
  }
  std::shared_ptr<const LinearLayer> load_linear(const StoredLinear& stored) override {
    require_known_format(stored.format, name());
    return linear_.load(stored);
  }
  std::shared_ptr<StreamedWeights> make_streamed_weights(size_t size_bytes) override {
    return std::make_shared<HostWeights>(linear_.weight_stream(), size_bytes);
  }
  std::shared_ptr<StreamedWeights> make_sharded_weights(ShardedBlock block) override {
    if (block.on_the_host) return std::make_shared<HostWeights>(linear_.weight_stream(), std::move(block));
    return std::make_shared<DeviceShard>(linear_.weight_stream(), std::move(block));
  }
  void linear(const LinearLayer& layer, const Tensor& input, Tensor& out, const LinearEpilogue& epilogue) override {
    linear_.run(layer, input, out, epilogue);
  }
  Tensor weight_of(const LinearLayer& layer, const Tensor&) override { return linear_.weight_of(layer, DType::kBF16); }

  bool takes_norm() const override;
  std::string_view attention(const AttentionCall& call) override;

  void layer_norm(const Tensor& x, const Tensor* scale, const Tensor* shift, bool one_plus_scale, float eps,
                  Tensor& out) override {
    cuda::layer_norm(layer_norm_call(x, {scale, shift, one_plus_scale, eps}, RowsOut(out)), context_.stream());
  }
  void rms_norm(const Tensor& x, const Tensor& weight, float eps, Tensor& out) override {
    cuda::rms_norm(rms_norm_call(x, weight, eps, RowsOut(out)), context_.stream());
  }
  void add_rms_norm(const Tensor& x, const Tensor& weight, float eps, Tensor& residual,
                    const FollowingNorm* following) override;
  void norm_and_rotate(HeadsView x, int num_heads, int head_dim, const Tensor* weight, float eps,
                       const RopeTable* rope) override;
  void norm_and_rotate_heads(HeadsView query, HeadsView key, int num_heads, int head_dim, const HeadNorms& norms,
                             const RopeFactors* rope) override;

  void activate(Activation activation, const Tensor& x, Tensor& out) override {
    CALIBATT_ASSERT(x.size() == out.size() && x.dtype() == out.dtype());
    cuda::activate(activation, x.raw(), out.raw(), x.dtype(), x.size(), context_.stream());
  }
  void multiply(const Tensor& a, const Tensor& b, Tensor& out) override {
    CALIBATT_ASSERT(a.size() == b.size() && a.size() == out.size() && a.dtype() == b.dtype() &&
                    a.dtype() == out.dtype());
    cuda::multiply(a.raw(), b.raw(), out.raw(), a.dtype(), a.size(), context_.stream());
  }
  void swiglu(const Tensor& x, Tensor& out) override {
    CALIBATT_ASSERT(x.size() == 2 * out.size() && x.dim(-1) == 2 * out.dim(-1) && x.dtype() == out.dtype());
    cuda::swiglu(x.raw(), out.raw(), x.dtype(), out.size() / out.dim(-1), out.dim(-1), context_.stream());
  }
  void add(const Tensor& a, const Tensor& b, Tensor& out) override {
    CALIBATT_ASSERT(a.size() == out.size() && b.size() > 0 && a.size() % b.size() == 0);
    cuda::add(a.f32(), b.f32(), out.f32(), a.size(), b.size(), context_.stream());
  }
  void convert(const Tensor& x, Tensor& out) override {
    CALIBATT_ASSERT(x.size() == out.size());
    if (x.dtype() == out.dtype()) {
      check(cudaMemcpyAsync(out.raw(), x.raw(), x.size_bytes(), cudaMemcpyDeviceToDevice, context_.stream()),
            "copying on the GPU");
      return;
    }
    cuda::convert(x.raw(), x.dtype(), out.raw(), out.dtype(), x.size(), context_.stream());
  }
  double sum_of_squares(const Tensor& x) override;

  void patchify(const Tensor& latents, const PatchLayout& layout, Tensor& tokens) override {
    CALIBATT_ASSERT(tokens.size() == latents.size());
    cuda::patchify(patch_call(latents, layout), latents.f32(), tokens.f32(), context_.stream());
  }
  void unpatchify(const Tensor& tokens, const PatchLayout& layout, Tensor& latents) override {
    CALIBATT_ASSERT(tokens.size() == latents.size());
    cuda::unpatchify(patch_call(latents, layout), tokens.f32(), latents.f32(), context_.stream());
  }

  void biased_attention(ConstHeadsView q, ConstHeadsView k, ConstHeadsView v, const Tensor& bias, int num_heads,
                        int head_dim, HeadsView out) override {
    CALIBATT_ASSERT(k.num_tokens == q.num_tokens && v.num_tokens == q.num_tokens && out.num_tokens == q.num_tokens);
    CALIBATT_ASSERT(bias.size() == num_heads * q.num_tokens * q.num_tokens);
    cuda::biased_attention(q, k, v, bias.f32(), num_heads, head_dim, out, context_.stream());
  }
  int attention_weight_slots(DType dtype, int head_dim, int64_t num_keys) const override {
    return few_keys_slots(dtype, head_dim, num_keys);
  }
  std::shared_ptr<const LinearLayer> project_values(const LinearLayer& output, ConstHeadsView values, int num_heads,
                                                    int head_dim) override;
  void attention_weights(const AttentionCall& call, Tensor& weights) override;
  CalibrationOps* calibration_ops() override { return this; }
  ClipOps& clip_ops() override { return *clip_ops_; }
  EightBitOps& eight_bit_ops() override {
    eight_bit_.require_device(device_name());
    return eight_bit_;
  }

 private:
  PatchCall patch_call(const Tensor& latents, const PatchLayout& layout);

  CublasLinear linear_{context_};
  CudaEightBitOps eight_bit_{context_, linear_};
  std::unique_ptr<ClipOps> clip_ops_;
  std::vector<int32_t> order_;  // the token order that is in device memory
  Tensor order_on_device_;
};

void CudaBackend::add_rms_norm(const Tensor& x, const Tensor& weight, float eps, Tensor& residual,
                               const FollowingNorm* following) {
  const AddRmsNormCall call =
      following == nullptr ? add_rms_norm_call(x, weight, eps, residual)
                           : add_rms_norm_call(x, weight, eps, residual, following->weight, RowsOut(following->out));
  cuda::add_rms_norm(call, context_.stream());
}

// Kernels that take a pending norm are those of Hopper in 8 bits.
bool CudaBackend::takes_norm() const {
  return current_device().compute_capability == 90;
}

std::string_view CudaBackend::attention(const AttentionCall& call) {
  if (call.norm == nullptr || norms_in_kernel(call)) return CudaAttention::attention(call);
  const QueryKeyNorm& norm = *call.norm;
  norm_and_rotate(norm.query, call.num_heads, call.head_dim, norm.query_weight, norm.eps, norm.rope);
  norm_and_rotate(norm.key, call.num_heads, call.head_dim, norm.key_weight, norm.eps, norm.rope);
  AttentionCall ready = call;
  ready.norm = nullptr;
  return CudaAttention::attention(ready);
}

void CudaBackend::norm_and_rotate(HeadsView x, int num_heads, int head_dim, const Tensor* weight, float eps,
                                  const RopeTable* rope) {
  CALIBATT_ASSERT((x.head_stride == head_dim || num_heads == 1) && head_dim % 2 == 0);
  if (weight == nullptr && rope == nullptr) return;
  RmsNormCall call;
  call.x = call.out = x.data;
  call.x_dtype = call.out_dtype = x.dtype;
  call.x_stride = call.out_stride = x.token_stride;
  call.rows = x.num_tokens;
  call.channels = int64_t{num_heads} * head_dim;
  call.weight = weight != nullptr ? weight->f32() : nullptr;
  call.eps = eps;
  CALIBATT_ASSERT(weight == nullptr || weight->size() == call.channels);
  if (rope != nullptr) {
    CALIBATT_ASSERT(rope->cos.size() == x.num_tokens * head_dim && rope->signed_sin.size() == rope->cos.size());
    call.cos = rope->cos.f32();
    call.signed_sin = rope->signed_sin.f32();
    call.head_dim = head_dim;
  }
  cuda::rms_norm(call, context_.stream());
}

void CudaBackend::norm_and_rotate_heads(HeadsView query, HeadsView key, int num_heads, int head_dim,
                                        const HeadNorms& norms, const RopeFactors* rope) {
  CALIBATT_ASSERT((query.head_stride == head_dim || num_heads == 1) && head_dim % 2 == 0);
  CALIBATT_ASSERT(query.dtype == key.dtype && query.num_tokens == key.num_tokens &&
                  query.token_stride == key.token_stride && query.head_stride == key.head_stride);
  CALIBATT_ASSERT(norms.query.size() == head_dim && norms.key.size() == head_dim);
  HeadNormCall call{{query.data, key.data}, {norms.query.f32(), norms.key.f32()}, query.dtype, query.token_stride};
  call.tokens = query.num_tokens;
  call.heads = num_heads;
  call.head_dim = head_dim;
  call.eps = norms.eps;
  if (rope != nullptr) {
    CALIBATT_ASSERT(rope->positions.size() == 3 * query.num_tokens &&
                    2 * rope->frequencies.size() == 3 * int64_t{num_heads} * head_dim);
    call.positions = rope->positions.f32();
    call.frequencies = rope->frequencies.f32();
  }
  norm_heads(call, context_.stream());
}

double CudaBackend::sum_of_squares(const Tensor& x) {
  const std::shared_ptr<void> partial_sums = context_.allocate_bytes(kSumParts * sizeof(double));
  cuda::sum_of_squares(x.f32(), x.size(), static_cast<double*>(partial_sums.get()), context_.stream());
  std::array<double, kSumParts> parts;
  context_.copy_to_host(parts.data(), partial_sums.get(), sizeof(parts));
  double sum = 0;
  for (const double part : parts) sum += part;
  return sum;
}

PatchCall CudaBackend::patch_call(const Tensor& latents, const PatchLayout& layout) {
  const std::span<const int32_t> order = layout.raster_of_position;
  const int64_t patch_volume = int64_t{layout.patch[0]} * layout.patch[1] * layout.patch[2];
  CALIBATT_ASSERT(latents.rank() == 4 &&
                  static_cast<int64_t>(order.size()) * patch_volume * latents.dim(0) == latents.size());
  // The order of a run is the same in all its forwards.
  if (!std::ranges::equal(order, order_)) {
    order_.assign(order.begin(), order.end());
    order_on_device_ =
        from_host(Tensor(DType::kI32, {static_cast<int64_t>(order_.size())}, {order_.data(), [](void*) {}}));
  }
  return {latents.dim(0), latents.dim(1), latents.dim(2),
          latents.dim(3), layout.patch,   order_on_device_.data<int32_t>()};
}

std::shared_ptr<const LinearLayer> CudaBackend::project_values(const LinearLayer& output, ConstHeadsView values,
                                                               int num_heads, int head_dim) {
  const int slots = few_keys_slots(values.dtype, head_dim, values.num_tokens);
  const int64_t out = output.out_features(), in = output.in_features();
  CALIBATT_ASSERT(slots > 0 && in == int64_t{num_heads} * head_dim);
  const Tensor projection = linear_.weight_of(output, values.dtype);
  Tensor weight = context_.allocate(values.dtype, {out, int64_t{num_heads} * slots});
  FewKeysCall call;
  call.rows = {projection.raw(), values.dtype, out, in, head_dim};
  call.keys = values;
  call.out = weight.raw();
  call.num_heads = num_heads;
  call.head_dim = head_dim;
  few_keys(call, context_.stream());
  return linear_.with_weight(output, std::move(weight));
}

void CudaBackend::attention_weights(const AttentionCall& call, Tensor& weights) {
  few_keys(attention_weights_call(call, RowsOut(weights)), context_.stream());
}

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(int device) {
  return make_cuda_backend(device, {});
}

std::unique_ptr<Backend> make_cuda_backend(int device, const ClipOptions& clip_options) {
  use_capable_device(device);
  return std::make_unique<CudaBackend>(clip_options);
}

void add_cuda_backend() {
  add_backend({"cuda", has_capable_device, make_cuda_backend});
}

}  // namespace calibatt::cuda
