#include "backend/cuda/clip_ops.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>
#include <vector>

#include "backend/cpu/clip_ops.h"
#include "backend/cuda/device/device_ranks.h"
#include "backend/thread_ranks.h"
#include "base/dtype.h"
#include "base/error.h"

namespace calibatt::cuda {
namespace {

float get(const Tensor& tensor, int64_t i) {
  return tensor.dtype() == DType::kF32 ? tensor.data<float>()[i] : static_cast<float>(tensor.data<bfloat16>()[i]);
}

void set(Tensor& tensor, int64_t i, float value) {
  if (tensor.dtype() == DType::kF32) {
    tensor.data<float>()[i] = value;
  } else {
    tensor.data<bfloat16>()[i] = bfloat16(value);
  }
}

Tensor random_tensor(DType dtype, std::vector<int64_t> shape, uint32_t seed, float scale = 1) {
  Tensor tensor(dtype, std::move(shape));
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, scale);
  for (int64_t i = 0; i < tensor.size(); ++i) set(tensor, i, normal(generator));
  return tensor;
}

/// One clip in host memory and the same in the GPU's; rows may lie further apart than they are long.
struct TwinClip {
  Context& context;
  Tensor host, device;
  ClipView host_view, device_view;

  TwinClip(Context& context, DType dtype, int64_t height, int64_t frames, int64_t width, int64_t channels,
           uint32_t seed, int64_t gap = 0)
      : context(context), host(random_tensor(dtype, {height * (frames * width * channels + gap)}, seed)) {
    device = context.allocate(dtype, host.shape());
    host_view = {host.raw(), dtype, height, frames, width, channels, frames * width * channels + gap};
    device_view = host_view;
    device_view.data = device.raw();
    upload();
  }
  void upload() { context.copy_to_device(device.raw(), host.raw(), host.size_bytes()); }
  Tensor downloaded() const {
    Tensor result(host.dtype(), host.shape());
    context.copy_to_host(result.raw(), device.raw(), host.size_bytes());
    return result;
  }
  /// Largest |GPU − CPU| / (1 + |CPU|), gaps between rows included.
  double worst_difference() const {
    const Tensor found = downloaded();
    double worst = 0;
    for (int64_t i = 0; i < found.size(); ++i) {
      const double expected = get(host, i), difference = std::abs(get(found, i) - expected) / (1 + std::abs(expected));
      if (!(difference <= worst)) worst = difference;  // a NaN counts
    }
    return worst;
  }
};

class CudaClipOps : public testing::Test {
 protected:
  void SetUp() override {
    if (num_devices() == 0) GTEST_SKIP() << "no CUDA device";
    context = std::make_unique<Context>();
    gpu = make_clip_ops(*context);
  }
  Tensor to_device(const Tensor& host) {
    Tensor device = context->allocate(host.dtype(), host.shape());
    context->copy_to_device(device.raw(), host.raw(), host.size_bytes());
    return device;
  }

  void check_convolutions(ClipOps& ops, bool only_multiples_of_8);

