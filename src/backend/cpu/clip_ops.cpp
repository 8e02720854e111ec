#include "backend/cpu/clip_ops.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <span>
#include <vector>

#include "backend/cpu/attention/attention.h"
#include "backend/cpu/clip_kernels.h"
#include "backend/cpu/conv.h"
#include "backend/cpu/group_norm.h"
#include "backend/cpu/linear.h"
#include "base/ceil_div.h"
#include "base/error.h"
#include "base/thread_pool.h"

namespace calibatt::cpu {
namespace {

/// Pixel rows of all frames are handed out in pieces of about this many elements (some tens of microseconds).
constexpr int64_t kElementsPerPiece = 1 << 15;

int64_t rows_per_piece(const ClipView& view) {
  return std::max<int64_t>(1, kElementsPerPiece / std::max<int64_t>(1, view.frames * view.frame_stride()));
}

bool same_size(const ClipView& a, const ClipView& b) {
  return a.height == b.height && a.frames == b.frames && a.width == b.width && a.channels == b.channels;
}

/// Converts when it is asked for the bytes: there is nothing to wait for before.
class CpuRgb : public PendingRgb {
 public:
  CpuRgb(const ClipView& patches, int patch) : patches_(patches), patch_(patch) {
    CALIBATT_ASSERT(patches.dtype == DType::kF32 && patches.channels == 3 * patch * patch);
  }

  bool finish(uint8_t* rgb) override {
    std::atomic<bool> is_sound = true;
    const int64_t width = patches_.width * patch_, height = patches_.height * patch_;
    parallel_for(height, 4, [&](int64_t begin, int64_t end, int) {
      bool sound = true;
      for (int64_t y = begin; y < end; ++y) {
        for (int64_t frame = 0; frame < patches_.frames; ++frame) {
          const float* const from = static_cast<const float*>(patches_.at(y / patch_, frame));
          uint8_t* to = rgb + (frame * height + y) * width * 3;
          for (int64_t x = 0; x < width; ++x) {
            for (int color = 0; color < 3; ++color) {
              const int64_t channel = (color * patch_ + x % patch_) * patch_ + y % patch_;
              const float value = from[x / patch_ * patches_.channels + channel];
              sound &= value == value;
              const float grey = (std::clamp(value, -1.0f, 1.0f) * 0.5f + 0.5f) * 255.0f;
              *to++ = value == value ? static_cast<uint8_t>(std::nearbyint(grey)) : uint8_t{0};
            }
          }
        }
      }
      if (!sound) is_sound = false;
    });
    return is_sound;
  }

 private:
  ClipView patches_;
  int patch_;
};

class CpuClipOps : public ClipOps {
 public:
  bool supports(DType compute) const override {
    return compute == DType::kF32 || (compute == DType::kBF16 && has_native_bf16());
  }

  std::unique_ptr<Convolution> make_convolution(const ConvolutionSpec& spec, const Tensor& weight, const Tensor& bias,
                                                DType compute) override {
    return cpu::make_convolution(primitives_, spec, weight, bias, compute);
  }

  void rms_norm(const ClipView& in, const Tensor* offset, const Tensor& gamma, Activation activation,
                const ClipView& out) override {
    CALIBATT_ASSERT(same_size(in, out) && gamma.size() == in.channels);
    const std::span<const float> factors(gamma.f32(), static_cast<size_t>(in.channels));
    CALIBATT_ASSERT(activation == Activation::kNone || activation == Activation::kSiLU);
    CALIBATT_ASSERT(offset == nullptr || offset->size() == in.channels);
    parallel_for(in.height, rows_per_piece(in), [&](int64_t begin, int64_t end, int) {
      std::vector<float> shifted(offset != nullptr ? static_cast<size_t>(in.frames * in.frame_stride()) : 0);
      for (int64_t row = begin; row < end; ++row) {
        ConstElements from = {in.at(row, 0), in.dtype};
        if (offset != nullptr) {
          convert_elements(from, {shifted.data(), DType::kF32}, static_cast<int64_t>(shifted.size()));
          add_to_pixels(shifted, *offset);
          from = {shifted.data(), DType::kF32};
        }
        rms_norm_pixels(from, {out.at(row, 0), out.dtype}, in.frames * in.width, factors,
                        activation == Activation::kSiLU);
      }
    });
  }

  void group_norm(const ClipView& in, const Tensor* offset, const GroupNorm& norm, Activation activation,
                  const ClipView& out) override {
    CALIBATT_ASSERT(activation == Activation::kNone || activation == Activation::kSiLU);
    cpu::group_norm(in, offset, norm, activation == Activation::kSiLU, out);
  }

