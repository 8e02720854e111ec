#include "backend/cpu/eight_bit.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "backend/cpu/activated.h"
#include "backend/cpu/linear.h"
#include "backend/cpu/row_kernels.h"
#include "backend/cpu/scratch.h"
#include "base/eight_bits.h"
#include "base/error.h"
#include "base/thread_pool.h"

namespace calibatt::cpu {
namespace {

constexpr int64_t kRowGrain = 16;
/// Inputs are widened so many rows at a time: some megabytes beside a layer's output.
constexpr int64_t kWidenedRows = 1024;

/// Its weight as float32 after a round trip through 8 bits.
class EightBitLinear final : public LinearLayer {
 public:
  EightBitLinear(int64_t out, int64_t in, DType dtype, std::shared_ptr<const LinearLayer> wide)
      : out_(out), in_(in), dtype_(dtype), wide_(std::move(wide)) {}
  int64_t in_features() const override { return in_; }
  int64_t out_features() const override { return out_; }
  DType dtype() const override { return dtype_; }
  const LinearLayer& wide() const { return *wide_; }

 private:
  int64_t out_, in_;
  DType dtype_;
  std::shared_ptr<const LinearLayer> wide_;
};

/// fn(row, to): writes a row of `channels` floats, which becomes out's row in 8 bits.
template <class Fn>
void quantise_rows(EightBitRows& out, int64_t rows, int64_t channels, const Fn& fn) {
  CALIBATT_ASSERT(out.elements.size() == rows * channels && out.scales.size() == rows);
  float* scales = out.scales.f32();
  with_eight_bits(out.elements.dtype(), [&]<class Element>(Element) {
    auto* elements = out.elements.data<Element>();
    parallel_for(rows, kRowGrain, [&](int64_t begin, int64_t end, int) {
      float* row = thread_scratch_floats(Scratch::kLinearInput, channels);
      for (int64_t at = begin; at < end; ++at) {
        fn(at, row);
        scales[at] = quantise_row(row, elements + at * channels, channels);
      }
    });
  });
}

void activate_row(Activation activation, float* row, int64_t count) {
  if (activation == Activation::kNone) return;
  if (activation == Activation::kGeluTanh) return gelu_tanh(row, count);
  for (int64_t i = 0; i < count; ++i) row[i] = activated(activation, row[i]);
}

class CpuEightBitOps final : public EightBitOps {
 public:
  void layer_norm(const Tensor& x, const LayerNorm& norm, EightBitRows& out) override {
    const int64_t channels = x.dim(-1);
    CALIBATT_ASSERT((norm.scale == nullptr || norm.scale->size() == channels) &&
                    (norm.shift == nullptr || norm.shift->size() == channels));
    const LayerNormTerms terms{norm.scale ? norm.scale->f32() : nullptr, norm.shift ? norm.shift->f32() : nullptr,
                               norm.one_plus_scale, norm.eps};
    const float* from = x.f32();
    quantise_rows(out, x.size() / channels, channels,
                  [=](int64_t row, float* to) { layer_norm_row(from + row * channels, terms, to, channels); });
  }

  void rms_norm(const Tensor& x, const Tensor& weight, float eps, EightBitRows& out) override {
    const int64_t channels = x.dim(-1);
    CALIBATT_ASSERT(weight.size() == channels);
    const float *from = x.f32(), *factors = weight.f32();
    quantise_rows(out, x.size() / channels, channels,
                  [=](int64_t row, float* to) { rms_norm_row(from + row * channels, factors, eps, to, channels); });
  }

  void add_rms_norm(const Tensor& x, const Tensor& weight, float eps, Tensor& residual, const Tensor& following_weight,
                    EightBitRows& following) override {
    const int64_t channels = x.dim(-1);
    CALIBATT_ASSERT(residual.size() == x.size() && weight.size() == channels && following_weight.size() == channels);
    CALIBATT_ASSERT(x.dtype() == DType::kF32 || x.dtype() == DType::kBF16);
    const float *factors = weight.f32(), *next_factors = following_weight.f32();
    float* sums = residual.f32();
    quantise_rows(following, x.size() / channels, channels, [&, channels](int64_t row, float* to) {
      float* const sum = sums + row * channels;
      if (x.dtype() == DType::kF32) {
        add_rms_norm_row(x.f32() + row * channels, factors, eps, sum, channels);
      } else {
        add_rms_norm_row(x.data<bfloat16>() + row * channels, factors, eps, sum, channels);
      }
      rms_norm_row(sum, next_factors, eps, to, channels);
    });
  }