  std::unique_ptr<Context> context;
  std::unique_ptr<ClipOps> cpu = cpu::make_clip_ops(), gpu;
};

struct ConvolutionCase {
  ConvolutionSpec spec;
  int64_t height, frames, width;  // of the input
};

std::vector<ConvolutionCase> convolution_cases() {
  constexpr std::array<int64_t, 3> k3 = {3, 3, 3}, k1 = {1, 1, 1}, k_space = {3, 1, 3}, k_time = {1, 3, 1};
  constexpr std::array<int64_t, 3> s1 = {1, 1, 1}, s_space = {2, 1, 2}, s_time = {1, 2, 1};
  return {
      {{96, 96, k3, s1, 1, 1}, 20, 6, 34},         {{96, 3, k3, s1, 1, 1}, 18, 6, 16},
      {{16, 384, k3, s1, 1, 1}, 11, 3, 13},        {{384, 384, k3, s1, 1, 1}, 9, 3, 10},
      {{384, 1152, k1, s1, 0, 0}, 9, 1, 16},       {{16, 16, k1, s1, 0, 0}, 9, 1, 16},
      {{384, 768, k_time, s1, 0, 0}, 9, 4, 10},    {{192, 192, k_time, s_time, 0, 0}, 9, 5, 8},
      {{384, 192, k_space, s1, 1, 1}, 8, 2, 9},    {{96, 96, k_space, s_space, 0, 1}, 9, 2, 8},
      {{12, 16, k3, s1, 1, 1}, 6, 3, 7},           {{3, 12, k3, s1, 1, 1}, 6, 3, 7},
      {{12, 12, k_space, s_space, 0, 1}, 7, 1, 6}, {{5, 7, k1, s1, 0, 0}, 3, 2, 5},
      {{12, 24, k_time, s1, 0, 0}, 4, 4, 6},
  };
}

void CudaClipOps::check_convolutions(ClipOps& ops, bool only_multiples_of_8) {
  for (const DType compute : {DType::kF32, DType::kBF16}) {
    for (const auto& [spec, height, frames, width] : convolution_cases()) {
      if (only_multiples_of_8 && (spec.in_channels % 8 != 0 || spec.out_channels % 8 != 0)) continue;
      const int64_t volume = spec.kernel[0] * spec.kernel[1] * spec.kernel[2];
      // The CPU computes in F32 from the same, rounded, numbers.
      const Tensor weight =
          random_tensor(compute, {spec.out_channels, spec.in_channels, spec.kernel[1], spec.kernel[0], spec.kernel[2]},
                        2, 1 / std::sqrt(static_cast<float>(spec.in_channels * volume)));
      const Tensor bias = random_tensor(DType::kF32, {spec.out_channels}, 3);
      const auto on_gpu = ops.make_convolution(spec, weight, bias, compute);
      const auto on_cpu = cpu->make_convolution(spec, converted(weight, DType::kF32), bias, DType::kF32);

      TwinClip in(*context, compute, height, frames, width, spec.in_channels, 1);
      const Tensor wide_in = converted(in.host, DType::kF32);
      ClipView wide_view = in.host_view;
      wide_view.data = const_cast<void*>(wide_in.raw());
      wide_view.dtype = DType::kF32;
      const int64_t height_out = (height - spec.kernel[0]) / spec.stride[0] + 1;
      const int64_t frames_out = (frames - spec.kernel[1]) / spec.stride[1] + 1;
      const int64_t width_out = (width + spec.pad_left + spec.pad_right - spec.kernel[2]) / spec.stride[2] + 1;
      for (const DType out_type : {DType::kF32, compute}) {
        TwinClip out(*context, out_type, height_out, frames_out, width_out, spec.out_channels, 4);
        TwinClip expected(*context, DType::kF32, height_out, frames_out, width_out, spec.out_channels, 5);
        on_cpu->run(wide_view, expected.host_view, false);
        on_cpu->run(wide_view, expected.host_view, true);  // twice the sum, biases too
        on_gpu->run(in.device_view, out.device_view, false);
        on_gpu->run(in.device_view, out.device_view, true);
        const Tensor found = out.downloaded();
        double worst = 0;
        for (int64_t i = 0; i < found.size(); ++i) {
          const double e = expected.host.f32()[i], difference = std::abs(get(found, i) - e) / (1 + std::abs(e));
          if (!(difference <= worst)) worst = difference;
        }
        // float32: up to 10,368 products, added in another order (seen: 2.03e-5). bfloat16: each of the two products
        // and each result is rounded to 8 bits, at most four times 2⁻⁹; and a sum may be small beside its parts.
        EXPECT_LT(worst, compute == DType::kF32 ? 4e-5 : 0.03)
            << spec.in_channels << "→" << spec.out_channels << " kernel " << spec.kernel[0] << "×" << spec.kernel[1]
            << "×" << spec.kernel[2] << " " << dtype_name(compute) << " to " << dtype_name(out_type);
      }
    }
  }
}

TEST_F(CudaClipOps, ConvolutionsAreThoseOfTheCpu) {
  check_convolutions(*gpu, false);
}

TEST_F(CudaClipOps, FusedAndTimedConvolutionsAreThoseOfTheCpu) {
  const auto fused = make_clip_ops(*context, {.fuse = true, .candidates = 2});
  check_convolutions(*fused, true);
  EXPECT_FALSE(convolution_report(*fused).empty());
}

TEST_F(CudaClipOps, BiasMayBeLeftToLater) {
  for (const DType compute : {DType::kF32, DType::kBF16}) {
    for (const int64_t channels : {12, 96}) {  // padded, and in place
      const ConvolutionSpec spec = {channels, channels, {3, 3, 3}, {1, 1, 1}, 1, 1};
      const float scale = 1 / std::sqrt(27.0f * static_cast<float>(channels));
      const Tensor weight = random_tensor(DType::kF32, {channels, channels, 3, 3, 3}, 1, scale);
      const Tensor bias = random_tensor(DType::kF32, {channels}, 2), device_bias = to_device(bias);
      const auto convolution = gpu->make_convolution(spec, weight, bias, compute);
      TwinClip in(*context, compute, 12, 4, 9, channels, 3);
      for (const bool accumulate : {false, true}) {
        TwinClip at_once(*context, compute, 10, 2, 9, channels, 4), later(*context, compute, 10, 2, 9, channels, 4);
        convolution->run(in.device_view, at_once.device_view, accumulate);
        convolution->run(in.device_view, later.device_view, accumulate, false);
        gpu->add_bias(device_bias, later.device_view);
        later.host = at_once.downloaded();
        EXPECT_LT(later.worst_difference(), compute == DType::kF32 ? 1e-5 : 0.02) << channels << " " << accumulate;
      }
    }
  }
}

TEST_F(CudaClipOps, ConvolutionsAreReported) {
  EXPECT_TRUE(convolution_report(*gpu).empty());
  EXPECT_TRUE(convolution_report(*cpu).empty());
  const Tensor weight = random_tensor(DType::kF32, {16, 16, 1, 1, 1}, 1), bias = random_tensor(DType::kF32, {16}, 2);
  TwinClip in(*context, DType::kBF16, 4, 1, 4, 16, 3), out(*context, DType::kBF16, 4, 1, 4, 16, 4);
  ConvolutionSpec spec;
  spec.in_channels = spec.out_channels = 16;
  gpu->make_convolution(spec, weight, bias, DType::kBF16)->run(in.device_view, out.device_view, false);
  EXPECT_THAT(convolution_report(*gpu), testing::ElementsAre(testing::HasSubstr("engine")));
}

TEST_F(CudaClipOps, RmsNormIsThatOfTheCpu) {
  for (const int64_t channels : {1, 7, 16, 24, 96, 192, 384, 768, 1032}) {
    const Tensor gamma = random_tensor(DType::kF32, {channels}, 5);
    const Tensor offset = random_tensor(DType::kF32, {channels}, 18);
    const Tensor device_gamma = to_device(gamma), device_offset = to_device(offset);
    for (const DType in_type : {DType::kF32, DType::kBF16}) {
      for (const DType out_type : {DType::kF32, DType::kBF16}) {
        for (const Activation activation : {Activation::kNone, Activation::kSiLU}) {
          TwinClip in(*context, in_type, 5, 3, 37, channels, 6, 8);
          TwinClip out(*context, out_type, 5, 3, 37, channels, 7, 16);
          for (int64_t c = 0; c < channels; ++c) set(in.host, 2 * in.host_view.row_stride + channels + c, 0);
          in.upload();
          const bool shifts = activation == Activation::kSiLU;
          cpu->rms_norm(in.host_view, shifts ? &offset : nullptr, gamma, activation, out.host_view);
          gpu->rms_norm(in.device_view, shifts ? &device_offset : nullptr, device_gamma, activation, out.device_view);
          EXPECT_LT(out.worst_difference(), out_type == DType::kF32 ? 4e-6 : 0.008)
              << channels << " channels, " << dtype_name(in_type) << " to " << dtype_name(out_type);
        }
      }
    }
  }
}

TEST_F(CudaClipOps, RmsNormKeepsNaNVisible) {
  TwinClip in(*context, DType::kF32, 1, 1, 4, 8, 1), out(*context, DType::kBF16, 1, 1, 4, 8, 2);
  in.host.f32()[8] = NAN;
  in.host.f32()[16] = INFINITY;
  std::fill_n(in.host.f32() + 24, 4, -1e4f);
  in.upload();
  gpu->rms_norm(in.device_view, nullptr, to_device(random_tensor(DType::kF32, {8}, 3, 1000)), Activation::kSiLU,
                out.device_view);
  const Tensor found = out.downloaded();
  EXPECT_TRUE(std::isnan(get(found, 8)));
  EXPECT_TRUE(std::isnan(get(found, 16)));
  for (int64_t i = 24; i < 32; ++i) EXPECT_TRUE(std::isfinite(get(found, i))) << i;
}

TEST_F(CudaClipOps, GroupNormIsThatOfTheCpu) {
  for (const int64_t channels : {32, 64, 96, 768, 2048}) {
    const Tensor gamma = random_tensor(DType::kF32, {channels}, 5), beta = random_tensor(DType::kF32, {channels}, 19);
    const Tensor offset = random_tensor(DType::kF32, {channels}, 18);
    const Tensor device_gamma = to_device(gamma), device_beta = to_device(beta), device_offset = to_device(offset);
    for (const DType in_type : {DType::kF32, DType::kBF16}) {
      for (const DType out_type : {DType::kF32, DType::kBF16}) {
        for (const int64_t border : {0, 1}) {
          const bool shifts = border > 0;
          const Activation activation = shifts ? Activation::kSiLU : Activation::kNone;
          TwinClip in(*context, in_type, 5, 3, 37, channels, 6, 8);
          TwinClip out(*context, out_type, 5 + 2 * border, 4, 37 + 2 * border, channels, 7, 16);
          cpu->group_norm(in.host_view, shifts ? &offset : nullptr, {gamma, beta, 32, 1e-5f}, activation,
                          out.host_view.frame_range(1, 3));
          gpu->group_norm(in.device_view, shifts ? &device_offset : nullptr, {device_gamma, device_beta, 32, 1e-5f},
                          activation, out.device_view.frame_range(1, 3));
          EXPECT_LT(out.worst_difference(), out_type == DType::kF32 ? 1e-5 : 0.008)
              << channels << " channels, " << dtype_name(in_type) << " to " << dtype_name(out_type);
        }
      }
    }
  }
}

TEST_F(CudaClipOps, GroupNormOfRowsThatRanksShareIsThatOfTheCpu) {
  constexpr int64_t kHeight = 7, kFrames = 3, kWidth = 37, kChannels = 96;
  const Tensor gamma = random_tensor(DType::kF32, {kChannels}, 5), beta = random_tensor(DType::kF32, {kChannels}, 19),
               offset = random_tensor(DType::kF32, {kChannels}, 18);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    TwinClip whole(*context, dtype, kHeight, kFrames, kWidth, kChannels, 6);
    TwinClip expected(*context, DType::kF32, kHeight, kFrames, kWidth, kChannels, 7);
    cpu->group_norm(whole.host_view, &offset, {gamma, beta, 32, 1e-5f}, Activation::kSiLU, expected.host_view);
    for (const int num_ranks : {1, 3}) {
      run_ranks(num_ranks, [&](Communicator& hosts) {
        use_device(hosts.rank() % num_devices());
        Context own_context;
        DeviceRanks ranks(hosts, own_context);
        const std::unique_ptr<ClipOps> ops = make_clip_ops(own_context);
        const auto uploaded = [&](const Tensor& host) {
          Tensor device = own_context.allocate(host.dtype(), host.shape());
          own_context.copy_to_device(device.raw(), host.raw(), host.size_bytes());
          return device;
        };
        const Tensor device_gamma = uploaded(gamma), device_beta = uploaded(beta), device_offset = uploaded(offset);
        const int64_t begin = kHeight * ranks.rank() / num_ranks;
        const int64_t count = kHeight * (ranks.rank() + 1) / num_ranks - begin, row = kFrames * kWidth * kChannels;
        TwinClip in(own_context, dtype, count, kFrames, kWidth, kChannels, 6);
        TwinClip out(own_context, DType::kF32, count, kFrames, kWidth, kChannels, 7);
        for (int64_t i = 0; i < count * row; ++i) {
          set(in.host, i, get(whole.host, begin * row + i));
          set(out.host, i, get(expected.host, begin * row + i));
        }
        in.upload();
        ops->group_norm(in.device_view, &device_offset, {device_gamma, device_beta, 32, 1e-5f, &ranks, kHeight},
                        Activation::kSiLU, out.device_view);
        EXPECT_LT(out.worst_difference(), 1e-5) << "rank " << ranks.rank() << " of " << num_ranks;
      });
    }
  }
}

