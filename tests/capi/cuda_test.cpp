// The C interface on a GPU: the caller's streams, memory and current device. Skipped where there is none.
#include <cuda_runtime_api.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <thread>

#include "attention/run_attention.h"
#include "backend/cuda/attention/cuda_attention.h"
#include "backend/cuda/device/device.h"
#include "c_api_helpers.h"
#include "calibrate/profile/profile.h"
#include "plan/test_plans.h"

namespace calibatt::test {
namespace {

using cuda::check;
using cuda::DeviceBuffer;
using ::testing::HasSubstr;

/// A plan of two layers and three steps with masks, in blocks that the fast kernels take: 2×16×12 tokens, 3 heads of
/// 128. `summaries`: skipped blocks take part.
Plan::Parts gpu_parts(bool summaries) {
  Plan::Parts parts = example_parts();
  parts.geometry = {};
  parts.geometry.frames = 2, parts.geometry.height = 16, parts.geometry.width = 12;
  parts.geometry.heads = 3, parts.geometry.head_dim = 128;
  parts.geometry.order = TokenOrder::tiles(2, 4, 4);
  parts.num_layers = 2;
  parts.step_entry = {0, 1, 2};
  parts.summarize_skipped = summaries;
  parts.anchor_rows_per_frame = 4;
  parts.heads.clear();
  std::mt19937 random(4);
  const int blocks = parts.geometry.num_query_blocks();
  const int anchored = make_anchor_rows(parts.geometry, 4).num_query_blocks(parts.geometry.block_q);
  for (int i = 0; i < 3 * 2 * 3; ++i) {
    const bool is_anchored = i % 3 == 2;
    parts.heads.push_back(
        {BlockIntervals::from_mask(random_mask(random, is_anchored ? anchored : blocks, blocks, 0.4)), is_anchored});
  }
  return parts;
}

/// bf16 q, k, v in device memory; out and workspace beside them.
class GpuCall {
 public:
  GpuCall(const AttentionGeometry& geometry, unsigned seed, int batch = 1)
      : geometry_(geometry),
        batch_(batch),
        arrays_(batch, geometry.num_tokens(), geometry.heads, geometry.head_dim, seed) {
    for (const auto& [from, to] : {std::pair{&arrays_.q, &q_}, {&arrays_.k, &k_}, {&arrays_.v, &v_}}) {
      const Tensor values = bf16(*from);
      *to = DeviceBuffer(values.size_bytes());
      check(cudaMemcpy(to->data(), values.raw(), values.size_bytes(), cudaMemcpyHostToDevice), "copying");
    }
    out_ = DeviceBuffer(q_.size_bytes());
    check(cudaMemset(out_.data(), 0xff, out_.size_bytes()), "clearing");
  }
  calibatt_call call(int layer, cudaStream_t stream) {
    calibatt_call call = arrays_.call();
    call.layer = layer, call.batch = batch_;
    call.dtype = CALIBATT_BF16;
    call.q.data = q_.data(), call.k.data = k_.data(), call.v.data = v_.data(), call.out.data = out_.data();
    call.stream = stream;
    return call;
  }
  calibatt_status run(calibatt_session* session, int layer, cudaStream_t stream) {
    calibatt_call call = this->call(layer, stream);
    size_t bytes = 0;
    if (const auto status = calibatt_session_workspace(session, &call, &bytes); status != CALIBATT_OK) return status;
    if (workspace_.size_bytes() < bytes) workspace_ = DeviceBuffer(bytes);
    call.workspace = workspace_.data(), call.workspace_bytes = bytes;
    return calibatt_session_attend(session, &call);
  }
  /// The same by the library's own engine.
  void run(SelfAttention& attention, int layer) {
    const int64_t width = int64_t{geometry_.heads} * geometry_.head_dim;
    const auto view = [&]<class View>(void* data) {
      return View{data, DType::kBF16, geometry_.num_tokens(), width, geometry_.head_dim};
    };
    attention.attend(layer, geometry_, view.operator()<ConstHeadsView>(q_.data()),
                     view.operator()<ConstHeadsView>(k_.data()), view.operator()<ConstHeadsView>(v_.data()),
                     view.operator()<HeadsView>(out_.data()), {});
  }
  /// Of the device, when it is done with everything.
  std::vector<uint16_t> result() const {
    std::vector<uint16_t> host(out_.size_bytes() / 2);
    check(cudaDeviceSynchronize(), "waiting");
    check(cudaMemcpy(host.data(), out_.data(), out_.size_bytes(), cudaMemcpyDeviceToHost), "copying");
    return host;
  }

