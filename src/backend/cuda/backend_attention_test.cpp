// Attention as the backend gives it to models; the kernels themselves are tested in tests/conformance.
#include <gmock/gmock.h>

#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "backend/cuda/backend_pair.h"
#include "sparsity/block_intervals.h"

namespace calibatt::cuda {
namespace {

class CudaBackendAttention : public BackendPair {
 protected:
  static ConstHeadsView part(const Tensor& qkv, int index, int heads, int head_dim) {
    const int64_t width = int64_t{heads} * head_dim;
    const char* data =
        static_cast<const char*>(qkv.raw()) + index * width * static_cast<int64_t>(dtype_size(qkv.dtype()));
    return {data, qkv.dtype(), qkv.dim(0), qkv.dim(1), head_dim};
  }
  static HeadsView whole(Tensor& out, int head_dim) {
    return {out.raw(), out.dtype(), out.dim(0), out.dim(1), head_dim};
  }
  static AttentionCall call_of(const Tensor& qkv, Tensor& out, int heads, int head_dim) {
    AttentionCall call;
    call.q = part(qkv, 0, heads, head_dim);
    call.k = part(qkv, 1, heads, head_dim);
    call.v = part(qkv, 2, heads, head_dim);
    call.out = whole(out, head_dim);
    call.num_heads = heads;
    call.head_dim = head_dim;
    call.scale = 1 / std::sqrt(static_cast<float>(head_dim));
    return call;
  }
  /// bf16: both compute products of bf16 numbers in float32, but the weights are rounded before they meet the values
  /// (at most half a unit), and so is the output.
  static double bound(DType dtype) { return dtype == DType::kF32 ? 5e-6 : 2 * kHalfRounding; }
};

TEST_F(CudaBackendAttention, DenseEqualsTheCpu) {
  constexpr int kHeads = 3;
  for (const int head_dim : {128, 64, 24}) {
    for (const int64_t tokens : {1, 17, 300}) {
      for (const DType dtype : {DType::kF32, DType::kBF16}) {
        SCOPED_TRACE(testing::Message() << tokens << " tokens, heads of " << head_dim << " " << dtype_name(dtype));
        const int64_t width = kHeads * head_dim;
        const Tensor qkv = random({tokens, 3 * width}, dtype), gpu_qkv = to_gpu(qkv);
        Tensor expected(dtype, {tokens, width}), found = gpu->empty(dtype, {tokens, width});
        cpu->attention(call_of(qkv, expected, kHeads, head_dim));
        gpu->attention(call_of(gpu_qkv, found, kHeads, head_dim));
        expect_close(found, expected, bound(dtype));
      }
    }
  }
}

TEST_F(CudaBackendAttention, PlannedEqualsTheCpu) {
  constexpr int kHeads = 4, kHeadDim = 64, kBlock = 64, kBlocks = 6;
  constexpr int64_t kTokens = kBlock * kBlocks - 20, kWidth = kHeads * kHeadDim;
  BlockMask mask(kBlocks, kBlocks), anchor_mask(3, kBlocks);
  for (int block = 0; block < kBlocks; ++block) {
    mask.set(block, block, true);
    mask.set(block, (block * 5 + 2) % kBlocks, true);
    anchor_mask.set(block % 3, block, true);
  }
  const BlockIntervals intervals = BlockIntervals::from_mask(mask),
                       anchor_intervals = BlockIntervals::from_mask(anchor_mask);
  AnchorRows anchors;  // every other token is computed, its neighbour copies
  for (int32_t token = 0; token < kTokens; ++token) {
    if (token % 2 == 0) anchors.query_tokens.push_back(token);
    anchors.source_of.push_back(token / 2);
  }
  ASSERT_EQ(anchors.num_query_blocks(kBlock), 3);
  const HeadSchedule heads[kHeads] = {{},
                                      {.intervals = &intervals},
                                      {.intervals = &intervals, .summarize_skipped = true},
                                      {.intervals = &anchor_intervals, .summarize_skipped = true, .anchors = &anchors}};
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    SCOPED_TRACE(dtype_name(dtype));
    const Tensor qkv = random({kTokens, 3 * kWidth}, dtype), gpu_qkv = to_gpu(qkv);
    Tensor expected(dtype, {kTokens, kWidth}), found = gpu->empty(dtype, {kTokens, kWidth});
    AttentionCall call = call_of(qkv, expected, kHeads, kHeadDim);
    call.heads = heads;
    cpu->attention(call);
    call = call_of(gpu_qkv, found, kHeads, kHeadDim);
    call.heads = heads;
    gpu->attention(call);
    // Summaries of bf16 keys are rounded once more on the GPU.
    expect_close(found, expected, dtype == DType::kF32 ? 5e-6 : 4 * kHalfRounding);
  }
}

/// One schedule per call, as a plan's layers give them.
class OneSchedule : public ScheduleSource {
 public:
  OneSchedule(int num_blocks, int seed, int num_heads) : heads_(static_cast<size_t>(num_heads)) {
    BlockMask mask(num_blocks, num_blocks);
    for (int block = 0; block < num_blocks; ++block) {
      mask.set(block, block, true);
      mask.set(block, (block * 5 + seed) % num_blocks, true);
    }
    intervals_ = BlockIntervals::from_mask(mask);
    for (HeadSchedule& head : heads_) head.intervals = &*intervals_;
  }
  std::span<const HeadSchedule> heads() const override { return heads_; }

