#include "backend/cpu/cpu_backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "backend/cpu/make_backend.h"
#include "base/random.h"

namespace calibatt::cpu {
namespace {

TEST(MakeBackend, NamesThoseThereAre) {
  EXPECT_EQ(make_backend("cpu")->name(), "cpu");
  try {
    make_backend("abacus");
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr("abacus"), testing::HasSubstr("cpu")));
  }
  EXPECT_EQ(make_backend("auto")->name(), "cpu");
  try {
    make_backend("auto", 1, "--gpus 2");
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    EXPECT_THAT(error.what(),
                testing::AllOf(testing::StartsWith("--gpus 2: there is no GPU 1: "), testing::HasSubstr("has none")));
  }
  struct Choice {
    static bool usable() { return false; }  // "auto" passes over it
    static std::unique_ptr<Backend> make(int device) {
      throw Error(device == 1 ? ErrorKind::kUsage : ErrorKind::kDevice, "there is none");
    }
  };
  add_backend({"none", Choice::usable, Choice::make});
  for (const int device : {0, 1}) {
    try {
      make_backend("none", device, "--device 1");
      FAIL() << "no error";
    } catch (const Error& error) {
      EXPECT_STREQ(error.what(), device == 1 ? "--device 1: there is none" : "there is none");
    }
  }
  try {
    make_backend("cpu", 1);  // asked for by name: there may be GPUs
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr("cpu has no device 1"), testing::HasSubstr("0,0"),
                                             testing::Not(testing::HasSubstr("has none"))));
  }
  try {
    make_backend("cuda");  // no floor that links it has added it here
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("cmake --preset cuda"));
  }
}

TEST(MakeBackend, TakesWhatIsAddedAndAutoTakesWhatIsUsable) {
  static bool present = false;
  static int device_asked = -1;
  const auto make = [](int device) -> std::unique_ptr<Backend> {
    device_asked = device;
    return make_cpu_backend();
  };
  add_backend({"abacus2", [] { return present; }, make});
  add_backend({"abacus2", [] { return true; }, make});  // the first of a name counts
  make_backend("auto");
  EXPECT_EQ(device_asked, -1);
  make_backend("abacus2", 3);  // whether usable is its own affair
  EXPECT_EQ(device_asked, 3);
  present = true;
  make_backend("auto", 2);
  EXPECT_EQ(device_asked, 2);
  present = false;
  EXPECT_EQ(make_backend("auto")->name(), "cpu");
  try {
    make_backend("abacus3");
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("cpu, abacus2"));
  }
}

TEST(CpuBackend, PatchifyOrdersARowAsAConvolutionKernel) {
  const auto backend = make_cpu_backend();
  // 2 channels, 2 frames of 4 × 6; every cell holds its own index.
  Tensor latents(DType::kF32, {2, 2, 4, 6});
  std::iota(latents.f32(), latents.f32() + latents.size(), 0.0f);
  std::vector<int32_t> order(2 * 2 * 3);
  std::iota(order.rbegin(), order.rend(), 0);  // tokens backwards
  const PatchLayout layout{{1, 2, 2}, order};
  Tensor tokens(DType::kF32, {12, 8});
  backend->patchify(latents, layout, tokens);
  // The last position is raster token 0: frame 0, rows 0–1, columns 0–1, channel by channel.
  const std::vector<float> last(tokens.f32() + 11 * 8, tokens.f32() + 12 * 8);
  EXPECT_THAT(last, testing::ElementsAre(0, 1, 6, 7, 48, 49, 54, 55));
  // The first is frame 1, rows 2–3, columns 4–5.
  const std::vector<float> first(tokens.f32(), tokens.f32() + 8);
  EXPECT_THAT(first, testing::ElementsAre(40, 41, 46, 47, 88, 89, 94, 95));
}

TEST(CpuBackend, UnpatchifyTakesChannelsLast) {
  const auto backend = make_cpu_backend();
  const std::vector<int32_t> order{1, 0};
  const PatchLayout layout{{2, 1, 3}, order};
  Tensor tokens(DType::kF32, {2, 12});  // (frame, row, column, channel) = (2, 1, 3, 2)
  std::iota(tokens.f32(), tokens.f32() + tokens.size(), 0.0f);
  Tensor latents(DType::kF32, {2, 2, 2, 3});
  backend->unpatchify(tokens, layout, latents);
  const std::vector<float> values(latents.f32(), latents.f32() + latents.size());
  EXPECT_THAT(values, testing::ElementsAre(12, 14, 16, 0, 2, 4, 18, 20, 22, 6, 8, 10,  // channel 0
                                           13, 15, 17, 1, 3, 5, 19, 21, 23, 7, 9, 11));
}