 private:
  static Tensor bf16(const std::vector<float>& values) {
    Tensor tensor(DType::kF32, {static_cast<int64_t>(values.size())});
    std::copy(values.begin(), values.end(), tensor.f32());
    return converted(tensor, DType::kBF16);
  }
  AttentionGeometry geometry_;
  int batch_;
  Arrays arrays_;
  DeviceBuffer q_, k_, v_, out_, workspace_;
};

class CApiCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    if (calibatt_cuda_available() != CALIBATT_OK) GTEST_SKIP() << calibatt_last_error();
    check(cudaSetDevice(0), "choosing the GPU");
  }
  calibatt_run run_of(const Plan& plan) {
    const AttentionGeometry& geometry = plan.geometry();
    auto run = sized<calibatt_run>();
    run.frames = geometry.frames, run.height = geometry.height, run.width = geometry.width;
    run.num_heads = geometry.heads, run.head_dim = geometry.head_dim, run.num_layers = plan.num_layers();
    run.num_steps = plan.num_steps();
    run.sigmas = plan.info().sigmas.data();
    return run;
  }
  RunDescription description_of(const Plan& plan) {
    RunDescription run;
    run.geometry = plan.geometry();
    run.num_layers = plan.num_layers();
    run.sigmas = plan.info().sigmas;
    return run;
  }
  /// Every call of a run, in order.
  static std::vector<std::vector<uint16_t>> run_all(const Plan& plan, calibatt_session* session,
                                                    const std::vector<cudaStream_t>& streams) {
    std::vector<std::unique_ptr<GpuCall>> calls;
    for (int step = 0; step < plan.num_steps(); ++step) {
      EXPECT_EQ(calibatt_session_begin_forward(session, step, CALIBATT_CONDITIONAL), CALIBATT_OK);
      for (int layer = 0; layer < plan.num_layers(); ++layer) {
        calls.push_back(std::make_unique<GpuCall>(plan.geometry(), static_cast<unsigned>(10 * step + layer)));
        EXPECT_EQ(calls.back()->run(session, layer, streams[calls.size() % streams.size()]), CALIBATT_OK)
            << calibatt_last_error();
      }
    }
    std::vector<std::vector<uint16_t>> results;
    for (const auto& call : calls) results.push_back(call->result());
    return results;
  }
  Folder folder_;
};

TEST_F(CApiCuda, IsThePipelinesPlannedAttentionOnAnyStream) {
  for (const bool summaries : {false, true}) {
    const Plan plan(gpu_parts(summaries));
    const std::string path = folder_.file(summaries ? "a.safetensors" : "b.safetensors");
    save_plan(plan, path);
    const OpenPlan open(path);
    const OpenSession session(open.plan, run_of(plan));
    ASSERT_EQ(session.status, CALIBATT_OK) << calibatt_last_error();
    cuda::CudaAttention engine;
    PlannedAttention ours(engine, load_plan(path), description_of(plan));
    std::vector<std::vector<uint16_t>> expected;
    for (int step = 0; step < plan.num_steps(); ++step) {
      ours.begin_forward(step, GuidanceBranch::kConditional);
      for (int layer = 0; layer < plan.num_layers(); ++layer) {
        GpuCall call(plan.geometry(), static_cast<unsigned>(10 * step + layer));
        check(cudaDeviceSynchronize(), "waiting");
        call.run(ours, layer);
        expected.push_back(call.result());
      }
    }
    const cuda::Stream one, two;
    EXPECT_EQ(run_all(plan, session.session, {nullptr}), expected);
    EXPECT_EQ(run_all(plan, session.session, {one.get()}), expected);
    EXPECT_EQ(run_all(plan, session.session, {one.get(), two.get()}), expected);
    const auto json = nlohmann::json::parse(session.json());
    EXPECT_GT(json["mask_bytes"], 0);
    EXPECT_NE(json["kernel"], "generic");
  }
}

