// Every attention kernel of this machine × dtype × case against the reference, which accumulates in double; and the
// reference against a softmax written out as a matrix.
//
// Tolerances, in relative L2 error of a head (and, tenfold, of every row of it):
//   float kernels: 1e-5, or twice the error of a plain float softmax on the same rows where logits are so large that
//   float itself
//     is coarser than that (a logit of 115 in log2 units has an ulp of 7.6e-6);
//   rounded weights: twice the error of a plain run that rounds the softmax weights to bfloat16 and nothing else;
//   BF16 output: that of rounding the reference's output, added;
//   like the inputs: 1.1 times the error of a plain run in the inputs' type, output rounded too: limits_of_plain_run
//   has the details;
//   8 bits: the same of a plain run in 8 bits.
#include "backend/cpu/attention/attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <iterator>
#include <utility>

#include "attention_cases.h"
#include "base/ceil_div.h"
#include "base/thread_pool.h"
#include "expected.h"
#include "test_kernel.h"

namespace calibatt {
namespace {

using cpu::AttentionKernel;

/// Limits of the relative L2 error of a head's output, and of its energy.
struct Limits {
  double output = 0, energy = 0;
};

Limits limits_of_plain_weights(Arithmetic arithmetic, const AttentionCase& attention_case, DType dtype,
                               DType out_dtype) {
  const double plain = expected(attention_case, dtype).plain_error;
  const double error = arithmetic == Arithmetic::kRoundedWeights ? 2 * plain + 1e-4 : std::max(1e-5, 2 * plain);
  // Rounding to nearest moves each element by at most 2^-9 of it.
  return {error + (out_dtype == DType::kBF16 ? 0x1p-9 : 0.0), error};
}

Limits limits_of_plain_run(const AttentionCase& attention_case, DType dtype, bool eight_bits) {
  const PlainRun& plain = plain_run(attention_case, dtype, eight_bits);
  const double plain_error = relative_errors(plain.outputs, expected(attention_case, dtype).outputs,
                                             attention_case.num_heads, attention_case.head_dim)
                                 .head;
  // At most 1.1 times the error that any framework's attention of this type has. Where one key dominates a row, its
  // weight relative to the row's maximum is exactly 1, but relative to a reference that lags behind it is rounded like
  // any other: that doubles the squared error. In 8 bits the reference follows the row's sum, and a last key that
  // counts as many dominates.
  const bool dominated =
      attention_case.values != ValueKind::kNormal || (eight_bits && attention_case.key_bias == KeyBias::kLast);
  const double factor = dominated ? 1.1 * std::sqrt(2.0) : 1.1;
  // Two runs that round n different numbers each have errors that differ by chance, by 1/√n of them.
  const double chance = 1 + 4 / std::sqrt(plain.num_roundings);
  // Logits are floats in log2 units: an ulp of one moves a weight by 2^-24 of it per unit of the logit.
  const double logits = 2e-5 + 32 * 0x1p-24 * plain.largest_logit;
  // Sums of a row on a column may be kept in half precision until the row's total is known.
  const double notes = 0x1p-12;
  return {factor * chance * plain_error + logits, logits + notes};
}

std::vector<TestKernel> all_kernels() {
  std::vector<TestKernel> all;
  for (const AddTestKernels::Kernels kernels : AddTestKernels::all()) {
    for (TestKernel& kernel : kernels()) all.push_back(std::move(kernel));
  }
  return all;
}

using KernelAndCase = std::pair<TestKernel, AttentionCase>;
class AttentionConformance : public testing::TestWithParam<KernelAndCase> {};

std::vector<KernelAndCase> kernels_and_cases() {
  std::vector<KernelAndCase> result;
  for (const TestKernel& kernel : all_kernels()) {
    for (AttentionCase attention_case : attention_cases()) {
      if (kernel.out_gap != 0) attention_case.out_gap = kernel.out_gap;
      result.emplace_back(kernel, attention_case);
    }
  }
  return result;
}

/// Runs a kernel again and again, over poison, with different numbers of threads; the results must not depend on it.
void run_repeatedly(const TestKernel& kernel, AttentionProblem& problem) {
  const AttentionCase& attention_case = problem.attention_case();
  std::vector<float> outputs, energy;
  for (const int threads : {1, 2, 3}) {
    if (kernel.on_host_threads) set_num_threads(threads);
    problem.poison();
    kernel.run(problem);
    if (threads > 1) {
      const std::vector<float> again = problem.outputs();
      EXPECT_EQ(std::memcmp(again.data(), outputs.data(), outputs.size() * sizeof(float)), 0) << "run " << threads;
      EXPECT_EQ(problem.energy(), energy) << "run " << threads;
    }
    outputs = problem.outputs();
    energy = problem.energy();
    if (kernel.on_host_threads && attention_case.num_queries > 2000) break;
    if (!kernel.on_host_threads && threads == 2) break;
  }
  set_num_threads(0);
}

TEST_P(AttentionConformance, MatchesTheReference) {
  const auto& [kernel, attention_case] = GetParam();
  std::string refused;
  int num_run = 0;
  for (const auto& [dtype, out_dtype] : kernel.types) {
    AttentionProblem problem(attention_case, dtype, out_dtype);
    if (const std::string reason = kernel.refusal(problem); !reason.empty()) {
      const bool first = kernel.types.front() == std::pair{dtype, out_dtype};
      const bool asked_for = is_usual(attention_case) && (kernel.measures_energy || !attention_case.energy) &&
                             (kernel.only_head_dim == 0 || kernel.only_head_dim == attention_case.head_dim);
      EXPECT_FALSE(first && asked_for) << "models need this: " << reason;
      refused = reason;
      continue;
    }
    ++num_run;
    SCOPED_TRACE(std::string(dtype_name(dtype)) + " to " + std::string(dtype_name(out_dtype)));
    run_repeatedly(kernel, problem);
    const std::vector<float> outputs = problem.outputs(), &energy = problem.energy();
    EXPECT_EQ(std::ranges::count_if(outputs, [](float x) { return std::isnan(x); }), 0) << "elements never written";
    EXPECT_EQ(problem.num_touched_gaps(), 0) << "elements written outside the rows";

    const Expected& wanted = expected(attention_case, dtype);
    const bool eight_bits = kernel.arithmetic == Arithmetic::kEightBits;
    const bool like_inputs = kernel.arithmetic == Arithmetic::kLikeInputs || eight_bits;
    const Limits limits = like_inputs ? limits_of_plain_run(attention_case, dtype, eight_bits)
                                      : limits_of_plain_weights(kernel.arithmetic, attention_case, dtype, out_dtype);
    const Errors errors = relative_errors(outputs, wanted.outputs, attention_case.num_heads, attention_case.head_dim);
    EXPECT_LE(errors.head, limits.output);
    EXPECT_LE(errors.row, 10 * limits.output);
    if (!attention_case.energy) continue;

    const int key_blocks = (attention_case.keys() + attention_case.block_k - 1) / attention_case.block_k;
    EXPECT_LE(relative_errors(energy, wanted.energy, attention_case.num_heads, key_blocks).head, limits.energy);
    for (size_t row = 0; row < energy.size(); row += static_cast<size_t>(key_blocks)) {
      double sum = 0;
      for (int c = 0; c < key_blocks; ++c) sum += energy[row + static_cast<size_t>(c)];
      ASSERT_NEAR(sum, 1.0, like_inputs ? limits.energy : 1e-5)
          << "energy row " << row / static_cast<size_t>(key_blocks);
    }
  }
  if (num_run == 0) GTEST_SKIP() << kernel.name << " does not take it: " << refused;
}

INSTANTIATE_TEST_SUITE_P(Kernels, AttentionConformance, testing::ValuesIn(kernels_and_cases()),
                         [](const auto& info) { return info.param.first.name + "_" + info.param.second.name; });

/// One row of softmax(QKᵀ)V with the weights written out: keys, then summary tokens.
struct WrittenOutRow {
  std::vector<double> output, mass;  ///< [head_dim]; [key blocks], softmax mass of kept blocks and of summaries