TEST_F(CudaClipOps, GroupNormKeepsNaNVisibleInItsFrameAlone) {
  TwinClip in(*context, DType::kF32, 3, 2, 4, 32, 1), out(*context, DType::kBF16, 3, 2, 4, 32, 2);
  in.host.f32()[8] = INFINITY;
  in.upload();
  const Tensor ones = to_device(random_tensor(DType::kF32, {32}, 3));
  gpu->group_norm(in.device_view, nullptr, {ones, ones, 16, 1e-5f}, Activation::kSiLU, out.device_view);
  const Tensor found = out.downloaded();
  for (int64_t i = 0; i < found.size(); ++i) {
    const bool in_group = i / (4 * 32) % 2 == 0 && i % 32 / 2 == 4;
    EXPECT_EQ(std::isnan(get(found, i)), in_group) << i;
  }
}

TEST_F(CudaClipOps, SiluIsThatOfTheCpu) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int64_t channels : {32, 96}) {
      const Tensor offset = random_tensor(DType::kF32, {channels}, 18), device_offset = to_device(offset);
      TwinClip clip(*context, dtype, 5, 3, 37, channels, 6, 8);
      cpu->silu(&offset, clip.host_view.frame_range(1, 2));
      gpu->silu(&device_offset, clip.device_view.frame_range(1, 2));
      EXPECT_LT(clip.worst_difference(), dtype == DType::kF32 ? 4e-6 : 0.008) << channels;
      cpu->silu(nullptr, clip.host_view);
      gpu->silu(nullptr, clip.device_view);
      EXPECT_LT(clip.worst_difference(), dtype == DType::kF32 ? 4e-6 : 0.016) << channels;
    }
  }
}