TEST_F(CApiCuda, TwoSessionsOnTwoStreamsInTwoThreads) {
  const Plan plan(gpu_parts(true));
  save_plan(plan, folder_.file("plan.safetensors"));
  const OpenPlan open(folder_.file("plan.safetensors"));
  const OpenSession alone(open.plan, run_of(plan));
  const auto expected = run_all(plan, alone.session, {nullptr});
  const auto work = [&] {
    check(cudaSetDevice(0), "choosing the GPU");
    const cuda::Stream stream;
    const OpenSession session(open.plan, run_of(plan));
    ASSERT_EQ(session.status, CALIBATT_OK) << calibatt_last_error();
    for (int round = 0; round < 10; ++round) EXPECT_EQ(run_all(plan, session.session, {stream.get()}), expected);
  };
  std::thread other(work);
  work();
  other.join();
}

TEST_F(CApiCuda, SamplesOfABatchAreAlikeAndTheWorkspaceIsAskedFor) {
  const Plan plan(gpu_parts(true));
  save_plan(plan, folder_.file("plan.safetensors"));
  const OpenPlan open(folder_.file("plan.safetensors"));
  const OpenSession session(open.plan, run_of(plan));
  ASSERT_EQ(calibatt_session_begin_forward(session.session, 0, CALIBATT_CONDITIONAL), CALIBATT_OK);
  GpuCall call(plan.geometry(), 1, 2);
  calibatt_call without = call.call(0, nullptr);
  EXPECT_EQ(calibatt_session_attend(session.session, &without), CALIBATT_USAGE);
  EXPECT_THAT(calibatt_last_error(), HasSubstr("workspace"));
  for (const uint16_t value : call.result()) ASSERT_EQ(value, 0xffff) << "nothing is written by a call that is refused";
  ASSERT_EQ(call.run(session.session, 0, nullptr), CALIBATT_OK) << calibatt_last_error();
  for (const uint16_t value : call.result()) ASSERT_NE(value, 0xffff);
}

TEST_F(CApiCuda, TheCurrentDeviceIsPutBack) {
  if (cuda::num_devices() < 2) GTEST_SKIP() << "one GPU";
  const Plan plan(gpu_parts(false));
  calibatt_run run = run_of(plan);
  run.device = 1;
  int current = -1;
  {
    const OpenSession session(nullptr, run);
    ASSERT_EQ(session.status, CALIBATT_OK) << calibatt_last_error();
    check(cudaGetDevice(&current), "asking");
    EXPECT_EQ(current, 0);
    check(cudaSetDevice(1), "choosing");
    GpuCall call(plan.geometry(), 1);
    check(cudaSetDevice(0), "choosing");
    ASSERT_EQ(calibatt_session_begin_forward(session.session, 0, CALIBATT_CONDITIONAL), CALIBATT_OK);
    size_t bytes = 0;
    calibatt_call raw = call.call(0, nullptr);
    ASSERT_EQ(calibatt_session_workspace(session.session, &raw, &bytes), CALIBATT_OK);
    check(cudaSetDevice(1), "choosing");
    const DeviceBuffer workspace(bytes);
    check(cudaSetDevice(0), "choosing");
    raw.workspace = workspace.data(), raw.workspace_bytes = bytes;
    EXPECT_EQ(calibatt_session_attend(session.session, &raw), CALIBATT_OK) << calibatt_last_error();
  }
  check(cudaGetDevice(&current), "asking");
  EXPECT_EQ(current, 0);
}

// ---- calibration ---------------------------------------------------------------------------------------------------

/// Denoises a synthetic model, on the GPU or with the same values (rounded to bf16) on the CPU.
struct Denoiser {
  const Plan& plan;
  bool on_gpu;
  cudaStream_t stream = nullptr;
  DeviceBuffer weight = DeviceBuffer(), gate = DeviceBuffer();
  std::vector<float> host_weight, host_gate;
  int gains_asked = 0;