TEST(CpuBackend, AddRepeatsAShorterOperand) {
  const auto backend = make_cpu_backend();
  Tensor a(DType::kF32, {3, 20}), b(DType::kF32, {20});
  std::iota(a.f32(), a.f32() + 60, 0.0f);
  std::iota(b.f32(), b.f32() + 20, 100.0f);
  Tensor out(DType::kF32, {3, 20});
  backend->add(a, b, out);
  for (int i = 0; i < 60; ++i) EXPECT_EQ(out.f32()[i], static_cast<float>(i + 100 + i % 20));
}

TEST(CpuBackend, SumOfSquaresOfMillionsKeepsItsPrecision) {
  const auto backend = make_cpu_backend();
  Tensor x(DType::kF32, {3'000'001});
  std::fill_n(x.f32(), x.size(), 0.1f);
  const double expected = 3'000'001 * (double{0.1f} * 0.1f);
  EXPECT_NEAR(backend->sum_of_squares(x), expected, 1e-6 * expected);
}

TEST(CpuBackend, ActivateAndConvert) {
  const auto backend = make_cpu_backend();
  Tensor x(DType::kF32, {3});
  x.f32()[0] = -2, x.f32()[1] = 0, x.f32()[2] = 3;
  Tensor out(DType::kF32, {3});
  backend->activate(Activation::kSiLU, x, out);
  EXPECT_NEAR(out.f32()[0], -0.2384058, 1e-6);
  EXPECT_EQ(out.f32()[1], 0);
  EXPECT_NEAR(out.f32()[2], 2.8577224, 1e-6);
  Tensor half(DType::kBF16, {3}), gelu(DType::kBF16, {3});
  backend->convert(x, half);
  backend->activate(Activation::kGeluTanh, half, gelu);
  EXPECT_NEAR(static_cast<float>(gelu.data<bfloat16>()[0]), -0.0454023, 2e-4);
  EXPECT_NEAR(static_cast<float>(gelu.data<bfloat16>()[2]), 2.9963627, 1e-2);
}

TEST(CpuBackend, SwiGluIsTheObviousProduct) {
  const auto backend = make_cpu_backend();
  for (const int64_t channels : {1, 7, 64, 131}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const Tensor x = converted(TorchGenerator(7).randn({3, 2 * channels}), dtype), exact = converted(x, DType::kF32);
      Tensor out(dtype, {3, channels});
      backend->swiglu(x, out);
      const Tensor result = converted(out, DType::kF32);
      for (int64_t row = 0; row < 3; ++row) {
        for (int64_t c = 0; c < channels; ++c) {
          const double gate = exact.f32()[row * 2 * channels + channels + c];
          const double expected = exact.f32()[row * 2 * channels + c] * gate / (1 + std::exp(-gate));
          const double tolerance = dtype == DType::kF32 ? 1e-6 : std::ldexp(1.0, -8);
          EXPECT_NEAR(result.f32()[row * channels + c], expected, tolerance * (1e-3 + std::abs(expected)));
        }
      }
    }
  }
}

// Where exp(−gate) is beyond a float.
TEST(CpuBackend, SwiGluOfGatesFarBelowZeroIsZero) {
  const auto backend = make_cpu_backend();
  const std::vector<float> gates = {-87.5f, -88.8f, -103.9f, -104.5f, -105,   -110,  -150,
                                    -200,   -1000,  -1e6f,   -1e30f,  -3e38f, 88.8f, 200};
  const auto channels = static_cast<int64_t>(gates.size());
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    Tensor exact(DType::kF32, {1, 2 * channels});
    for (int64_t c = 0; c < channels; ++c) {
      exact.f32()[c] = 2;
      exact.f32()[channels + c] = gates[static_cast<size_t>(c)];
    }
    const Tensor x = converted(exact, dtype);
    Tensor out(dtype, {1, channels});
    backend->swiglu(x, out);
    const Tensor result = converted(out, DType::kF32), gate = converted(x, DType::kF32);
    for (int64_t c = 0; c < channels; ++c) {
      const double g = gate.f32()[channels + c], expected = g > 0 ? 2 * g : 2 * g * std::exp(g);
      EXPECT_NEAR(result.f32()[c], expected, 1e-6 * std::abs(g > 0 ? expected : 0) + 1e-36) << g;
    }
  }
}

