// What only the CUDA entry has: batches, row sums, graphs, very long sequences, and refusals before a launch.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <random>

#include "backend/cuda/attention/attention.h"
#include "base/error.h"
#include "base/thread_pool.h"
#include "device_problem.h"
#include "expected.h"

namespace calibatt {
namespace {

std::vector<std::string> all_kernel_names() {
  std::vector<std::string> names;
  for (const cuda::AttentionKernel& kernel : cuda::attention_kernels()) names.emplace_back(kernel.name);
  return names;
}

class CudaAttention : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda::num_devices() == 0) GTEST_SKIP() << "no CUDA device";
  }
};

/// The same, for each kernel that this GPU can run.
class CudaKernel : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (cuda::num_devices() == 0) GTEST_SKIP() << "no CUDA device";
    if (!cuda::runs_on(kernel(), cuda::current_device().compute_capability)) GTEST_SKIP() << "for other GPUs";
    AttentionProblem probe({.name = "probe", .num_queries = 1, .head_dim = 128, .out_gap = 8}, DType::kBF16,
                           DType::kBF16);
    const std::string reason =
        cuda::refusal_of(kernel(), DeviceProblem(probe).args(), cuda::current_device().compute_capability);
    ASSERT_EQ(reason, "");
  }
  const cuda::AttentionKernel& kernel() const {
    return *std::ranges::find(cuda::attention_kernels(), GetParam(), &cuda::AttentionKernel::name);
  }
};

INSTANTIATE_TEST_SUITE_P(Kernels, CudaKernel, testing::ValuesIn(all_kernel_names()),
                         [](const auto& info) { return info.param; });

AttentionCase planned_case(std::string name) {
  return {.name = std::move(name),
          .num_queries = 700,
          .num_heads = 4,
          .head_dim = 128,
          .block_q = 128,
          .block_k = 128,
          .mask = MaskKind::kMixed,
          .summarize = true,
          .out_gap = 8};
}