  Denoiser(const Plan& plan, bool on_gpu) : plan(plan), on_gpu(on_gpu) {
    const auto width = static_cast<size_t>(plan.geometry().heads) * plan.geometry().head_dim;
    std::mt19937 random(8);
    for (size_t i = 0; i < width * width; ++i) host_weight.push_back(static_cast<float>(random() % 2001) / 1000.0f - 1);
    for (size_t i = 0; i < width; ++i) host_gate.push_back(static_cast<float>(random() % 2001) / 1000.0f - 1);
    if (!on_gpu) return;
    weight = DeviceBuffer(host_weight.size() * 4), gate = DeviceBuffer(host_gate.size() * 4);
    check(cudaMemcpy(weight.data(), host_weight.data(), weight.size_bytes(), cudaMemcpyHostToDevice), "copying");
    check(cudaMemcpy(gate.data(), host_gate.data(), gate.size_bytes(), cudaMemcpyHostToDevice), "copying");
  }
  static int32_t run_prompt(void* user, int32_t prompt, calibatt_session* session, double*) {
    return static_cast<Denoiser*>(user)->run(prompt, session);
  }
  int32_t run(int32_t prompt, calibatt_session* session) {
    for (int step = 0; step < plan.num_steps(); ++step) {
      if (calibatt_session_begin_forward(session, step, CALIBATT_CONDITIONAL) != CALIBATT_OK) return 1;
      for (int layer = 0; layer < plan.num_layers(); ++layer) {
        const auto seed = static_cast<unsigned>(1000 * prompt + 10 * step + layer);
        if (attend(session, layer, seed) != CALIBATT_OK) return 1;
      }
    }
    return 0;
  }
  calibatt_status attend(calibatt_session* session, int layer, unsigned seed) {
    const AttentionGeometry& geometry = plan.geometry();
    auto output = sized<calibatt_output>();
    output.weight = on_gpu ? weight.data() : host_weight.data();
    output.weight_dtype = CALIBATT_F32;
    output.out_features = static_cast<int32_t>(host_gate.size());
    output.gate = on_gpu ? weight_gate() : host_gate.data();
    output.residual_square_sum = 1e5;
    output.squared_gain = [](void* user) {
      ++static_cast<Denoiser*>(user)->gains_asked;
      return 0.25;
    };
    output.user = this;
    if (on_gpu) {
      GpuCall call(geometry, seed);  // freed while the GPU may still read it, but cudaFree waits
      calibatt_call raw = call.call(layer, stream);
      raw.output = &output;
      return calibatt_session_attend(session, &raw);
    }
    Arrays arrays(1, geometry.num_tokens(), geometry.heads, geometry.head_dim, seed);
    for (auto* array : {&arrays.q, &arrays.k, &arrays.v}) {
      for (float& x : *array) x = static_cast<float>(bfloat16(x));
    }
    calibatt_call raw = arrays.call();
    raw.layer = layer;
    raw.output = &output;
    return calibatt_session_attend(session, &raw);
  }
  const float* weight_gate() const { return gate.as<float>(); }
};

class CApiCudaRecording : public CApiCuda {
 protected:
  calibatt_status record(Denoiser& denoiser, const std::string& profile, const char* measure) {
    const Plan& plan = denoiser.plan;
    calibatt_run run = run_of(plan);
    run.device = denoiser.on_gpu ? 0 : CALIBATT_CPU;
    const calibatt_prompt prompts[] = {{"a", nullptr, 0}, {"b", nullptr, 1}};
    const calibatt_setting settings[] = {
        {"measure", measure}, {"block-q", "64"}, {"block-k", "64"}, {"token-order", "tiles:2x4x4"}, {"density", "0.6"}};
    auto calibration = sized<calibatt_calibration>();
    calibration.run = &run;
    calibration.prompts = prompts, calibration.num_prompts = 2;
    calibration.precision = "bf16";
    calibration.settings = settings, calibration.num_settings = 5;
    return calibatt_record(profile.c_str(), &calibration, Denoiser::run_prompt, &denoiser, nullptr);
  }
};

/// Root mean square of the difference over that of the values.
double relative_difference(const Tensor& a, const Tensor& b) {
  EXPECT_EQ(a.shape(), b.shape());
  const Tensor x = converted(a, DType::kF32), y = converted(b, DType::kF32);
  double difference = 0, size = 0;
  for (int64_t i = 0; i < x.size(); ++i) {
    difference += std::pow(x.f32()[i] - y.f32()[i], 2.0);
    size += std::pow(y.f32()[i], 2.0);
  }
  return std::sqrt(difference / size);
}