TEST_F(CudaClipOps, DepthToSpaceIsThatOfTheCpu) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const auto& [time, space] : {std::pair{1, 2}, {2, 1}, {3, 2}}) {
      for (const int64_t channels : {32, 72}) {
        const Tensor offset = random_tensor(DType::kF32, {channels * time * space * space}, 18);
        const Tensor device_offset = to_device(offset);
        TwinClip in(*context, dtype, 5, 2, 7, channels * time * space * space, 8);
        TwinClip out(*context, dtype, 5 * space, 2 * time, 7 * space, channels, 9, 8);
        for (const bool shifts : {false, true}) {
          gpu->depth_to_space(in.device_view, shifts ? &device_offset : nullptr, time, space, out.device_view);
          cpu->depth_to_space(in.host_view, shifts ? &offset : nullptr, time, space, out.host_view);
          EXPECT_EQ(out.worst_difference(), 0) << channels << " " << time << " " << space;
        }
      }
    }
  }
}

TEST_F(CudaClipOps, ShortcutsAreThoseOfTheCpu) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int time : {1, 2}) {
      for (const int64_t channels : {12, 24}) {  // of the larger picture; half of them, and as many
        TwinClip small(*context, dtype, 5, 2, 7, 24, 8, 8), large(*context, dtype, 10, 2 * time, 14, channels, 9, 16);
        cpu->add_repeated(small.host_view, time, 2, 0, large.host_view);
        gpu->add_repeated(small.device_view, time, 2, 0, large.device_view);
        EXPECT_EQ(large.worst_difference(), 0) << time << " " << channels;
        const ClipView host = large.host_view.frame_range(0, 2 * time - 1),
                       device = large.device_view.frame_range(0, 2 * time - 1);
        if (time == 2) {
          cpu->add_repeated(small.host_view, 2, 2, 1, host);
          gpu->add_repeated(small.device_view, 2, 2, 1, device);
          EXPECT_EQ(large.worst_difference(), 0) << channels;
        }
        cpu->add_averaged(time == 2 ? host : large.host_view, time, 2, small.host_view);
        gpu->add_averaged(time == 2 ? device : large.device_view, time, 2, small.device_view);
        EXPECT_LT(small.worst_difference(), dtype == DType::kF32 ? 1e-6 : 0.004) << time << " " << channels;
      }
    }
  }
}