  void silu(const Tensor* offset, const ClipView& x) override {
    const std::vector<float> ones(static_cast<size_t>(x.channels), 1.0f), zeros(static_cast<size_t>(x.channels));
    CALIBATT_ASSERT(offset == nullptr || offset->size() == x.channels);
    const std::span<const float> shift(offset == nullptr ? zeros.data() : offset->f32(), zeros.size());
    parallel_for(x.height, rows_per_piece(x), [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        scale_shift_pixels({x.at(row, 0), x.dtype}, {x.at(row, 0), x.dtype}, x.frames * x.width, ones, shift, true);
      }
    });
  }

  void depth_to_space(const ClipView& in, const Tensor* offset, int time_factor, int space_factor,
                      const ClipView& out) override {
    const int64_t t = time_factor, s = space_factor;
    CALIBATT_ASSERT(out.height == s * in.height && out.width == s * in.width && out.frames == t * in.frames &&
                    in.channels == t * s * s * out.channels && in.dtype == out.dtype);
    CALIBATT_ASSERT(offset == nullptr || offset->size() == in.channels);
    if (offset != nullptr) add_bias(*offset, in);
    const size_t pixel_bytes = static_cast<size_t>(out.channels) * dtype_size(out.dtype);
    parallel_for(out.height, rows_per_piece(out), [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t frame = 0; frame < out.frames; ++frame) {
          const char* from = static_cast<const char*>(in.at(row / s, frame / t)) +
                             static_cast<size_t>((frame % t * s + row % s) * s) * pixel_bytes;
          char* to = static_cast<char*>(out.at(row, frame));
          for (int64_t column = 0; column < in.width; ++column) {
            std::memcpy(to, from, static_cast<size_t>(s) * pixel_bytes);
            to += static_cast<size_t>(s) * pixel_bytes;
            from += static_cast<size_t>(t * s * s) * pixel_bytes;
          }
        }
      }
    });
  }

  void upsample(const ClipView& in, int time_factor, const ClipView& out) override {
    CALIBATT_ASSERT(time_factor == 1 || time_factor == 2);
    CALIBATT_ASSERT(out.height == 2 * in.height && out.width == 2 * in.width && in.dtype == out.dtype &&
                    out.frames == time_factor * in.frames && in.channels == time_factor * out.channels);
    const size_t pixel_bytes = static_cast<size_t>(out.channels) * dtype_size(out.dtype);
    parallel_for(in.height, rows_per_piece(out), [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t frame = 0; frame < out.frames; ++frame) {
          const char* from = static_cast<const char*>(in.at(row, frame / time_factor)) +
                             static_cast<size_t>(frame % time_factor) * pixel_bytes;
          char* const upper = static_cast<char*>(out.at(2 * row, frame));
          char* to = upper;
          for (int64_t column = 0; column < in.width; ++column) {
            std::memcpy(to, from, pixel_bytes);
            std::memcpy(to + pixel_bytes, from, pixel_bytes);
            to += 2 * pixel_bytes;
            from += static_cast<size_t>(time_factor) * pixel_bytes;
          }
          std::memcpy(out.at(2 * row + 1, frame), upper, static_cast<size_t>(to - upper));
        }
      }
    });
  }

  void add_repeated(const ClipView& in, int time_factor, int space_factor, int64_t first_frame,
                    const ClipView& out) override {
    const int64_t t = time_factor, s = space_factor, repeats = out.channels * t * s * s / in.channels;
    CALIBATT_ASSERT(out.height == s * in.height && out.width == s * in.width &&
                    out.frames + first_frame == t * in.frames && in.channels * repeats == out.channels * t * s * s);
    for_rows_as_floats(out, [&](int64_t row, float* to) {
      std::vector<float> from(static_cast<size_t>(in.frames * in.frame_stride()));
      convert_elements({in.at(row / s, 0), in.dtype}, {from.data(), DType::kF32}, in.frames * in.frame_stride());
      for (int64_t frame = first_frame; frame < first_frame + out.frames; ++frame) {
        for (int64_t column = 0; column < out.width; ++column, to += out.channels) {
          const float* const pixel = from.data() + (frame / t * in.width + column / s) * in.channels;
          const int64_t n = (frame % t * s + row % s) * s + column % s;
          for (int64_t c = 0; c < out.channels; ++c) to[c] += pixel[(c * t * s * s + n) / repeats];
        }
      }
    });
  }

  void add_averaged(const ClipView& in, int time_factor, int space_factor, const ClipView& out) override {
    const int64_t t = time_factor, s = space_factor, size = in.channels * t * s * s / out.channels;
    CALIBATT_ASSERT(in.height == s * out.height && in.width == s * out.width && out.frames == ceil_div(in.frames, t) &&
                    out.channels * size == in.channels * t * s * s);
    const int64_t lacking = out.frames * t - in.frames, row_elements = in.frames * in.frame_stride();
    for_rows_as_floats(out, [&](int64_t row, float* to) {
      std::vector<float> from(static_cast<size_t>(s * row_elements));
      for (int64_t y = 0; y < s; ++y) {
        convert_elements({in.at(row * s + y, 0), in.dtype}, {from.data() + y * row_elements, DType::kF32},
                         row_elements);
      }
      for (int64_t frame = 0; frame < out.frames; ++frame) {
        for (int64_t column = 0; column < out.width; ++column) {
          for (int64_t c = 0; c < out.channels; ++c, ++to) {
            float sum = 0;
            for (int64_t n = c * size; n < (c + 1) * size; ++n) {
              const int64_t x = n % s, y = n / s % s, i = n / (s * s) % t, channel = n / (s * s * t);
              const int64_t at = frame * t + i - lacking;
              if (at >= 0) sum += from[y * row_elements + (at * in.width + column * s + x) * in.channels + channel];
            }
            *to += sum / static_cast<float>(size);
          }
        }
      }
    });
  }

  void copy(const ClipView& in, const ClipView& out) override {
    CALIBATT_ASSERT(same_size(in, out));
    const int64_t row_elements = in.frames * in.frame_stride();
    parallel_for(in.height, rows_per_piece(in), [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        convert_elements({in.at(row, 0), in.dtype}, {out.at(row, 0), out.dtype}, row_elements);
      }
    });
  }

  void zero(const ClipView& out) override {
    const size_t row_bytes = static_cast<size_t>(out.frames * out.frame_stride()) * dtype_size(out.dtype);
    parallel_for(out.height, rows_per_piece(out), [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) std::memset(out.at(row, 0), 0, row_bytes);
    });
  }

  void add_bias(const Tensor& bias, const ClipView& x) override {
    CALIBATT_ASSERT(bias.size() == x.channels && x.dense());
    for_rows_as_floats(x, [&](int64_t, float* row) { add_to_pixels({row, static_cast<size_t>(x.row_stride)}, bias); });
  }

  void attention(const ClipView& qkv, int64_t first_row, const ClipView& out) override {
    CALIBATT_ASSERT(qkv.frames == 1 && out.frames == 1 && qkv.dense() && out.dense() && qkv.dtype == out.dtype);
    CALIBATT_ASSERT(qkv.width == out.width && qkv.channels == 3 * out.channels);
    CALIBATT_ASSERT(first_row >= 0 && first_row + out.height <= qkv.height);
    const int64_t channels = out.channels;
    const auto part = [&](const ClipView& rows, int64_t index) {
      const size_t offset = static_cast<size_t>(index * channels) * dtype_size(qkv.dtype);
      return ConstHeadsView{static_cast<const char*>(rows.data) + offset, rows.dtype, rows.height * rows.width,
                            3 * channels, channels};
    };
    AttentionCall call;
    call.q = part(qkv.row_range(first_row, out.height), 0);
    call.k = part(qkv, 1);
    call.v = part(qkv, 2);
    call.out = {out.data, out.dtype, call.q.num_tokens, channels, channels};
    call.head_dim = static_cast<int>(channels);
    call.scale = 1.0f / std::sqrt(static_cast<float>(channels));
    cpu::attention(call);
  }

  std::unique_ptr<PendingRgb> start_rgb(const ClipView& patches, int patch) override {
    return std::make_unique<CpuRgb>(patches, patch);
  }

 private:
  /// Calls body(row, values) with every row's values, which it may change.
  template <class Body>
  static void for_rows_as_floats(const ClipView& x, const Body& body) {
    const int64_t elements = x.frames * x.frame_stride();
    parallel_for(x.height, rows_per_piece(x), [&](int64_t begin, int64_t end, int) {
      std::vector<float> values(static_cast<size_t>(elements));
      for (int64_t row = begin; row < end; ++row) {
        convert_elements({x.at(row, 0), x.dtype}, {values.data(), DType::kF32}, elements);
        body(row, values.data());
        convert_elements({values.data(), DType::kF32}, {x.at(row, 0), x.dtype}, elements);
      }
    });
  }

  static void add_to_pixels(std::span<float> pixels, const Tensor& bias) {
    const float* const b = bias.f32();
    const auto channels = static_cast<size_t>(bias.size());
    for (size_t i = 0; i < pixels.size(); i += channels) {
      for (size_t c = 0; c < channels; ++c) pixels[i + c] += b[c];
    }
  }

  std::shared_ptr<ConvolutionPrimitives> primitives_ = std::make_shared<ConvolutionPrimitives>();
};

}  // namespace

std::unique_ptr<ClipOps> make_clip_ops() {
  return std::make_unique<CpuClipOps>();
}

}  // namespace calibatt::cpu