void expect_right(const AttentionProblem& problem, bool eight_bits = false) {
  const AttentionCase& attention_case = problem.attention_case();
  const Expected& wanted = expected(attention_case, DType::kBF16);
  const PlainRun& plain = plain_run(attention_case, DType::kBF16, eight_bits);
  const auto error = [&](const std::vector<float>& outputs) {
    return relative_errors(outputs, wanted.outputs, attention_case.num_heads, attention_case.head_dim).head;
  };
  const std::vector<float> outputs = problem.outputs();
  EXPECT_LE(error(outputs), 1.1 * (1 + 4 / std::sqrt(plain.num_roundings)) * error(plain.outputs))
      << attention_case.name;
  EXPECT_EQ(problem.num_touched_gaps(), 0);
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST_P(CudaKernel, ComputesBatches) {
  for (const bool planned : {false, true}) {
    // The names seed the values; schedules depend on the shape alone.
    AttentionCase first = planned_case(planned ? "planned_batch_0" : "dense_batch_0");
    if (!planned) first.mask = MaskKind::kNone, first.summarize = false, first.energy = !kernel().eight_bits;
    AttentionCase second = first;
    second.name.back() = '1';
    AttentionProblem a(first, DType::kBF16, DType::kBF16), b(second, DType::kBF16, DType::kBF16);
    DeviceProblem({&a, &b}).run(GetParam());
    expect_right(a, kernel().eight_bits);
    expect_right(b, kernel().eight_bits);
    if (!first.energy) continue;
    const auto key_blocks = static_cast<int>((first.keys() + first.block_k - 1) / first.block_k);
    for (const AttentionProblem* problem : {&a, &b}) {
      const Expected& wanted = expected(problem->attention_case(), DType::kBF16);
      EXPECT_LE(relative_errors(problem->energy(), wanted.energy, first.num_heads, key_blocks).head,
                0x1p-12);  // half-precision notes
    }
  }
}

// Each block of threads computes several tiles, one behind the other. No batch entry may show it, nor have what is
// another's: neighbours have numbers of their own.
TEST_P(CudaKernel, ComputesMoreTilesThanTheGpuHasMultiprocessors) {
  for (const bool planned : {false, true}) {
    AttentionCase shape = planned_case(planned ? "planned_many" : "dense_many");
    if (!planned) shape.mask = MaskKind::kNone, shape.summarize = false;
    constexpr size_t kBatch = 30, kDistinct = 7;  // of 4 heads and 700 queries
    const std::string name = shape.name;
    std::vector<std::unique_ptr<AttentionProblem>> problems;
    std::vector<AttentionProblem*> batch;
    for (size_t i = 0; i < kBatch; ++i) {
      shape.name = name + std::to_string(i % kDistinct);  // seeds the values
      problems.push_back(std::make_unique<AttentionProblem>(shape, DType::kBF16, DType::kBF16));
      batch.push_back(problems.back().get());
    }
    DeviceProblem(batch).run(GetParam());
    for (size_t i = 0; i < kBatch; ++i) {
      if (i < kDistinct) expect_right(*batch[i], kernel().eight_bits);
      EXPECT_TRUE(same_bits(batch[i]->outputs(), batch[i % kDistinct]->outputs())) << "entry " << i;
    }
    EXPECT_FALSE(same_bits(batch[0]->outputs(), batch[1]->outputs()));
  }
}

TEST_P(CudaKernel, RowSumsAreNaturalLogs) {
  if (kernel().eight_bits) GTEST_SKIP() << "measures none";
  AttentionCase dense{.name = "row_lse", .num_queries = 333, .num_keys = 450, .head_dim = 128, .out_gap = 8};
  AttentionProblem problem(dense, DType::kBF16, DType::kBF16);
  DeviceProblem device({&problem}, true);
  device.run(GetParam());
  const std::vector<float> lse = device.row_lse();
  const AttentionCall& call = problem.call();
  const auto at = [&](const ConstHeadsView& view, int64_t token, int head, int dim) {
    return static_cast<float>(
        static_cast<const bfloat16*>(view.data)[token * view.token_stride + head * view.head_stride + dim]);
  };
  for (int head = 0; head < dense.num_heads; ++head) {
    for (int row = 0; row < dense.num_queries; row += 7) {
      double sum = 0;
      for (int s = 0; s < dense.num_keys; ++s) {
        double dot = 0;
        for (int d = 0; d < dense.head_dim; ++d) dot += double{at(call.q, row, head, d)} * at(call.k, s, head, d);
        sum += std::exp(call.scale * dot);
      }
      // The logits are exact up to float sums; a log is then good to some ulps of its size.
      ASSERT_NEAR(lse[static_cast<size_t>(head * dense.num_queries + row)], std::log(sum), 2e-5) << "row " << row;
    }
  }
}

TEST_P(CudaKernel, RunsInAGraph) {
  AttentionProblem problem(planned_case("graph"), DType::kBF16, DType::kBF16);
  DeviceProblem device(problem);
  device.run(GetParam());
  const std::vector<float> direct = problem.outputs();

  const cuda::Stream stream;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  cuda::check(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal), "beginning the capture");
  cuda::attention(device.args(), device.workspace(), device.workspace_bytes(), stream.get(), GetParam());
  cuda::check(cudaStreamEndCapture(stream.get(), &graph), "ending the capture");
  cuda::check(cudaGraphInstantiate(&executable, graph, 0), "instantiating the graph");
  for (int run = 0; run < 3; ++run) {  // the tile counter must start anew each time
    problem.poison();
    device.upload_outputs();
    cuda::check(cudaGraphLaunch(executable, stream.get()), "launching the graph");
    stream.synchronize();
    device.download_outputs();
    EXPECT_TRUE(same_bits(problem.outputs(), direct)) << "run " << run;
  }
  cuda::check(cudaGraphExecDestroy(executable), "destroying the graph");
  cuda::check(cudaGraphDestroy(graph), "destroying the graph");
}

