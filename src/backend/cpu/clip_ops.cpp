#include "backend/cpu/clip_ops.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "backend/cpu/conv.h"
#include "backend/cpu/linear.h"
#include "backend/cpu/simd/clip_kernels.h"
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

class CpuClipOps : public ClipOps {
 public:
  bool supports(DType compute) const override {
    return compute == DType::kF32 || (compute == DType::kBF16 && has_native_bf16());
  }

  std::unique_ptr<Convolution> make_convolution(const ConvolutionSpec& spec, const Tensor& weight, const Tensor& bias,
                                                DType compute) override {
    return cpu::make_convolution(primitives_, spec, weight, bias, compute);
  }

  void rms_norm(const ClipView& in, std::span<const float> gamma, Activation activation, const ClipView& out) override {
    CALIBATT_ASSERT(same_size(in, out) && static_cast<int64_t>(gamma.size()) == in.channels);
    CALIBATT_ASSERT(activation == Activation::kNone || activation == Activation::kSiLU);
    parallel_for(in.height, rows_per_piece(in), [&](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; ++row) {
        rms_norm_pixels({in.at(row, 0), in.dtype}, {out.at(row, 0), out.dtype}, in.frames * in.width, gamma,
                        activation == Activation::kSiLU);
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

 private:
  std::shared_ptr<ConvolutionPrimitives> primitives_ = std::make_shared<ConvolutionPrimitives>();
};

}  // namespace

std::unique_ptr<ClipOps> make_clip_ops() {
  return std::make_unique<CpuClipOps>();
}

}  // namespace calibatt::cpu