  /// `kept`: of the row's query block.
  WrittenOutRow(const AttentionCall& call, int head, int64_t query, const std::function<bool(int)>& kept,
                bool summarizes)
      : output(static_cast<size_t>(call.head_dim)) {
    const int64_t num_keys = call.k.num_tokens;
    for (int64_t first = 0; first < num_keys; first += call.block_k) {
      const int64_t end = std::min(first + call.block_k, num_keys);
      const auto count = static_cast<double>(end - first);
      const bool keeps = kept(static_cast<int>(mass.size()));
      mass.push_back(0);
      std::vector<double> mean_value(output.size());
      double mean_dot = 0;
      for (int64_t s = first; s < end; ++s) {
        double dot = 0;
        std::vector<double> value(output.size());
        for (int d = 0; d < call.head_dim; ++d) {
          dot += double{element(call.q, query, head, d)} * element(call.k, s, head, d);
          value[static_cast<size_t>(d)] = element(call.v, s, head, d);
          mean_value[static_cast<size_t>(d)] += value[static_cast<size_t>(d)] / count;
        }
        mean_dot += dot / count;
        if (keeps)
          add(call.scale * dot + (call.key_bias.empty() ? 0.0 : double{call.key_bias[static_cast<size_t>(s)]}), value);
      }
      if (!keeps && summarizes) add(call.scale * mean_dot + std::log(count), mean_value);
    }
    for (double& x : output) x /= sum_;
    for (double& x : mass) x /= sum_;
  }

