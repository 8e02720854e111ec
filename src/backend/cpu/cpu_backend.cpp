#include "backend/cpu/cpu_backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "backend/cpu/activated.h"
#include "backend/cpu/attention/cpu_attention.h"
#include "backend/cpu/biased_attention.h"
#include "backend/cpu/clip_ops.h"
#include "backend/cpu/eight_bit.h"
#include "backend/cpu/gathered_weights.h"
#include "backend/cpu/linear.h"
#include "backend/cpu/patches.h"
#include "backend/cpu/row_kernels.h"
#include "base/thread_pool.h"

namespace calibatt::cpu {
namespace {

/// Rows per chunk of a memory-bound pass: about 64 KiB of float32, so that handing it out costs nothing beside it.
int64_t row_grain(int64_t channels) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, channels));
}
constexpr int64_t kElementGrain = 16384;

/// fn(pointer) with the tensor's data as float* or bfloat16*.
template <class Fn>
void with_data(const Tensor& tensor, const Fn& fn) {
  CALIBATT_ASSERT(tensor.dtype() == DType::kF32 || tensor.dtype() == DType::kBF16);
  if (tensor.dtype() == DType::kF32) {
    fn(tensor.data<float>());
  } else {
    fn(tensor.data<bfloat16>());
  }
}
template <class Fn>
void with_data(Tensor& tensor, const Fn& fn) {
  CALIBATT_ASSERT(tensor.dtype() == DType::kF32 || tensor.dtype() == DType::kBF16);
  if (tensor.dtype() == DType::kF32) {
    fn(tensor.data<float>());
  } else {
    fn(tensor.data<bfloat16>());
  }
}

/// fn(pointer, begin, end) for ranges of tokens, each by one thread; the pointer is float* or bfloat16*.
template <class Fn>
void for_token_ranges(const HeadsView& x, int num_heads, const Fn& fn) {
  const auto run = [&](auto* data) {
    parallel_for(x.num_tokens, row_grain(x.head_stride * num_heads),
                 [&](int64_t begin, int64_t end, int) { fn(data, begin, end); });
  };
  if (x.dtype == DType::kF32) {
    run(static_cast<float*>(x.data));
  } else {
    run(static_cast<bfloat16*>(x.data));
  }
}

bool alike(const HeadsView& a, const HeadsView& b) {
  return a.dtype == b.dtype && a.num_tokens == b.num_tokens && a.token_stride == b.token_stride &&
         a.head_stride == b.head_stride;
}

/// One token's rotations from RopeFactors, in the form of RopeTable.
void rotation_of(const float* position, const float* frequencies, int64_t pairs, float* cos, float* signed_sin) {
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const float* frequency = frequencies + pair;
    const float angle =
        position[0] * frequency[0] + position[1] * frequency[pairs] + position[2] * frequency[2 * pairs];
    cos[2 * pair] = cos[2 * pair + 1] = std::cos(angle);
    signed_sin[2 * pair + 1] = std::sin(angle);
    signed_sin[2 * pair] = -signed_sin[2 * pair + 1];
  }
}

class CpuBackend final : public Backend, public CpuAttention {
 public:
  bool has_fast_bf16() const override { return attention_kernel(DType::kBF16, 64, false) == "avx512_bf16"; }

  std::shared_ptr<const LinearLayer> make_linear(const Tensor& weight, const Tensor& bias,
                                                 const LinearFormat& format) override {
    require_known_format(format, name());
    return make_layer(weight, bias, format, nullptr);
  }
  std::shared_ptr<const LinearLayer> load_linear(const StoredLinear& stored) override {
    require_known_format(stored.format, name());
    const auto gathered = std::dynamic_pointer_cast<GatheredWeights>(stored.streamed);
    CALIBATT_ASSERT((gathered != nullptr) == (stored.streamed != nullptr));
    return make_layer(weight_from(stored), bias_from(stored), stored.format, gathered);
  }
  std::shared_ptr<StreamedWeights> make_sharded_weights(ShardedBlock block) override {
    return std::make_shared<GatheredWeights>(gather_ring_, std::move(block), next_gathered_++);
  }
  void linear(const LinearLayer& layer, const Tensor& input, Tensor& out, const LinearEpilogue& epilogue) override {
    cpu::linear(layer, input, out, epilogue);
  }
  Tensor weight_of(const LinearLayer&, const Tensor& stored) override { return stored; }

  void layer_norm(const Tensor& x, const Tensor* scale, const Tensor* shift, bool one_plus_scale, float eps,
                  Tensor& out) override {
    const int64_t channels = x.dim(-1), rows = x.size() / channels;
    CALIBATT_ASSERT(out.size() == x.size() && (scale == nullptr || scale->size() == channels) &&
                    (shift == nullptr || shift->size() == channels));
    const LayerNormTerms terms{scale ? scale->f32() : nullptr, shift ? shift->f32() : nullptr, one_plus_scale, eps};
    const float* in = x.f32();
    with_data(out, [&](auto* to) {
      parallel_for(rows, row_grain(channels), [=](int64_t begin, int64_t end, int) {
        for (int64_t row = begin; row < end; ++row) {
          layer_norm_row(in + row * channels, terms, to + row * channels, channels);
        }
      });
    });
  }