 private:
  std::optional<BlockIntervals> intervals_;
  std::vector<HeadSchedule> heads_;
};

TEST_F(CudaBackendAttention, AnnouncedSchedulesAreThoseOfTheirCalls) {
  constexpr int kHeads = 2, kHeadDim = 64, kBlocks = 24, kCalls = 12;
  constexpr int64_t kTokens = 64 * kBlocks, kWidth = kHeads * kHeadDim;
  constexpr ScheduleSizes kSizes{kTokens, kTokens, 64, 64};
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    SCOPED_TRACE(dtype_name(dtype));
    const MaskStreaming before = gpu->mask_streaming();
    const Tensor qkv = random({kTokens, 3 * kWidth}, dtype), gpu_qkv = to_gpu(qkv);
    std::vector<std::shared_ptr<const OneSchedule>> schedules;
    for (int i = 0; i < kCalls; ++i) schedules.push_back(std::make_shared<OneSchedule>(kBlocks, i, kHeads));
    // Nothing is waited for until all calls are enqueued: a slot written too early would show.
    std::vector<Tensor> found;
    gpu->prefetch_schedule(schedules[0], kSizes);
    for (size_t i = 0; i < kCalls; ++i) {
      if (i + 1 < kCalls) gpu->prefetch_schedule(schedules[i + 1], kSizes);
      found.push_back(gpu->empty(dtype, {kTokens, kWidth}));
      AttentionCall call = call_of(gpu_qkv, found.back(), kHeads, kHeadDim);
      call.heads = schedules[i]->heads();
      call.schedule = schedules[i].get();
      gpu->attention(call);
    }
    for (size_t i = 0; i < kCalls; ++i) {
      SCOPED_TRACE(i);
      Tensor expected(dtype, {kTokens, kWidth});
      AttentionCall call = call_of(qkv, expected, kHeads, kHeadDim);
      call.heads = schedules[i]->heads();
      cpu->attention(call);
      expect_close(found[i], expected, bound(dtype));
    }
    const MaskStreaming after = gpu->mask_streaming();
    EXPECT_EQ(after.calls - before.calls, kCalls);
    EXPECT_EQ(after.unannounced, 0);
    EXPECT_GT(after.uploaded_bytes, before.uploaded_bytes);
    EXPECT_GT(after.peak_device_bytes, 0u);
  }
}

TEST_F(CudaBackendAttention, HeadsComeToTheHostWithoutTheirNeighbours) {
  constexpr int kHeads = 3, kHeadDim = 24;
  constexpr int64_t kTokens = 37, kWidth = kHeads * kHeadDim;
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Tensor qkv = random({kTokens, 3 * kWidth}, dtype), gpu_qkv = to_gpu(qkv);
    const size_t row_bytes = kWidth * dtype_size(dtype);
    for (int index = 0; index < 3; ++index) {
      const ConstHeadsView expected = part(qkv, index, kHeads, kHeadDim);
      const HostHeads found = gpu->heads_to_host(part(gpu_qkv, index, kHeads, kHeadDim), kHeads, kHeadDim);
      ASSERT_EQ(found.view.token_stride, kWidth);
      ASSERT_EQ(found.view.head_stride, kHeadDim);
      ASSERT_EQ(found.view.num_tokens, kTokens);
      for (size_t token = 0; token < kTokens; ++token) {
        EXPECT_EQ(std::memcmp(static_cast<const char*>(found.view.data) + token * row_bytes,
                              static_cast<const char*>(expected.data) + 3 * token * row_bytes, row_bytes),
                  0);
      }
    }
  }
}