 private:
  void add(double logit, const std::vector<double>& value) {
    const double weight = std::exp(logit);  // of some 80 at most: no overflow
    sum_ += weight;
    mass.back() += weight;
    for (size_t d = 0; d < output.size(); ++d) output[d] += weight * value[d];
  }
  double sum_ = 0;
};

class AttentionReference : public testing::TestWithParam<AttentionCase> {};

/// Cases that are small enough to be written out.
std::vector<AttentionCase> short_cases() {
  std::vector<AttentionCase> cases;
  std::ranges::copy_if(attention_cases(), std::back_inserter(cases),
                       [](const AttentionCase& c) { return c.num_queries <= 300 && c.keys() <= 5000; });
  return cases;
}

/// The reference, which all other kernels are held against, against softmax weights written out.
TEST_P(AttentionReference, MatchesAWrittenOutSoftmax) {
  AttentionProblem problem(GetParam(), DType::kF32, DType::kF32);
  const AttentionCall& call = problem.call();
  TestKernel reference;
  reference.on_host_threads = true;
  reference.run = [](AttentionProblem& p) { cpu::attention(p.call(), "reference"); };
  run_repeatedly(reference, problem);
  EXPECT_EQ(problem.num_touched_gaps(), 0) << "elements written outside the rows";
  const auto key_blocks = static_cast<size_t>(ceil_div(call.k.num_tokens, call.block_k));
  std::vector<double> energy(problem.energy().size());
  for (int head = 0; head < call.num_heads; ++head) {
    const HeadSchedule schedule = call.heads.empty() ? HeadSchedule{} : call.heads[static_cast<size_t>(head)];
    const BlockMask mask = schedule.intervals ? schedule.intervals->to_mask() : BlockMask();
    const int64_t step = energy.empty() ? 5 : 1;
    for (int64_t token = 0; token < call.q.num_tokens; token += step) {
      const int64_t computed = schedule.anchors ? schedule.anchors->source_of[static_cast<size_t>(token)] : token;
      const int64_t query = schedule.anchors ? schedule.anchors->query_tokens[static_cast<size_t>(computed)] : token;
      const auto query_block = static_cast<int>(computed / call.block_q);
      const auto kept = [&](int block) { return schedule.intervals == nullptr || mask.kept(query_block, block); };
      const WrittenOutRow row(call, head, query, kept, schedule.summarize_skipped);
      for (int d = 0; d < call.head_dim; ++d) {
        ASSERT_NEAR(problem.output(token, head, d), row.output[static_cast<size_t>(d)], 1e-6)
            << "token " << token << " dim " << d;
      }
      if (energy.empty()) continue;
      const int64_t rows = std::min<int64_t>(call.block_q, call.q.num_tokens - query_block * call.block_q);
      const size_t first = (static_cast<size_t>(head) * static_cast<size_t>(ceil_div(call.q.num_tokens, call.block_q)) +
                            static_cast<size_t>(query_block)) *
                           key_blocks;
      for (size_t c = 0; c < key_blocks; ++c) energy[first + c] += row.mass[c] / static_cast<double>(rows);
    }
  }
  for (size_t i = 0; i < energy.size(); ++i) ASSERT_NEAR(problem.energy()[i], energy[i], 1e-6) << "energy " << i;
}

INSTANTIATE_TEST_SUITE_P(Cases, AttentionReference, testing::ValuesIn(short_cases()),
                         [](const auto& info) { return info.param.name; });

/// What runs here is told from the processor, not from what kernels refuse.
TEST(AttentionKernels, RunWhereTheProcessorHasTheirInstructions) {
  const std::vector<TestKernel> kernels = all_kernels();
  const auto runs = [&](std::string_view name) {
    return std::ranges::find(kernels, name, &TestKernel::name) != kernels.end();
  };
  EXPECT_FALSE(kernels.empty());
  for (const AttentionKernel& kernel : cpu::attention_kernels()) {
    bool has_instructions = kernel.name != "reference";  // sse4, neon: any such processor has them
#if defined(__x86_64__)
    if (kernel.name == "avx512_bf16") has_instructions = __builtin_cpu_supports("avx512bf16") != 0;
    if (kernel.name == "avx512") has_instructions = __builtin_cpu_supports("avx512bw") != 0;
    if (kernel.name == "avx2") has_instructions = __builtin_cpu_supports("avx2") != 0;
#endif
    EXPECT_EQ(runs(kernel.name), has_instructions) << kernel.name;
  }
}

/// Values that are not numbers must come out as such, not vanish in a maximum or a flushed exponential.
TEST(AttentionKernels, NaNInAKeyReachesEveryRow) {
  for (const TestKernel& kernel : all_kernels()) {
    AttentionProblem problem({.name = "nan", .num_queries = 200, .out_gap = 8}, DType::kBF16, DType::kF32);
    if (!kernel.refusal(problem).empty()) continue;
    auto* keys = static_cast<bfloat16*>(const_cast<void*>(problem.call().k.data));
    keys[150 * problem.call().k.token_stride + 3] = bfloat16(NAN);
    kernel.run(problem);
    for (int token = 0; token < 200; ++token) {
      ASSERT_TRUE(std::isnan(problem.output(token, 0, 0))) << kernel.name << ", token " << token;
      ASSERT_FALSE(std::isnan(problem.output(token, 1, 0))) << kernel.name << ", token " << token;
    }
  }
}

struct InvalidCall {
  std::string message;  ///< part of what the error says
  std::function<void(AttentionCall&)> spoil;
};

TEST(AttentionKernels, InvalidCallsAreRefusedBeforeAnythingIsWritten) {
  const AttentionCase dense{.name = "invalid", .num_queries = 200, .num_keys = 130};
  const BlockIntervals intervals = BlockIntervals::dense(4, 3), too_few = BlockIntervals::dense(3, 3);
  const AnchorRows no_anchors, short_anchors{{0, 5}, {0, 1, 1}, 0};
  const AnchorRows wild_query{{0, 200}, std::vector<int32_t>(200, 0), 0},
      wild_source{{0, 5}, std::vector<int32_t>(200, 2), 0};
  const std::vector<float> zeros(130, 0.0f), short_bias(129, 0.0f), all_masked(130, -INFINITY), nan_bias(130, NAN);
  std::vector<float> energy(8 * 3, NAN);
  std::vector<HeadSchedule> heads(2);
  const auto with = [&](HeadSchedule schedule) {
    heads.assign(2, schedule);
    return std::span<const HeadSchedule>(heads);
  };
  const std::vector<InvalidCall> calls = {
      {"num_heads", [](AttentionCall& c) { c.num_heads = 0; }},
      {"head_dim", [](AttentionCall& c) { c.head_dim = 0; }},
      {"block sizes", [](AttentionCall& c) { c.block_q = 0; }},
      {"block sizes", [](AttentionCall& c) { c.block_k = -64; }},
      {"scale", [](AttentionCall& c) { c.scale = NAN; }},
      {"q has no data", [](AttentionCall& c) { c.q.data = nullptr; }},
      {"out has no data", [](AttentionCall& c) { c.out.data = nullptr; }},
      {"only F32 and BF16", [](AttentionCall& c) { c.k.dtype = DType::kF16; }},
      {"different dtypes", [](AttentionCall& c) { c.v.dtype = DType::kBF16; }},
      {"out must have the dtype", [](AttentionCall& c) { c.out.dtype = DType::kBF16; }},
      {"q has 0 tokens", [](AttentionCall& c) { c.q.num_tokens = 0; }},
      {"v has 129", [](AttentionCall& c) { c.v.num_tokens = 129; }},
      {"out has 199", [](AttentionCall& c) { c.out.num_tokens = 199; }},
      {"strides", [](AttentionCall& c) { c.q.token_stride = 63; }},
      {"strides", [](AttentionCall& c) { c.v.head_stride = -64; }},
      {"overlap", [](AttentionCall& c) { c.out.token_stride = c.out.head_stride; }},
      {"schedules for 1 heads", [&](AttentionCall& c) { c.heads = with({}).first(1); }},
      {"intervals are for 3 x 3", [&](AttentionCall& c) { c.heads = with({.intervals = &too_few}); }},
      {"intervals are for 4 x 3", [&](AttentionCall& c) { c.heads = with({.intervals = &intervals}), c.block_k = 32; }},
      {"needs intervals", [&](AttentionCall& c) { c.heads = with({.summarize_skipped = true}); }},
      {"no query tokens", [&](AttentionCall& c) { c.heads = with({.anchors = &no_anchors}); }},
      {"anchors are for 3 tokens", [&](AttentionCall& c) { c.heads = with({.anchors = &short_anchors}); }},
      {"query token 200", [&](AttentionCall& c) { c.heads = with({.anchors = &wild_query}); }},
      {"source 2", [&](AttentionCall& c) { c.heads = with({.anchors = &wild_source}); }},
      {"key_bias has 129", [&](AttentionCall& c) { c.key_bias = short_bias; }},
      {"a Hopper GPU", [](AttentionCall& c) { c.eight_bits = true; }},
      {"for every key", [&](AttentionCall& c) { c.key_bias = all_masked; }},
      {"NaN", [&](AttentionCall& c) { c.key_bias = nan_bias; }},
      {"dense heads only", [&](AttentionCall& c) { c.heads = with({.intervals = &intervals}), c.key_bias = zeros; }},
      {"dense heads only",
       [&](AttentionCall& c) { c.heads = with({.intervals = &intervals}), c.block_energy = energy.data(); }},
  };
  for (const InvalidCall& invalid : calls) {
    for (const std::string kernel : {"", "reference"}) {
      AttentionProblem problem(dense, DType::kF32, DType::kF32);
      AttentionCall call = problem.call();
      invalid.spoil(call);
      try {
        cpu::attention(call, kernel);
        ADD_FAILURE() << "not refused: " << invalid.message;
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::kUsage);
        EXPECT_THAT(error.what(), testing::HasSubstr(invalid.message));
      }
      EXPECT_TRUE(problem.is_poisoned()) << invalid.message;
    }
  }
  EXPECT_TRUE(std::ranges::all_of(energy, [](float x) { return std::isnan(x); }));
}

TEST(AttentionKernels, AreChosenInOrderOrByName) {
  AttentionProblem problem({.name = "choice", .num_queries = 10}, DType::kF32, DType::kF32);
  const AttentionKernel& chosen = cpu::choose_attention_kernel(problem.call());
  for (const AttentionKernel& kernel : cpu::attention_kernels()) {
    if (&kernel == &chosen) break;
    EXPECT_FALSE(kernel.refusal(problem.call()).empty()) << kernel.name;
  }
  EXPECT_EQ(cpu::attention_kernels().back().name, "reference");
  EXPECT_EQ(cpu::choose_attention_kernel(problem.call(), "reference").name, "reference");
  try {
    cpu::choose_attention_kernel(problem.call(), "fast");
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr("fast"), testing::HasSubstr("reference")));
  }
  problem.call().scale = -1.0f;  // only the reference multiplies by a negative scale
  EXPECT_EQ(cpu::choose_attention_kernel(problem.call()).name, "reference");
}

}  // namespace
}  // namespace calibatt