/// 200,001 tokens: offsets beyond 32 bits of bytes, and long sums. Checked on some rows against a float64 softmax.
TEST_P(CudaKernel, TakesTwoHundredThousandTokens) {
  constexpr int kHeads = 14, kDim = 128;  // q, k and v of a token behind each other: 2.15 GB
  constexpr int64_t kTokens = 200001, kWidth = int64_t{3} * kHeads * kDim;
  // Rows repeat with a long period, so that making them does not take minutes.
  constexpr int64_t kPeriod = 4099;
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<bfloat16> rows(static_cast<size_t>(kPeriod * kWidth));
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = i < 100003 ? bfloat16(normal(random)) : rows[i - 100003];
  cuda::DeviceBuffer qkv(static_cast<size_t>(kTokens * kWidth) * 2);
  cuda::DeviceBuffer out(static_cast<size_t>(kTokens) * kHeads * kDim * 2);
  cuda::check(cudaMemset(out.data(), 0xff, out.size_bytes()), "poisoning");
  for (int64_t token = 0; token < kTokens; token += kPeriod) {
    const auto count = static_cast<size_t>(std::min(kPeriod, kTokens - token) * kWidth) * 2;
    cuda::check(cudaMemcpy(qkv.as<bfloat16>() + token * kWidth, rows.data(), count, cudaMemcpyHostToDevice), "copying");
  }
  // One head, the last. The generic kernel would take a minute for all its rows.
  const int64_t first_query = GetParam() == "generic" ? kTokens - 513 : 0, num_queries = kTokens - first_query;
  constexpr int kHead = kHeads - 1;
  AttentionCall call;
  const auto view = [&](int part, int64_t first_token, int64_t count) {
    return ConstHeadsView{qkv.as<bfloat16>() + first_token * kWidth + (int64_t{part} * kHeads + kHead) * kDim,
                          DType::kBF16, count, kWidth, kDim};
  };
  call.q = view(0, first_query, num_queries);
  call.k = view(1, 0, kTokens);
  call.v = view(2, 0, kTokens);
  constexpr int64_t kOutWidth = int64_t{kHeads} * kDim;
  call.out = {out.as<bfloat16>() + first_query * kOutWidth + int64_t{kHead} * kDim, DType::kBF16, num_queries,
              kOutWidth, kDim};
  call.head_dim = kDim;
  call.scale = 1.0f / std::sqrt(static_cast<float>(kDim));
  call.block_q = call.block_k = 128;
  const cuda::AttentionArgs args = cuda::make_args(call, {});
  const cuda::DeviceBuffer workspace(cuda::attention_workspace_bytes(args, GetParam()));
  const cuda::Stream stream;
  cuda::check(cudaDeviceSynchronize(), "copying");
  cuda::attention(args, workspace.data(), workspace.size_bytes(), stream.get(), GetParam());
  stream.synchronize();
  const auto at = [&](int64_t token, int part, int d) {
    return static_cast<double>(static_cast<float>(
        rows[static_cast<size_t>(token % kPeriod * kWidth + (int64_t{part} * kHeads + kHead) * kDim + d)]));
  };
  std::vector<int64_t> sampled = {kTokens - 513, kTokens - 130, kTokens - 66, kTokens - 2, kTokens - 1};
  if (first_query == 0) sampled.insert(sampled.end(), {0, 1, 127, 128, 99999, 150000});
  std::vector<bfloat16> outputs(sampled.size() * kOutWidth);  // whole rows: other heads' parts stay poison
  for (size_t i = 0; i < sampled.size(); ++i) {
    cuda::check(cudaMemcpy(&outputs[i * kOutWidth], out.as<bfloat16>() + sampled[i] * kOutWidth, kOutWidth * 2,
                           cudaMemcpyDeviceToHost),
                "copying back");
  }
  std::vector<double> squares(sampled.size()), differences(sampled.size());
  parallel_for(std::ssize(sampled), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      // Keys repeat: one softmax over a period, each key as often as it comes.
      std::vector<double> output(kDim);
      double sum = 0;
      for (int64_t s = 0; s < kPeriod; ++s) {
        double dot = 0;
        for (int d = 0; d < kDim; ++d) dot += at(sampled[i], 0, d) * at(s, 1, d);
        const double times = static_cast<double>(kTokens / kPeriod + (s < kTokens % kPeriod ? 1 : 0));
        const double weight = times * std::exp(call.scale * dot);
        sum += weight;
        for (int d = 0; d < kDim; ++d) output[d] += weight * at(s, 2, d);
      }
      for (int d = 0; d < kDim; ++d) {
        const double wanted = output[d] / sum;
        const double got = static_cast<float>(outputs[static_cast<size_t>(i * kOutWidth + kHead * kDim + d)]);
        squares[i] += wanted * wanted;
        differences[i] += (got - wanted) * (got - wanted);
      }
    }
  });
  for (size_t i = 0; i < sampled.size(); ++i) {
    // Two roundings to bf16 (weights, output) of at most 2^-9 each; a repeated key's weight is rounded alike each time.
    // In 8 bits two to e4m3 (weights, values) of at most 2^-4, independent from key to key: 2^-4/√3 each in the mean.
    const double limit = kernel().eight_bits ? 0x1p-4 * std::sqrt(2.0 / 3.0) : 0x1p-8;
    EXPECT_LE(std::sqrt(differences[i] / squares[i]), limit) << "row " << sampled[i];
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (i % kOutWidth < size_t{kHead} * kDim) {
      ASSERT_EQ(outputs[i].bits, 0xffff) << "another head was written";
    }
  }
}