TEST(CpuBackend, AddsARowsNorm) {
  const auto backend = make_cpu_backend();
  constexpr int64_t kRows = 5, kChannels = 77;
  const Tensor residual = TorchGenerator(1).randn({kRows, kChannels}), weight = TorchGenerator(2).randn({kChannels}),
               next_weight = TorchGenerator(4).randn({kChannels});
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Tensor x = converted(TorchGenerator(3).randn({kRows, kChannels}), dtype), exact = converted(x, DType::kF32);
    Tensor out = residual.clone();
    backend->add_rms_norm(x, weight, 0.25f, out);
    for (int64_t row = 0; row < kRows; ++row) {
      const float* from = exact.f32() + row * kChannels;
      const double mean = std::inner_product(from, from + kChannels, from, 0.0) / kChannels;
      for (int64_t c = 0; c < kChannels; ++c) {
        const double normed = from[c] / std::sqrt(mean + 0.25) * weight.f32()[c];
        EXPECT_NEAR(out.f32()[row * kChannels + c], residual.f32()[row * kChannels + c] + normed, 1e-6);
      }
    }
    // The norm that follows is that of the sum, to the last bit, and may take the place of what was added.
    Tensor next(dtype, x.shape()), again = residual.clone(), in_place = x.clone();
    backend->rms_norm(out, next_weight, 0.25f, next);
    const FollowingNorm following{next_weight, in_place};
    backend->add_rms_norm(in_place, weight, 0.25f, again, &following);
    EXPECT_EQ(std::memcmp(again.raw(), out.raw(), out.size_bytes()), 0);
    EXPECT_EQ(std::memcmp(in_place.raw(), next.raw(), next.size_bytes()), 0);
  }
}

// Queries and keys of two heads behind one channel that is not theirs, each with a norm and angles of its own.
TEST(CpuBackend, HeadsAreNormalisedAndRotatedForThemselves) {
  const auto backend = make_cpu_backend();
  constexpr int64_t kTokens = 3, kHeads = 2, kDim = 6, kStride = 2 * kHeads * kDim + 1, kPairs = kHeads * kDim / 2;
  const Tensor norms[] = {TorchGenerator(2).randn({kDim}), TorchGenerator(6).randn({kDim})};
  const Tensor before = TorchGenerator(3).randn({kTokens, kStride});
  const RopeFactors rope{TorchGenerator(4).randn({kTokens, 3}), TorchGenerator(5).randn({3, kHeads, kDim / 2})};
  for (const bool rotate : {false, true}) {
    Tensor x = before.clone();
    const auto part = [&](int64_t index) {
      return HeadsView{x.f32() + 1 + index * kHeads * kDim, DType::kF32, kTokens, kStride, kDim};
    };
    backend->norm_and_rotate_heads(part(0), part(1), kHeads, kDim, {norms[0], norms[1], 0.5f},
                                   rotate ? &rope : nullptr);
    for (int64_t token = 0; token < kTokens; ++token) {
      EXPECT_EQ(x.f32()[token * kStride], before.f32()[token * kStride]);
      for (int64_t head = 0; head < 2 * kHeads; ++head) {  // the queries', then the keys'
        const int64_t at = token * kStride + 1 + head * kDim, first_pair = head % kHeads * kDim / 2;
        const float* from = before.f32() + at;
        const float* weight = norms[head / kHeads].f32();
        const double inverse = 1 / std::sqrt(std::inner_product(from, from + kDim, from, 0.0) / kDim + 0.5);
        for (int64_t c = 0; c < kDim; c += 2) {
          double angle = 0;
          for (int64_t axis = 0; rotate && axis < 3; ++axis) {
            angle += double{rope.positions.f32()[token * 3 + axis]} *
                     rope.frequencies.f32()[axis * kPairs + first_pair + c / 2];
          }
          const double a = from[c] * inverse * weight[c], b = from[c + 1] * inverse * weight[c + 1];
          EXPECT_NEAR(x.f32()[at + c], a * std::cos(angle) - b * std::sin(angle), 1e-6);
          EXPECT_NEAR(x.f32()[at + c + 1], a * std::sin(angle) + b * std::cos(angle), 1e-6);
        }
      }
    }
  }
}

