// The shipped transformer, loaded in every way there is: the result must not depend on it by a bit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "backends.h"
#include "base/random.h"
#include "dense_attention.h"
#include "io/safetensors.h"
#include "models/test_original_names.h"
#include "models/wan/transformer.h"

namespace calibatt {
namespace {

namespace fs = std::filesystem;
const std::string kTransformer = CALIBATT_MODELS_DIR "/tiny-wan/transformer";
constexpr int kLayers = 8;

class TransformerLoading : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (backend_ == nullptr) GTEST_SKIP() << kNoDevice;
    fs::create_directories(folder_);
  }
  ~TransformerLoading() override { fs::remove_all(folder_); }

  /// Two forwards with different prompts, one after the other.
  std::vector<Tensor> run(WanTransformer& model) const {
    const Tensor text = TorchGenerator(5).randn({7, model.config().text_dim});
    const Tensor latents = TorchGenerator(6).randn({16, 3, 8, 10});
    const WanPrompt one = model.prepare_prompt(text),
                    other = model.prepare_prompt(TorchGenerator(8).randn({2, model.config().text_dim}));
    GoldenDenseAttention attention(*backend_);
    return {model.forward(latents, 700, one, attention), model.forward(latents, 700, other, attention)};
  }
  std::vector<Tensor> load_and_run(const std::string& folder, DType dtype, const ModelLoadOptions& options = {}) const {
    WanTransformer model = WanTransformer::load(*backend_, folder, dtype, options);
    return run(model);
  }
  static void expect_same(const std::vector<Tensor>& found, const std::vector<Tensor>& expected) {
    ASSERT_EQ(found.size(), expected.size());
    for (size_t i = 0; i < found.size(); ++i) {
      ASSERT_EQ(found[i].size_bytes(), expected[i].size_bytes());
      EXPECT_EQ(std::memcmp(found[i].raw(), expected[i].raw(), expected[i].size_bytes()), 0) << "forward " << i;
    }
  }
  void copy_config() const {
    fs::copy(kTransformer + "/config.json", folder_ / "config.json", fs::copy_options::overwrite_existing);
  }

  std::unique_ptr<Backend> backend_ = backend_or_null(GetParam());
  fs::path folder_ = fs::temp_directory_path() / ("calibatt_loading_" + std::to_string(getpid()));
};

TEST_P(TransformerLoading, OriginalNamesMakeTheSameModel) {
  const Safetensors ours = Safetensors::open_folder(kTransformer);
  const auto theirs = test::OriginalNames(CALIBATT_GOLDEN_DATA, "transformer").original_of(ours);
  ASSERT_EQ(theirs.size(), ours.entries().size());
  write_safetensors(folder_ / "diffusion_pytorch_model.safetensors", theirs);
  const auto config = nlohmann::json::parse(std::ifstream(kTransformer + "/config.json"));
  std::ofstream(folder_ / "config.json") << nlohmann::json{{"_class_name", "WanModel"},
                                                           {"model_type", "t2v"},
                                                           {"dim", 256},
                                                           {"num_heads", 4},
                                                           {"num_layers", kLayers},
                                                           {"ffn_dim", config["ffn_dim"]},
                                                           {"freq_dim", 256},
                                                           {"text_dim", 256},
                                                           {"in_dim", 16},
                                                           {"out_dim", 16},
                                                           {"eps", 1e-6},
                                                           {"text_len", 512}};
  expect_same(load_and_run(folder_, DType::kF32), load_and_run(kTransformer, DType::kF32));
}