TEST_F(CudaBackendAttention, EncodesLevelsOfRowsThatFitAndLeavesOthersToTheHost) {
  std::vector<uint32_t> ladder;
  for (uint32_t i = 1; i <= 15; ++i) ladder.push_back(i * 4096);
  // Of 16 equal blocks, block c has c sixteenths before it.
  Tensor energy(DType::kF32, {1, 2, 16}), expected(DType::kU8, {1, 2, 8});
  std::fill_n(energy.f32(), energy.size(), 1.0f / 16);
  for (int i = 0; i < 16; ++i) expected.data<uint8_t>()[i] = static_cast<uint8_t>((2 * (i % 8) + 1) << 4 | 2 * (i % 8));
  Tensor codes = gpu->empty(DType::kU8, {1, 2, 8});
  ASSERT_TRUE(gpu->calibration_ops()->encode_energy_levels(to_gpu(energy), ladder, codes));
  expect_same(codes, expected);
  EXPECT_FALSE(gpu->calibration_ops()->encode_energy_levels(gpu->empty(DType::kF32, {1, 1, 10'000}), ladder, codes));
}

TEST_F(CudaBackendAttention, BlockEnergyIsADevicePointer) {
  constexpr int kHeads = 2, kHeadDim = 128;
  constexpr int64_t kTokens = 200, kWidth = kHeads * kHeadDim;
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const Tensor qkv = random({kTokens, 3 * kWidth}, dtype), gpu_qkv = to_gpu(qkv);
    Tensor expected(dtype, {kTokens, kWidth}), found = gpu->empty(dtype, {kTokens, kWidth});
    Tensor energy(DType::kF32, {kHeads, 4, 4}), gpu_energy = gpu->empty(DType::kF32, {kHeads, 4, 4});
    AttentionCall call = call_of(qkv, expected, kHeads, kHeadDim);
    call.block_energy = energy.f32();
    cpu->attention(call);
    call = call_of(gpu_qkv, found, kHeads, kHeadDim);
    call.block_energy = gpu_energy.f32();
    gpu->attention(call);
    expect_close(found, expected, bound(dtype));
    expect_close(gpu_energy, energy, dtype == DType::kF32 ? 1e-5 : 2e-3);
  }
}

TEST_F(CudaBackendAttention, NamesItsKernelAndRefusesABiasOfOtherKeysThanTheLast) {
  EXPECT_EQ(gpu->attention_kernel(DType::kF32, 64), "generic");
  EXPECT_NE(gpu->attention_kernel(DType::kBF16, 128), "generic");
  const Tensor qkv = to_gpu(random({2, 3 * 64}));
  Tensor out = gpu->empty(DType::kF32, {2, 64});
  AttentionCall call = call_of(qkv, out, 1, 64);
  const std::vector<float> bias{1.0f, 0.0f};
  call.key_bias = bias;
  try {
    gpu->attention(call);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    EXPECT_THAT(error.what(), testing::HasSubstr("key_bias"));
  }
}

TEST_F(CudaBackendAttention, WithABiasEqualsTheCpu) {
  constexpr int kHeads = 3;
  for (const auto& [tokens, head_dim] : {std::pair<int64_t, int>{1, 64}, {37, 20}, {130, 64}, {512, 32}}) {
    for (const auto& [from, to] : {std::pair{DType::kF32, DType::kF32},
                                   {DType::kF32, DType::kBF16},
                                   {DType::kBF16, DType::kBF16},
                                   {DType::kBF16, DType::kF32}}) {
      const int64_t width = int64_t{kHeads} * head_dim;
      // Unscaled logits of this size: softmax has something to choose.
      Tensor numbers = random({tokens, 3 * width});
      for (int64_t i = 0; i < numbers.size(); ++i) numbers.f32()[i] *= 0.5f;
      const Tensor qkv = converted(numbers, from), gpu_qkv = to_gpu(qkv);
      const Tensor bias = random({kHeads, tokens, tokens}, DType::kF32, 4);
      Tensor expected(to, {tokens, width}), found = gpu->empty(to, {tokens, width});
      cpu->biased_attention(part(qkv, 0, kHeads, head_dim), part(qkv, 1, kHeads, head_dim),
                            part(qkv, 2, kHeads, head_dim), bias, kHeads, head_dim, whole(expected, head_dim));
      gpu->biased_attention(part(gpu_qkv, 0, kHeads, head_dim), part(gpu_qkv, 1, kHeads, head_dim),
                            part(gpu_qkv, 2, kHeads, head_dim), to_gpu(bias), kHeads, head_dim, whole(found, head_dim));
      expect_close(found, expected, to == DType::kF32 ? 5e-6 : kHalfRounding);
    }
  }
}

}  // namespace
}  // namespace calibatt::cuda