TEST(CpuBackend, BiasedAttentionIsTheObviousSum) {
  const auto backend = make_cpu_backend();
  constexpr int kTokens = 37, kHeads = 3, kDim = 20, kWidth = kHeads * kDim;
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    TorchGenerator random(3);
    const Tensor qkv = converted(random.randn({kTokens, 3 * kWidth}), dtype),
                 bias = random.randn({kHeads, kTokens, kTokens});
    const Tensor exact = converted(qkv, DType::kF32);
    const auto part = [&](int index) {
      const char* data = static_cast<const char*>(qkv.raw()) + static_cast<size_t>(index * kWidth) * dtype_size(dtype);
      return ConstHeadsView{data, dtype, kTokens, 3 * kWidth, kDim};
    };
    Tensor out(dtype, {kTokens, kWidth});
    backend->biased_attention(part(0), part(1), part(2), bias, kHeads, kDim, {out.raw(), dtype, kTokens, kWidth, kDim});
    const Tensor result = converted(out, DType::kF32);
    const auto at = [&](int index, int token, int head, int c) {
      return double{exact.f32()[token * 3 * kWidth + index * kWidth + head * kDim + c]};
    };
    for (int head = 0; head < kHeads; ++head) {
      for (int t = 0; t < kTokens; ++t) {
        std::vector<double> weight(kTokens);
        double sum = 0;
        for (int s = 0; s < kTokens; ++s) {
          double logit = bias.f32()[(head * kTokens + t) * kTokens + s];
          for (int c = 0; c < kDim; ++c) logit += at(0, t, head, c) * at(1, s, head, c);
          sum += weight[s] = std::exp(logit);
        }
        for (int c = 0; c < kDim; ++c) {
          double expected = 0;
          for (int s = 0; s < kTokens; ++s) expected += weight[s] / sum * at(2, s, head, c);
          const double tolerance = dtype == DType::kF32 ? 1e-5 : std::ldexp(1.0, -8);
          ASSERT_NEAR(result.f32()[t * kWidth + head * kDim + c], expected, tolerance * (1 + std::abs(expected)));
        }
      }
    }
  }
}

TEST(CpuBackend, ChangesAreThoseBehindTheGatedProjection) {
  const auto backend = make_cpu_backend();
  constexpr int64_t kHeads = 3, kDim = 20, kWidth = kHeads * kDim, kOut = 33, kGroups = 4, kRows = 7;
  TorchGenerator random(5);
  const Tensor outputs = random.randn({kGroups, kRows, kWidth}), gate = random.randn({kOut});
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Tensor weight = converted(random.randn({kOut, kWidth}), dtype), exact = converted(weight, DType::kF32);
    const auto layer = backend->make_linear(weight, {}, dtype);
    const Tensor metric = backend->calibration_ops()->output_metric(backend->weight_of(*layer, weight), gate, kHeads);
    const Tensor weighed = backend->calibration_ops()->squared_changes(outputs, metric, kHeads),
                 plain = backend->calibration_ops()->squared_changes(outputs, {}, kHeads);
    ASSERT_EQ(weighed.shape(), (std::vector<int64_t>{kHeads, kGroups - 1}));
    for (int64_t head = 0; head < kHeads; ++head) {
      for (int64_t group = 0; group + 1 < kGroups; ++group) {
        double behind = 0, before = 0;
        for (int64_t row = 0; row < kRows; ++row) {
          const auto change = [&](int64_t i) {
            const auto at = [&](int64_t g) { return outputs.f32()[(g * kRows + row) * kWidth + head * kDim + i]; };
            return double{at(group)} - at(kGroups - 1);
          };
          for (int64_t i = 0; i < kDim; ++i) before += change(i) * change(i);
          for (int64_t o = 0; o < kOut; ++o) {
            double sum = 0;
            for (int64_t i = 0; i < kDim; ++i) sum += exact.f32()[o * kWidth + head * kDim + i] * change(i);
            behind += gate.f32()[o] * sum * gate.f32()[o] * sum;
          }
        }
        EXPECT_NEAR(weighed.f32()[head * (kGroups - 1) + group], behind, 1e-5 * behind);
        EXPECT_NEAR(plain.f32()[head * (kGroups - 1) + group], before, 1e-5 * before);
      }
    }
  }
}

TEST(CpuBackend, HeadsAreCopiedOutOfALargerArray) {
  const auto backend = make_cpu_backend();
  const Tensor from = TorchGenerator(5).randn({5, 3 * 8});
  Tensor to = Tensor::zeros(DType::kF32, {4, 10});
  // Tokens 1 and 2, channels 8 … 15 (two heads of 4), to tokens 2 and 3 of rows of 10.
  backend->copy_heads({from.f32() + 24 + 8, DType::kF32, 2, 24, 4}, {to.f32() + 20, DType::kF32, 2, 10, 4}, 2, 4);
  for (int64_t token = 0; token < 4; ++token) {
    for (int64_t c = 0; c < 10; ++c) {
      const bool copied = token >= 2 && c < 8;
      EXPECT_EQ(to.f32()[token * 10 + c], copied ? from.f32()[(token - 1) * 24 + 8 + c] : 0.0f);
    }
  }
}

}  // namespace
}  // namespace calibatt::cpu