TEST_F(CApiCudaRecording, MeasuresWhatTheCpuMeasures) {
  const Plan plan(gpu_parts(false));
  for (const char* measure : {"maps", "levels"}) {
    Denoiser gpu(plan, true), cpu(plan, false);
    const cuda::Stream stream;
    gpu.stream = stream.get();
    const std::string name = measure;
    ASSERT_EQ(record(gpu, folder_.file(name + ".gpu"), measure), CALIBATT_OK) << calibatt_last_error();
    ASSERT_EQ(record(cpu, folder_.file(name + ".cpu"), measure), CALIBATT_OK) << calibatt_last_error();
    EXPECT_EQ(gpu.gains_asked, cpu.gains_asked);
    const Profile ours = load_profile(folder_.file(name + ".gpu")), theirs = load_profile(folder_.file(name + ".cpu"));
    ASSERT_EQ(ours.prompts.size(), theirs.prompts.size());
    for (size_t i = 0; i < ours.prompts.size(); ++i) {
      // The GPU rounds weights and outputs to bf16 (2⁻⁹); errors are small differences of outputs.
      if (name == "maps") {
        EXPECT_LT(relative_difference(ours.prompts[i].energy, theirs.prompts[i].energy), 0.01);
      }
      EXPECT_LT(relative_difference(ours.prompts[i].level_error, theirs.prompts[i].level_error), 0.05) << name;
    }
    const calibatt_setting settings[] = {{"density", "0.6"}};
    const std::string path = folder_.file(name + ".safetensors");
    ASSERT_EQ(
        calibatt_compile(folder_.file(name + ".gpu").c_str(), path.c_str(), settings, 1, nullptr, nullptr, nullptr),
        CALIBATT_OK)
        << calibatt_last_error();
    const OpenPlan open(path);
    const OpenSession session(open.plan, run_of(plan));
    ASSERT_EQ(session.status, CALIBATT_OK) << calibatt_last_error();
    run_all(plan, session.session, {nullptr});
  }
}

// ---- masks of one's own --------------------------------------------------------------------------------------------

TEST_F(CApiCuda, MasksAreComputedAsOnTheCpu) {
  constexpr int kTokens = 200, kHeads = 2, kDim = 64, kBlocks = 4;
  std::vector<uint8_t> kept(kHeads * kBlocks * kBlocks);
  for (size_t i = 0; i < kept.size(); ++i) kept[i] = i % 3 == 0 || i % kBlocks == 0;
  std::vector<float> results[2];
  for (const int device : {CALIBATT_CPU, 0}) {
    Arrays arrays(1, kTokens, kHeads, kDim, 6);
    std::vector<DeviceBuffer> buffers;
    const auto placed = [&](std::vector<float>& host) -> void* {
      if (device == CALIBATT_CPU) return host.data();
      buffers.emplace_back(host.size() * 4);
      check(cudaMemcpy(buffers.back().data(), host.data(), host.size() * 4, cudaMemcpyHostToDevice), "copying");
      return buffers.back().data();
    };
    auto masks = sized<calibatt_masks>();
    masks.device = device;
    masks.num_heads = kHeads, masks.num_queries = masks.num_keys = kTokens, masks.block_q = masks.block_k = 64;
    masks.kept = kept.data(), masks.summarize_skipped = 1;
    calibatt_schedule* schedule = nullptr;
    ASSERT_EQ(calibatt_schedule_make(&masks, &schedule), CALIBATT_OK) << calibatt_last_error();
    EXPECT_GT(calibatt_schedule_bytes(schedule), 0);
    auto call = sized<calibatt_attention_call>();
    call.device = device;
    call.dtype = CALIBATT_F32, call.out_f32 = 1;
    call.q = arrays.heads_of(placed(arrays.q)), call.k = arrays.heads_of(placed(arrays.k));
    call.v = arrays.heads_of(placed(arrays.v)), call.out = arrays.heads_of(placed(arrays.out));
    call.batch = 1, call.num_heads = kHeads, call.head_dim = kDim;
    call.num_queries = call.num_keys = kTokens, call.block_q = call.block_k = 64;
    call.scale = 0.125f;
    call.schedule = schedule;
    const char* kernel = nullptr;
    size_t bytes = 0;
    ASSERT_EQ(calibatt_attention_kernel(&call, &kernel, &bytes), CALIBATT_OK) << calibatt_last_error();
    const DeviceBuffer workspace = device == CALIBATT_CPU ? DeviceBuffer() : DeviceBuffer(bytes);
    call.workspace = workspace.data(), call.workspace_bytes = bytes;
    ASSERT_EQ(calibatt_attention(&call), CALIBATT_OK) << calibatt_last_error();
    if (device != CALIBATT_CPU) {
      check(cudaMemcpy(arrays.out.data(), call.out.data, arrays.out.size() * 4, cudaMemcpyDeviceToHost), "copying");
    }
    results[device == CALIBATT_CPU ? 0 : 1] = arrays.out;
    calibatt_schedule_free(schedule);
  }
  for (size_t i = 0; i < results[0].size(); ++i) ASSERT_NEAR(results[0][i], results[1][i], 1e-4) << i;
}

}  // namespace
}  // namespace calibatt::test