TEST_F(CudaClipOps, UpsampleIsThatOfTheCpu) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int time_factor : {1, 2}) {
      for (const int64_t channels : {6, 96}) {
        TwinClip in(*context, dtype, 5, 2, 7, channels * time_factor, 8);
        TwinClip out(*context, dtype, 10, 2 * time_factor, 14, channels, 9, 8);
        cpu->upsample(in.host_view, time_factor, out.host_view);
        gpu->upsample(in.device_view, time_factor, out.device_view);
        EXPECT_EQ(out.worst_difference(), 0) << channels << " " << time_factor;
      }
    }
  }
}

TEST_F(CudaClipOps, CopiesBetweenRangesRoundingToNearestEven) {
  for (const int64_t channels : {3, 16}) {
    for (const DType in_type : {DType::kF32, DType::kBF16}) {
      for (const DType out_type : {DType::kF32, DType::kBF16}) {
        TwinClip in(*context, in_type, 9, 3, 70, channels, 10), out(*context, out_type, 12, 6, 70, channels, 11, 8);
        cpu->copy(in.host_view.frame_range(1, 2), out.host_view.row_range(2, 9).frame_range(3, 2));
        gpu->copy(in.device_view.frame_range(1, 2), out.device_view.row_range(2, 9).frame_range(3, 2));
        EXPECT_EQ(out.worst_difference(), 0) << channels;
      }
    }
  }
}

