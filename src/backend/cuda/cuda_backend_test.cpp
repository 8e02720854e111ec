#include "backend/cuda/cuda_backend.h"

#include <gmock/gmock.h>

#include <numeric>

#include "backend/cpu/make_backend.h"
#include "backend/cuda/backend_pair.h"

namespace calibatt::cuda {
namespace {

constexpr DType kTypes[] = {DType::kF32, DType::kBF16, DType::kF16};
// Float sums in another order: a few units in the last place, growing with the root of the number of terms.
constexpr double kFloat = 2e-6;
/// Both backends compute in float32 and round once; a value near a tie may go either way, which few do.
double bound(DType out) {
  return out == DType::kF32 ? kFloat : rounding_of(out);
}

TEST(CudaBackend, IsRefusedWithoutADeviceAndListsThemOtherwise) {
  add_cuda_backend();
  try {
    make_backend("cuda", 99, "--device 99");
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    if (num_devices() == 0) {
      EXPECT_EQ(error.kind(), ErrorKind::kDevice);
      EXPECT_THAT(error.what(), testing::HasSubstr("nvidia-smi"));
    } else {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      EXPECT_THAT(error.what(),
                  testing::AllOf(testing::HasSubstr("--device 99: there is no GPU 99: "), testing::HasSubstr("0 (")));
    }
  }
  EXPECT_EQ(make_backend("auto")->name(), num_devices() > 0 ? "cuda" : "cpu");
  EXPECT_EQ(make_backend("cpu")->name(), "cpu");
}

using CudaMemory = BackendPair;

TEST_F(CudaMemory, HoldsWhatWasCopied) {
  for (const DType dtype : kTypes) {
    Tensor host = random({3, 1537}, dtype);
    const Tensor kept = host.clone(), device = to_gpu(host);
    std::memset(host.raw(), 0, host.size_bytes());  // the copy is made when from_host returns
    expect_same(device, kept);
  }
  EXPECT_FALSE(gpu->in_host_memory());
  EXPECT_FALSE(gpu->device_name().empty());
}

TEST_F(CudaMemory, PeakCountsWhatWasInUseAtATime) {
  constexpr int64_t kSize = 1 << 24;
  const auto peak_of = [&](int num_tensors) {
    gpu->synchronize();
    gpu->reset_peak_memory();
    std::vector<Tensor> alive;
    for (int i = 0; i < num_tensors; ++i) alive.push_back(gpu->empty(DType::kF32, {kSize}));
    return gpu->peak_memory_bytes();
  };
  const size_t of_three = peak_of(3), of_one = peak_of(1);
  EXPECT_GE(of_one, kSize * sizeof(float));
  EXPECT_EQ(of_three - of_one, 2 * kSize * sizeof(float));
}

TEST_F(CudaMemory, TimerMeasuresTheDevice) {
  Tensor x = to_gpu(random({1 << 22}));
  const auto timer = gpu->make_timer();
  EXPECT_EQ(timer->seconds(), 0);
  double previous = 0;
  for (int turn = 0; turn < 3; ++turn) {
    for (int pair = 0; pair < 2; ++pair) {
      timer->start();
      gpu->activate(Activation::kSiLU, x, x);
      timer->stop();
    }
    EXPECT_GT(timer->seconds(), previous);
    previous = timer->seconds();
    EXPECT_EQ(timer->seconds(), previous);
  }
  EXPECT_LT(previous, 1);
}

struct RowsOf {
  int64_t rows, channels;
};
constexpr RowsOf kRows[] = {{1, 64}, {17, 64}, {17, 67}, {17, 1536}, {3, 1537}, {17, 5120}, {1100, 5120}, {2, 12000}};

using CudaNorms = BackendPair;

TEST_F(CudaNorms, LayerNorm) {
  for (const auto [rows, channels] : kRows) {
    SCOPED_TRACE(testing::Message() << rows << " x " << channels);
    const Tensor x = random({rows, channels}), scale = random({channels}, DType::kF32, 2),
                 shift = random({channels}, DType::kF32, 3);
    const Tensor gpu_scale = to_gpu(scale), gpu_shift = to_gpu(shift);
    for (const DType dtype : kTypes) {
      Tensor expected(cpu_type(dtype), x.shape()), found = gpu->empty(dtype, x.shape());
      cpu->layer_norm(x, nullptr, nullptr, false, 1e-6f, expected);
      gpu->layer_norm(to_gpu(x), nullptr, nullptr, false, 1e-6f, found);
      expect_close(found, converted(expected, dtype), bound(dtype));
      for (const bool one_plus_scale : {false, true}) {
        cpu->layer_norm(x, &scale, &shift, one_plus_scale, 1e-6f, expected);
        gpu->layer_norm(to_gpu(x), &gpu_scale, &gpu_shift, one_plus_scale, 1e-6f, found);
        expect_close(found, converted(expected, dtype), bound(dtype));
      }
    }
    Tensor expected(DType::kF32, x.shape()), in_place = to_gpu(x);
    cpu->layer_norm(x, &scale, nullptr, true, 1e-6f, expected);
    gpu->layer_norm(in_place, &gpu_scale, nullptr, true, 1e-6f, in_place);
    expect_close(in_place, expected, kFloat);
  }
}

TEST_F(CudaNorms, LayerNormOfAMeanFarFromZero) {
  Tensor x = random({5, 1536});
  for (int64_t i = 0; i < x.size(); ++i) x.f32()[i] = 3 * x.f32()[i] + 100;
  Tensor expected(DType::kF32, x.shape()), found = gpu->empty(DType::kF32, x.shape());
  cpu->layer_norm(x, nullptr, nullptr, false, 1e-6f, expected);
  gpu->layer_norm(to_gpu(x), nullptr, nullptr, false, 1e-6f, found);
  expect_close(found, expected, 1e-5);  // the mean itself is rounded: 2⁻²⁴ of 100 beside a deviation of 3
}

TEST_F(CudaNorms, RmsNorm) {
  for (const auto [rows, channels] : kRows) {
    SCOPED_TRACE(testing::Message() << rows << " x " << channels);
    const Tensor weight = random({channels}, DType::kF32, 2), gpu_weight = to_gpu(weight);
    for (const auto& [from, to] : {std::pair{DType::kF32, DType::kF32},
                                   {DType::kF32, DType::kBF16},
                                   {DType::kF32, DType::kF16},
                                   {DType::kBF16, DType::kBF16},
                                   {DType::kF16, DType::kF16}}) {
      const Tensor x = random({rows, channels}, from);
      Tensor expected(cpu_type(to), x.shape()), found = gpu->empty(to, x.shape());
      cpu->rms_norm(for_cpu(x), weight, 1e-6f, expected);
      gpu->rms_norm(to_gpu(x), gpu_weight, 1e-6f, found);
      expect_close(found, converted(expected, to), bound(to));
      if (from != to) continue;
      Tensor in_place = to_gpu(x);
      gpu->rms_norm(in_place, gpu_weight, 1e-6f, in_place);
      expect_same(in_place, from_gpu(found));
    }
  }
}

TEST_F(CudaNorms, AddRmsNorm) {
  for (const auto [rows, channels] : kRows) {
    SCOPED_TRACE(testing::Message() << rows << " x " << channels);
    const Tensor weight = random({channels}, DType::kF32, 2), residual = random({rows, channels}, DType::kF32, 3);
    for (const DType dtype : kTypes) {
      const Tensor x = random({rows, channels}, dtype), cpu_x = for_cpu(x);
      Tensor expected = residual.clone(), found = to_gpu(residual);
      cpu->add_rms_norm(cpu_x, weight, 1e-6f, expected);
      gpu->add_rms_norm(to_gpu(x), to_gpu(weight), 1e-6f, found);
      expect_close(found, expected, kFloat);

      const Tensor next_weight = random({channels}, DType::kF32, 4), gpu_next_weight = to_gpu(next_weight);
      Tensor next(cpu_x.dtype(), x.shape()), in_place = to_gpu(x), again = to_gpu(residual);
      cpu->rms_norm(expected, next_weight, 1e-6f, next);
      const FollowingNorm following{gpu_next_weight, in_place};
      gpu->add_rms_norm(in_place, to_gpu(weight), 1e-6f, again, &following);
      expect_same(again, from_gpu(found));
      expect_close(in_place, converted(next, dtype), bound(dtype));
    }
  }
}

TEST_F(CudaNorms, NormAndRotateOfEachHeadForItself) {
  struct Case {
    int heads, head_dim;
  };
  // Heads of one unit of a lane, of several; of no whole units; odd in every way.
  for (const auto [heads, head_dim] : {Case{24, 128}, Case{3, 64}, Case{2, 192}, Case{3, 24}, Case{5, 6}, Case{4, 2}}) {
    SCOPED_TRACE(testing::Message() << heads << " heads of " << head_dim);
    const int64_t width = int64_t{heads} * head_dim;
    const Tensor query_norm = random({head_dim}, DType::kF32, 2), gpu_query_norm = to_gpu(query_norm);
    const Tensor key_norm = random({head_dim}, DType::kF32, 3), gpu_key_norm = to_gpu(key_norm);
    for (const int64_t tokens : {1, 17, 130}) {
      RopeFactors rope{random({tokens, 3}, DType::kF32, 4), random({3, heads, head_dim / 2}, DType::kF32, 5)};
      for (int64_t i = 0; i < 3 * tokens; ++i) rope.positions.f32()[i] *= 50;  // as far as a video's columns are
      const RopeFactors gpu_rope{to_gpu(rope.positions), to_gpu(rope.frequencies)};
      for (const DType dtype : kTypes) {
        for (const bool rotate : {true, false}) {
          const Tensor x = random({tokens, 3 * width}, dtype);
          Tensor expected = for_cpu(x).clone(), found = to_gpu(x);
          const auto view = [&](Tensor& tensor, int64_t part) {
            const DType type = tensor.dtype();
            char* data = static_cast<char*>(tensor.raw()) + part * width * static_cast<int64_t>(dtype_size(type));
            return HeadsView{data, type, tokens, 3 * width, head_dim};
          };
          // The keys before the queries, to tell them apart; the third part stays as it is.
          cpu->norm_and_rotate_heads(view(expected, 1), view(expected, 0), heads, head_dim,
                                     {query_norm, key_norm, 1e-5f}, rotate ? &rope : nullptr);
          gpu->norm_and_rotate_heads(view(found, 1), view(found, 0), heads, head_dim,
                                     {gpu_query_norm, gpu_key_norm, 1e-5f}, rotate ? &gpu_rope : nullptr);
          expect_close(found, converted(expected, dtype), bound(dtype));
        }
      }
    }
  }
}

TEST_F(CudaNorms, NormAndRotateInsideOneOfThreeFusedParts) {
  struct Case {
    int heads, head_dim;
  };
  // Heads of whole units at one place per thread; at several places; of no whole units; odd in every way.
  for (const auto [heads, head_dim] :
       {Case{12, 128}, Case{40, 128}, Case{6, 64}, Case{3, 24}, Case{5, 6}, Case{1, 2}}) {
    SCOPED_TRACE(testing::Message() << heads << " heads of " << head_dim);
    const int64_t width = int64_t{heads} * head_dim;
    for (const int64_t tokens : {1, 17, 130}) {
      RopeTable rope{random({tokens, head_dim}, DType::kF32, 4), random({tokens, head_dim}, DType::kF32, 5)};
      const RopeTable gpu_rope{to_gpu(rope.cos), to_gpu(rope.signed_sin)};
      const Tensor weight = random({width}, DType::kF32, 2), gpu_weight = to_gpu(weight);
      for (const DType dtype : kTypes) {
        for (const int part : {0, 1, 2}) {
          for (const auto& [norm, rotate] : {std::pair{true, true}, {true, false}, {false, true}}) {
            const Tensor x = random({tokens, 3 * width}, dtype);
            Tensor expected = for_cpu(x).clone(), found = to_gpu(x);
            const auto view = [&](Tensor& tensor) {
              const DType type = tensor.dtype();
              char* data = static_cast<char*>(tensor.raw()) + part * width * static_cast<int64_t>(dtype_size(type));
              return HeadsView{data, type, tokens, 3 * width, head_dim};
            };
            cpu->norm_and_rotate(view(expected), heads, head_dim, norm ? &weight : nullptr, 1e-6f,
                                 rotate ? &rope : nullptr);
            gpu->norm_and_rotate(view(found), heads, head_dim, norm ? &gpu_weight : nullptr, 1e-6f,
                                 rotate ? &gpu_rope : nullptr);
            expect_close(found, converted(expected, dtype), bound(dtype));  // the other two parts stay as they are
          }
        }
      }
    }
  }
}

using CudaElements = BackendPair;
constexpr int64_t kSizes[] = {1, 6, 17, 64, 1537, 17 * 5120};

TEST_F(CudaElements, ActivateMultiplyAndConvert) {
  for (const int64_t size : kSizes) {
    SCOPED_TRACE(size);
    for (const DType dtype : kTypes) {
      const Tensor a = random({size}, dtype), b = random({size}, dtype, 2);
      const Tensor gpu_a = to_gpu(a), gpu_b = to_gpu(b);
      const Tensor cpu_a = for_cpu(a), cpu_b = for_cpu(b);
      Tensor expected(cpu_type(dtype), {size}), found = gpu->empty(dtype, {size});
      for (const Activation activation : {Activation::kSiLU, Activation::kTanh, Activation::kGeluTanh}) {
        cpu->activate(activation, cpu_a, expected);
        gpu->activate(activation, gpu_a, found);
        expect_close(found, converted(expected, dtype), bound(dtype));
      }
      cpu->multiply(cpu_a, cpu_b, expected);
      expected = converted(expected, dtype);
      gpu->multiply(gpu_a, gpu_b, found);
      expect_same(found, expected);  // one operation, one rounding
      Tensor product = to_gpu(a);
      gpu->multiply(product, gpu_b, product);
      expect_same(product, expected);
      for (const DType to : kTypes) {
        Tensor converted_there = gpu->empty(to, {size});
        gpu->convert(gpu_a, converted_there);
        expect_same(converted_there, converted(a, to));
      }
    }
  }
}

TEST_F(CudaElements, SwiGlu) {
  for (const auto [rows, channels] : kRows) {
    SCOPED_TRACE(testing::Message() << rows << " x " << channels);
    for (const DType dtype : kTypes) {
      const Tensor x = random({rows, 2 * channels}, dtype);
      Tensor expected(cpu_type(dtype), {rows, channels}), found = gpu->empty(dtype, expected.shape());
      cpu->swiglu(for_cpu(x), expected);
      gpu->swiglu(to_gpu(x), found);
      expect_close(found, converted(expected, dtype), bound(dtype));
    }
  }
}

TEST_F(CudaElements, AddRepeatsAShorterOperand) {
  for (const auto& [size, period] :
       {std::pair<int64_t, int64_t>{60, 20}, {60, 5}, {6 * 1536, 1536}, {17, 17}, {8, 1}}) {
    const Tensor a = random({size}), b = random({period}, DType::kF32, 2);
    Tensor expected(DType::kF32, {size}), found = to_gpu(a);
    cpu->add(a, b, expected);
    gpu->add(found, to_gpu(b), found);
    expect_same(found, expected);
  }
}

TEST_F(CudaElements, SumOfSquares) {
  for (const int64_t size : {1, 17, 3'000'001}) {
    const Tensor x = random({size});
    double expected = 0;
    for (int64_t i = 0; i < size; ++i) expected += double{x.f32()[i]} * x.f32()[i];
    EXPECT_NEAR(gpu->sum_of_squares(to_gpu(x)), expected, 1e-12 * expected);
  }
}

TEST_F(CudaElements, PatchesAreThoseOfTheCpu) {
  struct Case {
    std::array<int, 3> patch;
    std::vector<int64_t> latents;
  };
  for (const Case& c :
       {Case{{1, 2, 2}, {16, 3, 6, 10}}, Case{{2, 1, 3}, {5, 4, 3, 9}}, Case{{1, 1, 1}, {3, 1, 1, 1}}}) {
    const Tensor latents = random(c.latents);
    const int64_t volume = int64_t{c.patch[0]} * c.patch[1] * c.patch[2], width = c.latents[0] * volume,
                  num_tokens = latents.size() / width;
    for (const bool backwards : {false, true}) {
      std::vector<int32_t> order(static_cast<size_t>(num_tokens));
      std::iota(order.begin(), order.end(), 0);
      if (backwards) std::reverse(order.begin(), order.end());
      const PatchLayout layout{c.patch, order};
      Tensor expected(DType::kF32, {num_tokens, width}), found = gpu->empty(DType::kF32, {num_tokens, width});
      cpu->patchify(latents, layout, expected);
      gpu->patchify(to_gpu(latents), layout, found);
      expect_same(found, expected);
      Tensor back(DType::kF32, c.latents), found_back = gpu->empty(DType::kF32, c.latents);
      cpu->unpatchify(expected, layout, back);
      gpu->unpatchify(found, layout, found_back);
      expect_same(found_back, back);
    }
  }
}

using CudaChanges = BackendPair;

TEST_F(CudaChanges, AreThoseOfTheCpu) {
  struct Case {
    int64_t heads, head_dim, out, rows;
  };
  for (const auto& [heads, head_dim, out, rows] :
       {Case{12, 128, 1536, 256}, Case{4, 64, 256, 65}, Case{3, 24, 100, 17}, Case{1, 200, 7, 1}}) {
    SCOPED_TRACE(testing::Message() << heads << " heads of " << head_dim);
    constexpr int64_t kGroups = 16;
    const int64_t width = heads * head_dim;
    const Tensor outputs = random({kGroups, rows, width}), gate = random({out}, DType::kF32, 2);
    for (const DType dtype : kTypes) {
      const Tensor weight = random({out, width}, dtype, 3);
      const Tensor expected_metric = cpu->calibration_ops()->output_metric(weight, gate, static_cast<int>(heads));
      const auto layer = gpu->make_linear(weight, {}, dtype);
      const Tensor metric =
          gpu->calibration_ops()->output_metric(gpu->weight_of(*layer, weight), to_gpu(gate), static_cast<int>(heads));
      expect_close(metric, expected_metric, 1e-5);
      expect_close(gpu->calibration_ops()->squared_changes(to_gpu(outputs), metric, static_cast<int>(heads)),
                   cpu->calibration_ops()->squared_changes(outputs, expected_metric, static_cast<int>(heads)), 1e-5);
    }
    expect_close(gpu->calibration_ops()->squared_changes(to_gpu(outputs), {}, static_cast<int>(heads)),
                 cpu->calibration_ops()->squared_changes(outputs, {}, static_cast<int>(heads)), 1e-5);
  }
}

TEST_F(CudaChanges, EnergiesOfTheVideoAreTheFirstOnes) {
  for (const auto& [columns, all] : {std::pair<int64_t, int64_t>{1, 1}, {7, 8}, {200, 204}, {696, 700}}) {
    const Tensor energy = random({3, 17, all}), tail = random({3, 17, 2}, DType::kF32, 2);
    for (const bool text_begins_within : {false, true}) {
      Tensor expected(DType::kF32, {3, 17, columns}), found = gpu->empty(DType::kF32, expected.shape());
      cpu->calibration_ops()->take_video_energy(energy, text_begins_within ? tail : Tensor(), expected);
      gpu->calibration_ops()->take_video_energy(to_gpu(energy), text_begins_within ? to_gpu(tail) : Tensor(), found);
      expect_same(found, expected);
    }
  }
}

TEST_F(CudaChanges, HeadsAreCopiedOutOfOneOfThreeFusedParts) {
  for (const DType dtype : kTypes) {
    constexpr int64_t kTokens = 130, kWidth = 12 * 128;
    const Tensor x = random({kTokens, 3 * kWidth}, dtype);
    Tensor device = to_gpu(x), expected(dtype, {64, kWidth}), found = gpu->empty(dtype, {64, kWidth});
    const auto part = [&](const Tensor& tensor) {
      const char* data = static_cast<const char*>(tensor.raw()) + (10 * 3 + 1) * kWidth * dtype_size(dtype);
      return ConstHeadsView{data, dtype, 64, 3 * kWidth, 128};
    };
    cpu->copy_heads(part(x), {expected.raw(), dtype, 64, kWidth, 128}, 12, 128);
    gpu->copy_heads(part(device), {found.raw(), dtype, 64, kWidth, 128}, 12, 128);
    expect_same(found, expected);
  }
}

}  // namespace
}  // namespace calibatt::cuda