TEST_F(CudaAttention, TheGenericKernelTakesTheRest) {
  // Output rows at odd addresses, and a head dim that no fast kernel has.
  AttentionProblem problem({.name = "rest", .num_queries = 100, .head_dim = 40, .out_gap = 3}, DType::kBF16,
                           DType::kBF16);
  DeviceProblem device(problem);
  const cuda::DeviceInfo& info = cuda::current_device();
  EXPECT_EQ(cuda::choose_attention_kernel(device.args(), info).name, "generic");
  device.run({});
  expect_right(problem);
}

struct InvalidArgs {
  std::string message;  ///< part of what the error says
  std::function<void(cuda::AttentionArgs&)> spoil;
};

TEST_F(CudaAttention, InvalidCallsAreRefusedBeforeALaunch) {
  AttentionProblem problem(planned_case("invalid"), DType::kBF16, DType::kBF16);
  DeviceProblem device(problem);
  device.make_workspace({});
  device.upload_outputs();
  float* somewhere = static_cast<float*>(device.workspace());
  const std::vector<InvalidArgs> calls = {
      {"batch is 0", [](auto& a) { a.batch = 0; }},
      {"num_heads is -1", [](auto& a) { a.num_heads = -1; }},
      {"head_dim", [](auto& a) { a.head_dim = 0; }},
      {"num_queries", [](auto& a) { a.num_queries = 0; }},
      {"num_keys", [](auto& a) { a.num_keys = 0; }},
      {"block_q", [](auto& a) { a.block_q = 0; }},
      {"block_k", [](auto& a) { a.block_k = 0; }},
      {"scale", [](auto& a) { a.scale_log2 = NAN; }},
      {"scale", [](auto& a) { a.scale_log2 = -1; }},
      {"q has no data", [](auto& a) { a.q.data = nullptr; }},
      {"out has no data", [](auto& a) { a.out.data = nullptr; }},
      {"k strides", [](auto& a) { a.k.token_stride = 127; }},
      {"v strides", [](auto& a) { a.v.head_stride = -128; }},
      {"out strides", [](auto& a) { a.batch = 2, a.out.batch_stride = 0; }},
      {"dense calls only", [&](auto& a) { a.block_energy = somewhere; }},
      {"dense calls only", [&](auto& a) { a.row_lse = somewhere; }},
      {"query blocks of 256",
       [&](auto& a) { a.schedule = {}, a.num_summaries = 0, a.block_energy = somewhere, a.block_q = 256; }},
      {"no tiles", [](auto& a) { a.schedule.num_tiles = 0; }},
      {"need a schedule", [](auto& a) { a.schedule = {}; }},
      {"7 summaries for 700 keys", [](auto& a) { a.num_summaries = 7; }},
      {"go together", [&](auto& a) { a.summary_k.data = somewhere; }},
      {"goes with dense calls only", [](auto& a) { a.last_key_bias_log2 = 1; }},
      {"bias must be finite", [](auto& a) { a.schedule = {}, a.num_summaries = 0, a.last_key_bias_log2 = -INFINITY; }},
  };
  const cuda::Stream stream;
  const auto expect_refused = [&](const std::string& message, const std::function<void()>& call) {
    try {
      call();
      ADD_FAILURE() << "not refused: " << message;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      EXPECT_THAT(error.what(), testing::HasSubstr(message));
    }
  };
  for (const InvalidArgs& invalid : calls) {
    cuda::AttentionArgs args = device.args();
    invalid.spoil(args);
    expect_refused(invalid.message,
                   [&] { cuda::attention(args, device.workspace(), device.workspace_bytes(), stream.get()); });
    expect_refused(invalid.message, [&] { cuda::attention_workspace_bytes(args); });
  }
  const cuda::AttentionArgs& args = device.args();
  expect_refused("the workspace has", [&] { cuda::attention(args, device.workspace(), 1, stream.get()); });
  expect_refused("multiple of 256", [&] { cuda::attention(args, nullptr, device.workspace_bytes(), stream.get()); });
  expect_refused("no CUDA kernel is named fast",
                 [&] { cuda::attention(args, device.workspace(), device.workspace_bytes(), stream.get(), "fast"); });

  AttentionCall call = problem.call();
  std::vector<float> bias(700, 0.0f);
  bias[3] = 1;
  call.heads = {};
  call.key_bias = bias;
  expect_refused("only the last key", [&] { cuda::make_args(call, {}); });
  call = problem.call();
  expect_refused("not made of this call's heads", [&] { cuda::make_args(call, {}); });
  call.q.dtype = call.k.dtype = call.v.dtype = DType::kF64;
  expect_refused("only BF16, F16 and F32", [&] { cuda::make_args(call, {}); });
  stream.synchronize();
  device.download_outputs();
  EXPECT_TRUE(problem.is_poisoned());
}

}  // namespace
}  // namespace calibatt