  void rms_norm(const Tensor& x, const Tensor& weight, float eps, Tensor& out) override {
    const int64_t channels = x.dim(-1), rows = x.size() / channels;
    CALIBATT_ASSERT(out.size() == x.size() && weight.size() == channels);
    CALIBATT_ASSERT(x.dtype() == DType::kF32 || out.dtype() == DType::kBF16);
    const float* factors = weight.f32();
    const auto run = [&](auto* from, auto* to) {
      parallel_for(rows, row_grain(channels), [=](int64_t begin, int64_t end, int) {
        for (int64_t row = begin; row < end; ++row) {
          rms_norm_row(from + row * channels, factors, eps, to + row * channels, channels);
        }
      });
    };
    if (x.dtype() == DType::kBF16) {
      run(x.data<bfloat16>(), out.data<bfloat16>());
    } else {
      with_data(out, [&](auto* to) { run(x.f32(), to); });
    }
  }

  void add_rms_norm(const Tensor& x, const Tensor& weight, float eps, Tensor& residual,
                    const FollowingNorm* following) override {
    const int64_t channels = x.dim(-1), rows = x.size() / channels;
    CALIBATT_ASSERT(residual.size() == x.size() && weight.size() == channels);
    CALIBATT_ASSERT(following == nullptr || (following->out.size() == x.size() && following->out.dtype() == x.dtype() &&
                                             following->weight.size() == channels));
    const float* factors = weight.f32();
    const float* next_factors = following ? following->weight.f32() : nullptr;
    float* to = residual.f32();
    with_data(x, [&](const auto* from) {
      using Element = std::remove_cvref_t<decltype(*from)>;
      Element* next = following ? following->out.data<Element>() : nullptr;
      parallel_for(rows, row_grain(channels), [=](int64_t begin, int64_t end, int) {
        for (int64_t at = begin * channels; at < end * channels; at += channels) {
          add_rms_norm_row(from + at, factors, eps, to + at, channels);
          if (next != nullptr) rms_norm_row(to + at, next_factors, eps, next + at, channels);
        }
      });
    });
  }

  void norm_and_rotate(HeadsView x, int num_heads, int head_dim, const Tensor* weight, float eps,
                       const RopeTable* rope) override {
    CALIBATT_ASSERT(x.head_stride == head_dim && head_dim % 2 == 0);
    CALIBATT_ASSERT(weight == nullptr || weight->size() == int64_t{num_heads} * head_dim);
    CALIBATT_ASSERT(rope == nullptr ||
                    (rope->cos.size() == x.num_tokens * head_dim && rope->signed_sin.size() == rope->cos.size()));
    const float* factors = weight ? weight->f32() : nullptr;
    const float* cos = rope ? rope->cos.f32() : nullptr;
    const float* signed_sin = rope ? rope->signed_sin.f32() : nullptr;
    for_token_ranges(x, num_heads, [=](auto* data, int64_t begin, int64_t end) {
      for (int64_t token = begin; token < end; ++token) {
        const int64_t angle = token * head_dim;
        norm_and_rotate_row(data + token * x.token_stride, factors, eps, cos ? cos + angle : nullptr,
                            signed_sin ? signed_sin + angle : nullptr, num_heads, head_dim);
      }
    });
  }

  void norm_and_rotate_heads(HeadsView query, HeadsView key, int num_heads, int head_dim, const HeadNorms& norms,
                             const RopeFactors* rope) override {
    const int64_t width = int64_t{num_heads} * head_dim;
    CALIBATT_ASSERT(query.head_stride == head_dim && head_dim % 2 == 0 && alike(query, key));
    CALIBATT_ASSERT(norms.query.size() == head_dim && norms.key.size() == head_dim);
    CALIBATT_ASSERT(rope == nullptr ||
                    (rope->positions.size() == 3 * query.num_tokens && rope->frequencies.size() == 3 * width / 2));
    const float *query_norm = norms.query.f32(), *key_norm = norms.key.f32(), eps = norms.eps;
    const float* positions = rope ? rope->positions.f32() : nullptr;
    const float* frequencies = rope ? rope->frequencies.f32() : nullptr;
    for_token_ranges(query, num_heads, [=](auto* queries, int64_t begin, int64_t end) {
      auto* keys = static_cast<decltype(queries)>(key.data);
      std::vector<float> cos(static_cast<size_t>(positions ? width : 0)), signed_sin(cos.size());
      for (int64_t token = begin; token < end; ++token) {
        if (positions) rotation_of(positions + 3 * token, frequencies, width / 2, cos.data(), signed_sin.data());
        for (int64_t head = 0; head < width; head += head_dim) {
          const int64_t at = token * query.token_stride + head;
          const float* head_cos = positions ? cos.data() + head : nullptr;
          const float* head_sin = positions ? signed_sin.data() + head : nullptr;
          norm_and_rotate_row(queries + at, query_norm, eps, head_cos, head_sin, 1, head_dim);
          norm_and_rotate_row(keys + at, key_norm, eps, head_cos, head_sin, 1, head_dim);
        }
      }
    });
  }

