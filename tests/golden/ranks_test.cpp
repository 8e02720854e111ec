// Several ranks against one: forwards of Wan's golden models, dense and planned, and videos of the small models. On a
// machine with fewer GPUs than ranks some share one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "backend/thread_ranks.h"
#include "calibatt/calibrate.h"
#include "golden_rank.h"
#include "io/safetensors.h"
#include "models/wan/transformer.h"
#include "pipeline/runner.h"
#include "relative_error.h"
#include "transformer_golden.h"

namespace calibatt {
namespace {

using ::testing::HasSubstr;

struct Ranks : GoldenRanks<WanTransformer> {
  Ranks() : GoldenRanks("transformer") {}

  Tensor forward(WanTransformer& model, RunAttention& attention,
                 const WanTransformer::BlockObserver& observer = {}) const {
    attention.begin_forward(0, GuidanceBranch::kConditional);
    const WanPrompt prompt =
        model.prepare_prompt(golden("text"), static_cast<int>(golden("max_length").data<int64_t>()[0]));
    return model.forward(golden("latents"), golden("timestep").f32()[0], prompt, attention, nullptr, observer);
  }
  Tensor alone(bool planned) const {
    const auto backend = make_backend(name_);
    WanTransformer model = load(*backend);
    const RunDescription run = describe(model);
    const auto attention = make_run_attention(*backend, planned ? plan_for(run) : nullptr, run);
    return forward(model, *attention);
  }
  /// Every rank's prediction.
  std::vector<Tensor> together(int num_ranks, const Loading& loading) const {
    std::vector<Tensor> outputs(static_cast<size_t>(num_ranks));
    on_ranks(num_ranks, loading, [&](const LoadedRank<WanTransformer>& at) {
      outputs[static_cast<size_t>(at.index)] = forward(at.model, at.attention);
    });
    return outputs;
  }
  /// The same where each rank keeps a part of the weights; a second forward is the first.
  std::vector<Tensor> with_shards(int num_ranks, bool planned, bool on_the_host) const {
    std::vector<Tensor> outputs(static_cast<size_t>(num_ranks));
    on_ranks(num_ranks, in_parts(num_ranks, planned, on_the_host), [&](const LoadedRank<WanTransformer>& at) {
      Tensor& output = outputs[static_cast<size_t>(at.index)] = forward(at.model, at.attention);
      EXPECT_EQ(relative_error(forward(at.model, at.attention), output), 0);
    });
    return outputs;
  }
  Loading in_parts(int num_ranks, bool planned, bool on_the_host) const {
    return {.planned = planned, .options = [shards = shards_of(num_ranks), on_the_host](int rank) {
              return ModelLoadOptions{.offload = on_the_host, .shards = {shards, rank}};
            }};
  }
  std::shared_ptr<WeightShards> shards_of(int num_ranks) const {
    std::vector<int> devices;
    for (int rank = 0; rank < num_ranks; ++rank) devices.push_back(name_ == "cpu" ? 0 : device_of(rank));
    return std::make_shared<WeightShards>(devices);
  }
};

TEST_P(Ranks, PredictWhatOneDoes) {
  for (const bool planned : {false, true}) {
    const Tensor expected = alone(planned);
    for (const int num_ranks : {1, 2, 3, 5}) {  // more than heads, too
      for (const Tensor& output : together(num_ranks, {.planned = planned})) {
        EXPECT_LT(relative_error(output, expected), rounding_of(name_))
            << num_ranks << " ranks" << (planned ? ", planned" : "");
        if (!planned) {
          EXPECT_LT(relative_error(output, golden("output")), 1e-5);
        }
      }
    }
  }
}

// What is gathered is the same numbers at other addresses: every bit of the result must stay.
TEST_P(Ranks, WithPartsOfTheWeightsPredictWhatTheyDoWithAll) {
  for (const bool planned : {false, true}) {
    for (const int num_ranks : {2, 3, 5}) {
      const std::vector<Tensor> whole = together(num_ranks, {.planned = planned});
      for (const bool on_the_host : {false, true}) {
        const std::vector<Tensor> parts = with_shards(num_ranks, planned, on_the_host);
        for (size_t rank = 0; rank < whole.size(); ++rank) {
          EXPECT_EQ(std::memcmp(parts[rank].raw(), whole[rank].raw(), whole[rank].size_bytes()), 0)
              << "rank " << rank << " of " << num_ranks << (planned ? ", planned" : "")
              << (on_the_host ? ", offloaded" : "");
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Ranks,
                         testing::Combine(kBackends,
                                          testing::Values(GoldenCase{"tiny", "odd"}, GoldenCase{"head128", "line"},
                                                          GoldenCase{"plain", "odd"}, GoldenCase{"patches", "odd"})),
                         backend_and_case);

struct RanksOfTiny : Ranks {};

TEST_P(RanksOfTiny, OneThatFailsWithinAForwardEndsAllWithItsReason) {
  const std::optional<Error> error = error_on_ranks(3, [&](const LoadedRank<WanTransformer>& at) {
    forward(at.model, at.attention, [&](int layer, const Tensor&) {
      if (at.index == 1 && layer == 0) throw Error(ErrorKind::kDevice, "layer 0: the GPU is lost");
    });
  });
  ASSERT_TRUE(error) << "nothing was thrown";
  EXPECT_STREQ(error->what(), "rank 1 of 3: layer 0: the GPU is lost");
}

// A row's scale is its own, whichever rank has it.
TEST_P(RanksOfTiny, ComputeIn8BitsAsOneDoes) {
  if (name_ != "cpu") GTEST_SKIP() << "widths that tensor cores do not take";
  const auto backend = make_backend(name_);
  WanTransformer model = load(*backend, {.eight_bit_layers = true}, DType::kBF16);
  const auto attention = make_run_attention(*backend, nullptr, describe(model));
  const Tensor alone = forward(model, *attention);
  EXPECT_GT(relative_error(alone, golden("output")), 1e-2) << "not in 8 bits";
  const Loading loading{.dtype = DType::kBF16,
                        .options = [](int) { return ModelLoadOptions{.eight_bit_layers = true}; }};
  for (const int num_ranks : {2, 3}) {
    for (const Tensor& output : together(num_ranks, loading)) {
      EXPECT_LT(relative_error(output, alone), 5e-3) << num_ranks << " ranks";
    }
  }
}

// Before its part is there, and after.
TEST_P(RanksOfTiny, OneThatFailsWithAPartOfTheWeightsEndsAllWithItsReason) {
  for (const bool loaded : {false, true}) {
    for (int failing = 0; failing < 3; ++failing) {
      Loading loading = in_parts(3, false, false);
      loading.options = [&, part = loading.options](int rank) {
        ModelLoadOptions options = part(rank);
        options.progress = [=](int layer, int, double) {
          if (!loaded && rank == failing && layer == 1) throw Error(ErrorKind::kDevice, "the GPU is lost");
        };
        return options;
      };
      const auto fails = [&](const LoadedRank<WanTransformer>& at) {
        forward(at.model, at.attention, [&](int layer, const Tensor&) {
          if (loaded && at.index == failing && layer == 0) throw Error(ErrorKind::kDevice, "the GPU is lost");
        });
      };
      const std::optional<Error> error = error_on_ranks(3, fails, loading);
      ASSERT_TRUE(error) << "nothing was thrown";
      EXPECT_EQ(error->what(), "rank " + std::to_string(failing) + " of 3: the GPU is lost");
    }
  }
}

TEST_P(RanksOfTiny, MoreThanTokensAreRefused) {
  const std::optional<Error> error = error_on_ranks(2, [&](const LoadedRank<WanTransformer>& at) {
    const auto [frames, height, width] = at.model.config().patch_size;
    RunDescription run = describe(at.model);
    run.geometry = at.model.geometry(frames, height, width);
    const auto attention = at.rank.attention(nullptr, run);
    at.model.forward(Tensor::zeros(DType::kF32, {at.model.config().in_channels, frames, height, width}), 3,
                     at.model.prepare_prompt(golden("text")), *attention);
  });
  ASSERT_TRUE(error) << "it was computed";
  EXPECT_EQ(error->kind(), ErrorKind::kUsage);
  EXPECT_THAT(error->what(), HasSubstr("1 token cannot be shared by 2 ranks"));
}

INSTANTIATE_TEST_SUITE_P(Models, RanksOfTiny, testing::Combine(kBackends, testing::Values(GoldenCase{"tiny", "odd"})),
                         backend_and_case);

/// A small model's video of three steps with guidance, on a backend.
struct RanksVideo : testing::TestWithParam<std::tuple<std::string, std::string>> {
  void SetUp() override {
    if (backend_or_null(name_) == nullptr) GTEST_SKIP() << kNoDevice;
  }
  GenerateOptions options() const {
    GenerateOptions options;
    options.prompt = "a red circle moves left";
    options.seed = 3;
    options.steps = 3;
    options.width = options.height = 128;
    options.video_frames = model_ == "tiny-wan" ? 17 : 13;
    return options;
  }
  /// By this rank, or alone; empty where another rank makes it.
  VideoFrames video(Communicator* hosts, bool planned) const {
    LoadOptions load;
    load.model_dir = std::string(CALIBATT_MODELS_DIR) + "/" + model_;
    load.precision = Precision::kF32;
    load.backend = name_;
    if (hosts != nullptr && name_ != "cpu") load.devices = {device_of(hosts->rank())};
    Runner runner(load);
    const GenerateOptions resolved = runner.resolved(options());
    const RunDescription run = runner.describe_attention(resolved);
    const auto plan = planned ? random_plan(run, name_ == "cpu" ? 8 : 64) : nullptr;
    Backend& backend = runner.backend();
    std::unique_ptr<Communicator> device_ranks;
    std::optional<SequenceParallelEngine> shared;
    if (hosts != nullptr) {
      device_ranks = backend.join(*hosts);
      shared.emplace(backend, backend, device_ranks ? *device_ranks : *hosts, run.geometry.num_tokens());
    }
    const auto attention = make_run_attention(shared ? static_cast<AttentionEngine&>(*shared) : backend, plan, run);
    TransformerTimes times;
    const Tensor latents = runner.denoise(resolved, *runner.encode(resolved, {}), *attention, times, {});
    EXPECT_EQ(attention->report().density < 0.9, planned);
    return hosts == nullptr || hosts->rank() == 0 ? runner.decode(latents, {}) : VideoFrames();
  }

  std::string name_ = std::get<0>(GetParam()), model_ = std::get<1>(GetParam());
};

TEST_P(RanksVideo, IsThatOfOneRank) {
  for (const bool planned : {false, true}) {
    const VideoFrames alone = video(nullptr, planned);
    for (const int num_ranks : {2, 3}) {  // of four heads, or six
      VideoFrames together;
      run_ranks(num_ranks, [&](Communicator& hosts) {
        VideoFrames made = video(&hosts, planned);
        if (hosts.rank() == 0) together = std::move(made);
      });
      const double psnr_db = compare_videos(together, alone).psnr_db;
      EXPECT_GE(psnr_db, 50) << num_ranks << " ranks" << (planned ? ", planned" : "");
      RecordProperty((planned ? "psnr_db_planned_" : "psnr_db_dense_") + std::to_string(num_ranks),
                     std::to_string(psnr_db));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, RanksVideo,
                         testing::Combine(kBackends, testing::Values(std::string("tiny-wan"), "tiny-mochi")),
                         [](const auto& info) {
                           return std::get<0>(info.param) + "_" + std::get<1>(info.param).substr(5);
                         });

// Each measures prompts of its own, at steps of its own.
TEST(CalibrationOnRanks, HoldsAllWeightsOnEach) {
  LoadOptions load;
  load.model_dir = std::string(CALIBATT_MODELS_DIR) + "/tiny-wan";
  load.backend = "cpu";
  load.devices = {0, 0};
  load.shard_weights = ShardWeights::kOn;
  const std::unique_ptr<Pipeline> pipeline = Pipeline::load(load);
  try {
    calibrate(*pipeline, {}, "never.safetensors");
    ADD_FAILURE() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    EXPECT_THAT(error.what(), HasSubstr("shard_weights off"));
  }
}

}  // namespace
}  // namespace calibatt