TEST_F(CudaClipOps, ZeroClearsAndNothingElse) {
  TwinClip clip(*context, DType::kBF16, 12, 4, 33, 12, 12, 4);
  cpu->zero(clip.host_view.row_range(1, 10).frame_range(1, 2));
  gpu->zero(clip.device_view.row_range(1, 10).frame_range(1, 2));
  EXPECT_EQ(clip.worst_difference(), 0);
}

TEST_F(CudaClipOps, AttentionIsThatOfTheCpu) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int64_t width : {1, 13, 40}) {
      for (const int64_t channels : {12, 384}) {
        const int64_t first_row = width == 13 ? 4 : 0;  // of nine
        TwinClip qkv(*context, dtype, 9, 1, width, 3 * channels, 13);
        TwinClip out(*context, dtype, 9 - first_row, 1, width, channels, 14);
        cpu->attention(qkv.host_view, first_row, out.host_view);
        gpu->attention(qkv.device_view, first_row, out.device_view);
        // bfloat16: probabilities and results are rounded to 8 bits.
        EXPECT_LT(out.worst_difference(), dtype == DType::kF32 ? 1e-5 : 0.02) << width << " " << channels;
      }
    }
  }
}

TEST_F(CudaClipOps, AttentionInSeveralRangesIsThatInOne) {
  // 9,600 tokens need 369 MB of scores, two ranges; equal values show that no query was left out.
  TwinClip qkv(*context, DType::kBF16, 80, 1, 120, 3 * 16, 15), out(*context, DType::kBF16, 80, 1, 120, 16, 16);
  for (int64_t token = 0; token < 9600; ++token) {
    for (int64_t c = 0; c < 16; ++c) set(qkv.host, token * 48 + 32 + c, static_cast<float>(c));
  }
  qkv.upload();
  for (int64_t i = 0; i < out.host.size(); ++i) set(out.host, i, static_cast<float>(i % 16));
  gpu->attention(qkv.device_view, 0, out.device_view);
  EXPECT_LT(out.worst_difference(), 0.02);
}

TEST_F(CudaClipOps, RgbIsThatOfTheCpu) {
  for (const int patch : {1, 2}) {
    TwinClip patches(*context, DType::kF32, 6, 4, 10, 3 * patch * patch, 17);
    const auto size = static_cast<size_t>(patches.host.size());
    std::vector<uint8_t> expected(size), first(size), second(size);
    EXPECT_TRUE(cpu->start_rgb(patches.host_view, patch)->finish(expected.data()));
    const auto one = gpu->start_rgb(patches.device_view, patch), two = gpu->start_rgb(patches.device_view, patch);
    EXPECT_TRUE(one->finish(first.data()));
    EXPECT_TRUE(two->finish(second.data()));
    EXPECT_EQ(first, expected);
    EXPECT_EQ(second, expected);
    patches.host.f32()[37] = NAN;
    patches.upload();
    EXPECT_FALSE(gpu->start_rgb(patches.device_view, patch)->finish(first.data()));
  }
}

}  // namespace
}  // namespace calibatt::cuda