  void swiglu(const Tensor& x, EightBitRows& out) override {
    const int64_t channels = x.dim(-1) / 2;
    CALIBATT_ASSERT(x.dim(-1) == 2 * channels && (x.dtype() == DType::kF32 || x.dtype() == DType::kBF16));
    quantise_rows(out, x.size() / (2 * channels), channels, [&, channels](int64_t row, float* to) {
      if (x.dtype() == DType::kF32) {
        const float* const from = x.f32() + row * 2 * channels;
        return multiply_silu(from, from + channels, to, channels);
      }
      const bfloat16* const from = x.data<bfloat16>() + row * 2 * channels;
      float* const gate = thread_scratch_floats(Scratch::kLinearOutput, channels);
      widen(from, to, channels);
      widen(from + channels, gate, channels);
      multiply_silu(to, gate, to, channels);
    });
  }

  void quantise(const Tensor& x, Activation activation, EightBitRows& out) override {
    const int64_t channels = x.dim(-1);
    CALIBATT_ASSERT(x.dtype() == DType::kF32 || x.dtype() == DType::kBF16);
    quantise_rows(out, x.size() / channels, channels, [&](int64_t row, float* to) {
      if (x.dtype() == DType::kF32) {
        std::copy_n(x.f32() + row * channels, channels, to);
      } else {
        widen(x.data<bfloat16>() + row * channels, to, channels);
      }
      activate_row(activation, to, channels);
    });
  }

  void linear(const LinearLayer& layer, const EightBitRows& input, Tensor& out,
              const LinearEpilogue& epilogue) override {
    const auto& eight_bit = dynamic_cast<const EightBitLinear&>(layer);
    const int64_t in = layer.in_features(), rows = input.scales.size();
    CALIBATT_ASSERT(input.elements.dtype() == layer.dtype() && input.elements.size() == rows * in &&
                    out.size() == rows * layer.out_features());
    const float* scales = input.scales.f32();
    Tensor wide(DType::kF32, {std::min(rows, kWidenedRows), in});
    const int64_t out_row_bytes = layer.out_features() * static_cast<int64_t>(dtype_size(out.dtype()));
    for (int64_t begin = 0; begin < rows; begin += kWidenedRows) {
      const int64_t count = std::min(kWidenedRows, rows - begin);
      with_eight_bits(layer.dtype(), [&]<class Element>(Element) {
        const auto* elements = input.elements.data<Element>() + begin * in;
        parallel_for(count, kRowGrain, [&](int64_t first, int64_t last, int) {
          for (int64_t row = first; row < last; ++row) {
            dequantise_row(elements + row * in, scales[begin + row], wide.f32() + row * in, in);
          }
        });
      });
      Tensor part(out.dtype(), {count, layer.out_features()},
                  std::shared_ptr<void>(out.storage(), static_cast<char*>(out.raw()) + begin * out_row_bytes));
      cpu::linear(eight_bit.wide(), {DType::kF32, {count, in}, wide.storage()}, part, epilogue);
    }
  }
};

}  // namespace

std::shared_ptr<const LinearLayer> make_eight_bit_linear(const Tensor& weight, const Tensor& bias, DType dtype,
                                                         const std::shared_ptr<GatheredWeights>& gathered) {
  CALIBATT_ASSERT(weight.rank() == 2);
  const int64_t out = weight.dim(0), in = weight.dim(1);
  Tensor wide = converted(weight, DType::kF32).clone();
  with_eight_bits(dtype, [&]<class Element>(Element) {
    parallel_for(out, kRowGrain, [&](int64_t begin, int64_t end, int) {
      std::vector<Element> elements(static_cast<size_t>(in));
      for (int64_t row = begin; row < end; ++row) {
        float* values = wide.f32() + row * in;
        const float scale = quantise_row(values, elements.data(), in);
        dequantise_row(elements.data(), scale, values, in);
      }
    });
  });
  return std::make_shared<EightBitLinear>(out, in, dtype, make_linear(wide, bias, DType::kF32, gathered));
}

std::unique_ptr<EightBitOps> make_eight_bit_ops() {
  return std::make_unique<CpuEightBitOps>();
}

}  // namespace calibatt::cpu