// bf16 numbers are float32 numbers: converting a float32 file on the way gives back the bits of the bf16 one.
TEST_P(TransformerLoading, ShardsInFloat32MakeTheSameModel) {
  copy_config();
  const Safetensors stored = Safetensors::open_folder(kTransformer);
  constexpr int kShards = 3;
  std::vector<std::map<std::string, Tensor>> shards(kShards);
  nlohmann::json index;
  int turn = 0;
  for (const auto& [name, entry] : stored.entries()) {
    const int shard = turn++ % kShards;
    const std::string file = "diffusion_pytorch_model-0000" + std::to_string(shard) + "-of-00003.safetensors";
    shards[static_cast<size_t>(shard)][name] = converted(converted(stored.get(name), DType::kBF16), DType::kF32);
    index["weight_map"][name] = file;
  }
  for (int shard = 0; shard < kShards; ++shard) {
    write_safetensors(folder_ / ("diffusion_pytorch_model-0000" + std::to_string(shard) + "-of-00003.safetensors"),
                      shards[static_cast<size_t>(shard)]);
  }
  std::ofstream(folder_ / "diffusion_pytorch_model.safetensors.index.json") << index;
  expect_same(load_and_run(folder_, DType::kBF16), load_and_run(kTransformer, DType::kBF16));
}

TEST_P(TransformerLoading, ReportsEveryBlockAndCanBeEndedByAnException) {
  double last = -1;
  ModelLoadOptions options;
  options.progress = [&](int done, int total, double within) {
    EXPECT_GT(done + within, last);  // several times in each block
    EXPECT_LE(done + within, std::floor(last) + 1);
    last = done + within;
    EXPECT_EQ(total, kLayers);
    if (last >= 5.5) throw std::runtime_error("enough");
  };
  EXPECT_THROW(WanTransformer::load(*backend_, kTransformer, DType::kBF16, options), std::runtime_error);
  EXPECT_EQ(last, 5.5);
}

// What is offloaded is the same numbers at other addresses: every bit of the result must stay.
TEST_P(TransformerLoading, OffloadedBlocksGiveTheSameBits) {
  if (backend_->in_host_memory()) GTEST_SKIP() << "this backend has no other memory";
  for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
    if (dtype == DType::kF16 && !backend_->has_fp16()) continue;
    const std::vector<Tensor> expected = load_and_run(kTransformer, dtype);
    WanTransformer model = WanTransformer::load(*backend_, kTransformer, dtype, {.offload = true});
    expect_same(run(model), expected);
    expect_same(run(model), expected);

    // A run that ends in the middle of a block, then another one.
    const Tensor text = TorchGenerator(5).randn({7, model.config().text_dim}),
                 latents = TorchGenerator(6).randn({16, 3, 8, 10});
    GoldenDenseAttention attention(*backend_);
    const WanPrompt prompt = model.prepare_prompt(text);
    EXPECT_THROW(model.forward(latents, 700, prompt, attention, nullptr,
                               [](int layer, const Tensor&) {
                                 if (layer == 4) throw std::runtime_error("interrupted");
                               }),
                 std::runtime_error);
    expect_same(run(model), expected);

    // Buffers on the device go and come again.
    model.release_buffers();
    backend_->trim_memory();
    expect_same(run(model), expected);
  }
}

TEST_P(TransformerLoading, OffloadedBlocksTakeTwoBuffersOfTheDevice) {
  if (backend_->in_host_memory()) GTEST_SKIP() << "this backend has no other memory";
  const auto peak_with = [&](bool offload) {
    backend_->trim_memory();
    backend_->reset_peak_memory();
    load_and_run(kTransformer, DType::kF32, {.offload = offload});
    return backend_->peak_memory_bytes();
  };
  constexpr size_t kWidth = 256, kHidden = 1024;
  constexpr size_t kBlock = sizeof(float) * (6 * kWidth * kWidth + 2 * kWidth * kHidden),
                   kPrompt = sizeof(float) * 2 * kWidth * kWidth;
  const size_t resident = peak_with(false), offloaded = peak_with(true);
  EXPECT_GE(resident - offloaded, kLayers * (kBlock + kPrompt) - 2 * kBlock - (size_t{1} << 20));
}

INSTANTIATE_TEST_SUITE_P(Backends, TransformerLoading, kBackends, [](const auto& info) { return info.param; });

}  // namespace
}  // namespace calibatt