  void activate(Activation activation, const Tensor& x, Tensor& out) override {
    CALIBATT_ASSERT(x.size() == out.size() && x.dtype() == out.dtype());
    with_data(x, [&](const auto* from) {
      using Element = std::remove_cvref_t<decltype(*from)>;
      Element* to = out.data<Element>();
      parallel_for(x.size(), kElementGrain, [=](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) to[i] = Element(activated(activation, static_cast<float>(from[i])));
      });
    });
  }

  void multiply(const Tensor& a, const Tensor& b, Tensor& out) override {
    CALIBATT_ASSERT(a.size() == b.size() && a.size() == out.size() && a.dtype() == b.dtype() &&
                    a.dtype() == out.dtype());
    with_data(a, [&](const auto* first) {
      using Element = std::remove_cvref_t<decltype(*first)>;
      const Element* second = b.data<Element>();
      Element* to = out.data<Element>();
      parallel_for(a.size(), kElementGrain, [=](int64_t begin, int64_t end, int) {
        cpu::multiply(first + begin, second + begin, to + begin, end - begin);
      });
    });
  }

  void swiglu(const Tensor& x, Tensor& out) override {
    const int64_t channels = out.dim(-1), rows = out.size() / channels;
    CALIBATT_ASSERT(x.size() == 2 * out.size() && x.dim(-1) == 2 * channels && x.dtype() == out.dtype());
    with_data(x, [&](const auto* from) {
      using Element = std::remove_cvref_t<decltype(*from)>;
      Element* to = out.data<Element>();
      parallel_for(rows, row_grain(channels), [=](int64_t begin, int64_t end, int) {
        for (int64_t row = begin; row < end; ++row) {
          const Element* first = from + row * 2 * channels;
          multiply_silu(first, first + channels, to + row * channels, channels);
        }
      });
    });
  }

  void add(const Tensor& a, const Tensor& b, Tensor& out) override {
    const int64_t period = b.size();
    CALIBATT_ASSERT(a.size() == out.size() && period > 0 && a.size() % period == 0);
    parallel_for(a.size() / period, row_grain(period), [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        cpu::add(a.f32() + row * period, b.f32(), out.f32() + row * period, period);
      }
    });
  }

  void convert(const Tensor& x, Tensor& out) override {
    CALIBATT_ASSERT(x.size() == out.size());
    parallel_for(x.size(), kElementGrain, [&](int64_t begin, int64_t end, int) {
      const int64_t count = end - begin;
      if (x.dtype() == out.dtype()) {
        const size_t element = dtype_size(x.dtype());
        std::memcpy(static_cast<char*>(out.raw()) + begin * element,
                    static_cast<const char*>(x.raw()) + begin * element, count * element);
      } else if (x.dtype() == DType::kF32) {
        narrow(x.f32() + begin, out.data<bfloat16>() + begin, count);
      } else {
        widen(x.data<bfloat16>() + begin, out.f32() + begin, count);
      }
    });
  }

  double sum_of_squares(const Tensor& x) override {
    const int64_t size = x.size(), chunks = (size + kElementGrain - 1) / kElementGrain;
    std::vector<double> partial(static_cast<size_t>(chunks));  // summed in order: the same for any number of threads
    parallel_for(chunks, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t first = chunk * kElementGrain;
        partial[chunk] = cpu::sum_of_squares(x.f32() + first, std::min(kElementGrain, size - first));
      }
    });
    double sum = 0;
    for (const double part : partial) sum += part;
    return sum;
  }

  void patchify(const Tensor& latents, const PatchLayout& layout, Tensor& tokens) override {
    cpu::patchify(latents, layout, tokens);
  }
  void unpatchify(const Tensor& tokens, const PatchLayout& layout, Tensor& latents) override {
    cpu::unpatchify(tokens, layout, latents);
  }

  void biased_attention(ConstHeadsView q, ConstHeadsView k, ConstHeadsView v, const Tensor& bias, int num_heads,
                        int head_dim, HeadsView out) override {
    cpu::biased_attention(q, k, v, bias, num_heads, head_dim, out);
  }

  CalibrationOps* calibration_ops() override { return this; }
  ClipOps& clip_ops() override { return *clip_ops_; }
  EightBitOps& eight_bit_ops() override { return *eight_bit_ops_; }

 private:
  static std::shared_ptr<const LinearLayer> make_layer(const Tensor& weight, const Tensor& bias,
                                                       const LinearFormat& format,
                                                       const std::shared_ptr<GatheredWeights>& gathered) {
    if (format.is_eight_bits()) return make_eight_bit_linear(weight, bias, format.dtype, gathered);
    return cpu::make_linear(weight, bias, format.dtype, gathered);
  }

  std::unique_ptr<ClipOps> clip_ops_ = make_clip_ops();
  std::unique_ptr<EightBitOps> eight_bit_ops_ = make_eight_bit_ops();
  GatherRing gather_ring_;
  int64_t next_gathered_ = 0;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend() {
  return std::make_unique<CpuBackend>();
}

}  // namespace calibatt::cpu
