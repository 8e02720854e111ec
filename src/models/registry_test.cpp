#include "models/registry.h"

#include <map>

#include "io/safetensors.h"
#include "models/test_model_folder.h"

namespace calibatt {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

const std::string kTiny = std::string(CALIBATT_MODELS_DIR) + "/tiny-wan";

class Registry : public LinkedModelTest {
 protected:
  Registry() : LinkedModelTest(kTiny) {}
  std::string refusal(std::string ModelParts::*part, const std::string& path) const {
    ModelParts parts;
    parts.*part = path;
    try {
      open_model(folder_.path(), parts);
      return "accepted";
    } catch (const Error& error) {
      return error.what();
    }
  }
};

TEST_F(Registry, DescribesAModelFromItsSettingsAlone) {
  // Weights that cannot be read do not matter before they are loaded.
  const std::unique_ptr<ModelFiles> files = open_model(folder_.path());
  const ModelDescription& model = files->description();
  EXPECT_EQ(model.kind, "WanTransformer3DModel");
  EXPECT_EQ(model.name, fs::path(folder_.path()).filename().string());
  EXPECT_EQ(model.num_layers, 8);
  EXPECT_EQ(model.num_heads * model.head_dim, 256);
  EXPECT_EQ(model.experts.size(), 1u);
  EXPECT_EQ(model.defaults.video_frames, 65);
  EXPECT_EQ(model.latent_size({65, 256, 192}), (std::array<int, 3>{17, 32, 24}));
  const AttentionGeometry geometry = model.geometry({65, 256, 192});
  EXPECT_EQ(geometry.num_tokens(), 17 * 16 * 12);
  EXPECT_EQ(geometry.heads, model.num_heads);
}

TEST_F(Registry, MemoryGrowsWithTheVideoAndTheArithmetic) {
  const std::unique_ptr<ModelFiles> files = open_model(kTiny);
  const MemoryEstimate small = files->memory({17, 128, 128}, DType::kBF16),
                       large = files->memory({33, 256, 256}, DType::kBF16),
                       wide = files->memory({33, 256, 256}, DType::kF32);
  EXPECT_EQ(small.video, 17u * 128 * 128 * 3);
  EXPECT_EQ(small.weights, large.weights);
  EXPECT_EQ(wide.weights, 2 * large.weights);
  EXPECT_GT(large.activations, small.activations);
  EXPECT_GT(large.autoencoder, small.autoencoder);
  EXPECT_GT(wide.activations, large.activations);
  EXPECT_GT(large.peak(), large.weights);
  // A layer's six matrices of 256 x 256 and two of 256 x 1024, of 8 layers, take a byte each in place of two.
  const MemoryEstimate eight_bits = files->memory({33, 256, 256}, {DType::kBF16, true});
  EXPECT_EQ(eight_bits.weights, large.weights - uint64_t{8} * (6 * 256 * 256 + 2 * 256 * 1024));
  EXPECT_EQ(eight_bits.activations, large.activations + uint64_t{9} * 16 * 16 * 256) << "norms in 8 bits";
  // Two blocks at a time, in bfloat16.
  const MemoryEstimate both = files->memory({33, 256, 256}, {DType::kBF16, true, true});
  EXPECT_EQ(both.weights, eight_bits.weights);
  EXPECT_EQ(both.activations, eight_bits.activations + uint64_t{2} * 2 * (6 * 256 * 256 + 2 * 256 * 1024));
  EXPECT_EQ(both.autoencoder, eight_bits.autoencoder) << "buffers are given back before";
}

// It widens them to float32, and has no buffers: the layers of steps without 8 bits are beside them.
TEST_F(Registry, ACpuHoldsLayersIn8BitsWidened) {
  const std::unique_ptr<ModelFiles> files = open_model(kTiny);
  const auto of = [&](bool eight_bits, int wide_transformers, std::vector<std::string> kept = {}) {
    Arithmetic arithmetic{DType::kBF16, eight_bits, wide_transformers, 1, 1, 1, true};
    arithmetic.kept_layers = std::move(kept);
    return files->memory({33, 256, 256}, arithmetic);
  };
  constexpr uint64_t kElements = uint64_t{8} * (6 * 256 * 256 + 2 * 256 * 1024), kKept = uint64_t{8} * 256 * 1024;
  const MemoryEstimate plain = of(false, 0);
  EXPECT_EQ(of(true, 0).weights, plain.weights + 2 * kElements);
  EXPECT_EQ(of(true, 1).weights, plain.weights + 4 * kElements);
  EXPECT_EQ(of(true, 1).activations, of(true, 0).activations);
  EXPECT_EQ(of(true, 1, {"ffn.net.2"}).weights, plain.weights + 4 * (kElements - kKept));
}

// Reports name them so (weights_dtype_name).
TEST_F(Registry, QueriesKeysAndValuesAreKeptTogether) {
  for (const std::string& model : {kTiny, std::string(CALIBATT_MODELS_DIR) + "/tiny-mochi"}) {
    const std::unique_ptr<ModelFiles> files = open_model(model);
    const auto kept = [&](const std::vector<std::string>& layers) {
      return files->kept_layer_bytes(layers, DType::kBF16);
    };
    for (const std::string one : {"attn1.to_q", "attn1.to_k", "attn1.to_v"}) {
      EXPECT_EQ(kept({one}), kept({"attn1.to_q", "attn1.to_k", "attn1.to_v"})) << model << " " << one;
    }
  }
  const std::unique_ptr<ModelFiles> wan = open_model(kTiny);
  EXPECT_EQ(wan->kept_layer_bytes({"attn2.to_q"}, DType::kBF16), uint64_t{8} * 256 * 256);
}

TEST_F(Registry, MemoryIsThatOfOneOfTheRanksThatShareAForward) {
  const std::unique_ptr<ModelFiles> files = open_model(kTiny);
  const VideoSize size{33, 256, 256};
  const auto of_ranks = [&](int num_ranks) { return files->memory(size, {DType::kBF16, false, false, num_ranks}); };
  const MemoryEstimate alone = files->memory(size, DType::kBF16), two = of_ranks(2), four = of_ranks(4);
  EXPECT_EQ(of_ranks(1).activations, alone.activations);
  EXPECT_EQ(two.weights, alone.weights);
  EXPECT_EQ(two.autoencoder, alone.autoencoder);
  EXPECT_LT(two.activations, alone.activations);
  EXPECT_LT(four.activations, two.activations);
  // Less than a half goes: q, k, v and the output of the three heads (of four) that a rank may have are there beside.
  EXPECT_GT(two.activations, alone.activations / 2);
}

TEST_F(Registry, MemoryOfDecodingIsThatOfTheRowsOfARank) {
  for (const std::string& model : {kTiny, std::string(CALIBATT_MODELS_DIR) + "/tiny-mochi"}) {
    const std::unique_ptr<ModelFiles> files = open_model(model);
    const VideoSize size{31, 256, 256};
    const auto of_ranks = [&](int num_ranks) {
      return files->memory(size, {DType::kBF16, false, false, 1, num_ranks});
    };
    const auto decoding = [&](int num_ranks) { return of_ranks(num_ranks).autoencoder; };
    EXPECT_EQ(of_ranks(1).autoencoder, files->memory(size, DType::kBF16).autoencoder);
    EXPECT_EQ(of_ranks(2).activations, of_ranks(1).activations);
    EXPECT_LT(decoding(2), decoding(1));
    EXPECT_LT(decoding(4), decoding(2));
    EXPECT_EQ(decoding(2) - decoding(4), 2 * (decoding(4) - decoding(8))) << "but for the first rank's pixels, in rows";
  }
}

TEST_F(Registry, MemoryWithOffloadedBlocksHasTwoBuffersInTheirPlace) {
  constexpr uint64_t kForward = 6 * 256 * 256 + 2 * 256 * 1024;  // of tiny-wan
  for (const std::string& model : {kTiny, std::string(CALIBATT_MODELS_DIR) + "/tiny-mochi"}) {
    const std::unique_ptr<ModelFiles> files = open_model(model);
    const VideoSize size{31, 256, 256};
    const auto of = [&](bool eight_bits, bool wide_steps, std::vector<std::string> kept_layers = {}) {
      Arithmetic arithmetic{DType::kBF16, eight_bits, wide_steps, 1, 1, 1, false, true};
      arithmetic.kept_layers = std::move(kept_layers);
      return files->memory(size, arithmetic);
    };
    // As the files have them: matrices of the blocks go, everything else stays.
    uint64_t all = 0, blocks = 0, largest = 0;
    std::map<std::string, uint64_t> of_block;
    const Safetensors file = Safetensors::open_folder(model + "/transformer");
    for (const auto& [name, entry] : file.entries()) {
      uint64_t bytes = dtype_size(DType::kBF16);
      for (const int64_t extent : entry.shape) bytes *= static_cast<uint64_t>(extent);
      all += bytes;
      const size_t block = name.find("blocks.");
      if (block == std::string::npos || entry.shape.size() != 2) continue;
      blocks += bytes;
      largest = std::max(largest, of_block[name.substr(0, name.find('.', block + 7))] += bytes);
    }
    const MemoryEstimate whole = files->memory(size, DType::kBF16), offloaded = of(false, false);
    EXPECT_EQ(whole.weights, all);
    EXPECT_EQ(offloaded.weights, all - blocks);
    EXPECT_EQ(whole.host_weights, 0U);
    EXPECT_EQ(offloaded.host_weights, blocks);
    EXPECT_EQ(offloaded.autoencoder, whole.autoencoder) << "buffers are given back before";
    // In 8 bits the buffers are smaller, unless steps without them or layers that are kept need the room.
    const uint64_t buffers = offloaded.activations - whole.activations,
                   in_eight_bits = files->memory(size, {DType::kBF16, true}).activations;
    EXPECT_EQ(of(true, false).weights, offloaded.weights);
    EXPECT_LT(of(true, false).activations - in_eight_bits, buffers);
    EXPECT_GT(of(true, false, {"attn1.to_q"}).activations, of(true, false).activations);
    EXPECT_LT(of(true, false).host_weights, blocks);
    // Steps without 8 bits have theirs in host memory wherever the others are; of Mochi's blocks all, if these are
    // there.
    const uint64_t of_wide_steps = of(true, true).host_weights - of(true, false).host_weights,
                   beside_resident = files->memory(size, {DType::kBF16, true, true}).host_weights,
                   of_two_blocks = beside_resident / static_cast<uint64_t>(files->description().num_layers) * 2;
    EXPECT_EQ(of(true, true).activations - buffers,
              files->memory(size, {DType::kBF16, true, true}).activations - of_two_blocks);
    EXPECT_EQ(files->memory(size, {DType::kBF16, true, false}).host_weights, 0U);
    EXPECT_EQ(files->memory(size, {DType::kBF16, true, true, 1, 1, 1, true}).host_weights, 0U) << "a CPU computes";
    if (model == kTiny) {
      EXPECT_EQ(of_wide_steps, 8 * 2 * kForward);
      EXPECT_EQ(beside_resident, 8 * 2 * kForward);
      EXPECT_EQ(buffers, 2 * 2 * kForward);
    } else {
      EXPECT_EQ(of_wide_steps, blocks);
      EXPECT_GT(beside_resident, 0U);
      EXPECT_LT(beside_resident, blocks);
      EXPECT_EQ(buffers, 2 * largest);
    }
  }
}

TEST_F(Registry, MemoryOfRanksThatShareWeightsHasAPartOfEveryBlockAndTwoBuffers) {
  const std::unique_ptr<ModelFiles> files = open_model(kTiny);
  const VideoSize size{33, 256, 256};
  const auto of = [&](bool eight_bits, bool wide_steps, int weight_ranks) {
    return files->memory(size, {DType::kBF16, eight_bits, wide_steps, 1, 1, weight_ranks});
  };
  constexpr uint64_t kForward = 6 * 256 * 256 + 2 * 256 * 1024, kPrompt = 2 * 256 * 256, kLayers = 8;
  const MemoryEstimate whole = of(false, false, 1);
  for (const int num_ranks : {2, 3, 8}) {
    const auto ranks = static_cast<uint64_t>(num_ranks);
    const MemoryEstimate parts = of(false, false, num_ranks);
    EXPECT_EQ(parts.weights,
              whole.weights - 2 * kLayers * (kForward + kPrompt) + 2 * kLayers * (kForward + kPrompt) / ranks);
    EXPECT_EQ(parts.activations, whole.activations + 2 * 2 * kForward);
    EXPECT_EQ(parts.autoencoder, whole.autoencoder) << "buffers are given back before";
  }
  // In 8 bits what a prompt needs stays as it is; steps without 8 bits gather larger blocks, from host memory.
  const MemoryEstimate eight_bits = of(true, false, 2), with_wide = of(true, true, 2);
  EXPECT_EQ(eight_bits.weights,
            whole.weights - 2 * kLayers * (kForward + kPrompt) + kLayers * (kForward + 2 * kPrompt) / 2);
  EXPECT_EQ(eight_bits.activations, of(true, false, 1).activations + 2 * kForward);
  EXPECT_EQ(with_wide.weights, eight_bits.weights);
  EXPECT_EQ(with_wide.activations, of(true, false, 1).activations + 2 * 2 * kForward);
}

TEST_F(Registry, LayersThatStayBesideThoseIn8BitsTakeTheirBytes) {
  const std::unique_ptr<ModelFiles> files = open_model(kTiny);
  constexpr uint64_t kSquare = 256 * 256, kFeedForward = 256 * 1024;
  EXPECT_EQ(files->kept_layer_bytes({}, DType::kBF16), 0u);
  EXPECT_EQ(files->kept_layer_bytes({"ffn.net.2"}, DType::kBF16), 8 * kFeedForward);
  EXPECT_EQ(files->kept_layer_bytes({"ffn.net.2", "ffn"}, DType::kF32), 3 * 8 * 2 * kFeedForward);
  EXPECT_EQ(files->kept_layer_bytes({"blocks.1"}, DType::kBF16), 6 * kSquare + 2 * kFeedForward);
  EXPECT_EQ(files->kept_layer_bytes({"to_k"}, DType::kBF16), 8 * 3 * kSquare) << "stacked with queries and values";
  EXPECT_EQ(files->kept_layer_bytes({"blocks"}, DType::kBF16), 8 * (6 * kSquare + 2 * kFeedForward));
  EXPECT_TRUE(files->keeps_all_layers({"blocks"}));
  EXPECT_TRUE(files->keeps_all_layers({"attn2.to_q", "attn1.to_q", "to_out", "ffn"}))
      << "keys, values: as they are stacked";
  EXPECT_FALSE(files->keeps_all_layers({"attn1", "ffn"}));
  for (const char* none : {"0", "2", "0.proj", "proj_out", "net.1", "blocks.8", "ff", "attn2.to_k", ""}) {
    try {
      files->kept_layer_bytes({none}, DType::kBF16);
      ADD_FAILURE() << none;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      EXPECT_THAT(error.what(), HasSubstr(std::string("no layer \"") + none + "\" would be in 8 bits"));
    }
  }
}

TEST_F(Registry, APartThatIsNotThereIsNamedWithWhatLiesInItsPlace) {
  fs::remove_all(folder_ / "vae");
  EXPECT_THAT(
      refusal(&ModelParts::transformer, ""),
      AllOf(HasSubstr("vae: there is no such folder"), HasSubstr("model_index.json names it; copy the whole model")));
  // As a few-step model comes: what it changes alone.
  fs::remove_all(folder_ / "transformer");
  std::ofstream(folder_ / "lora.safetensors") << "…";
  EXPECT_THAT(refusal(&ModelParts::transformer, ""),
              AllOf(HasSubstr("lora.safetensors, a change to a model"), HasSubstr("--lora")));
}

TEST_F(Registry, ComponentsOfDifferentModelsAreRefusedBeforeAnythingIsLoaded) {
  const std::string transformer = "transformer/config.json", text = "text_encoder/config.json";
  set(transformer, "out_channels", 32);
  expect_refused(ErrorKind::kMismatch, {"out_channels 32", "16", "VAE", "not of one model"});
  set(transformer, "out_channels", 16);
  set(transformer, "in_channels", 8);
  expect_refused(ErrorKind::kMismatch, {"in_channels 8", "16"});
  set(transformer, "in_channels", 16);
  const nlohmann::json before = set(transformer, "text_dim", 128);
  expect_refused(ErrorKind::kMismatch, {"text encoder", "256", "text_dim 128"});
  set(transformer, "text_dim", before);
  open_model(folder_.path());
}

TEST_F(Registry, TheBoundaryOfTwoTransformersIsATimestepOfTheirScheduler) {
  fs::copy(folder_ / "transformer", folder_ / "transformer_2", fs::copy_options::recursive);
  edit("model_index.json", [](nlohmann::json& json) {
    json["transformer_2"] = json["transformer"];
    json["boundary_ratio"] = 0.875;
  });
  EXPECT_EQ(open_model(folder_.path())->description().experts.front().lowest_timestep, 875);
  set("scheduler/scheduler_config.json", "num_train_timesteps", 500);
  EXPECT_EQ(open_model(folder_.path())->description().experts.front().lowest_timestep, 437.5);

  // The other one would be dropped.
  const std::string file = kTiny + "/transformer/diffusion_pytorch_model.safetensors";
  EXPECT_THAT(refusal(&ModelParts::transformer, file),
              AllOf(HasSubstr("--transformer-2"), HasSubstr(folder_ / "transformer_2")));
  ModelParts both;
  both.transformer = file;
  both.second_transformer = folder_ / "transformer_2";
  EXPECT_EQ(open_model(folder_.path(), both)->description().experts.size(), 2u);
}

TEST_F(Registry, AWholeModelAsOnePartIsNamedWithThatPart) {
  EXPECT_THAT(refusal(&ModelParts::transformer, kTiny), HasSubstr("--transformer " + kTiny + "/transformer"));
  EXPECT_THAT(refusal(&ModelParts::text_encoder, kTiny), HasSubstr("--text-encoder " + kTiny + "/text_encoder"));
  EXPECT_THAT(refusal(&ModelParts::vae, kTiny), HasSubstr("--vae " + kTiny + "/vae"));
}

TEST_F(Registry, AnotherModelIsNamedWithThoseThatThisVersionRuns) {
  edit("model_index.json", [](nlohmann::json& json) { json["_class_name"] = "FluxPipeline"; });
  expect_refused(ErrorKind::kMismatch, {"is a FluxPipeline", "WanPipeline"});
  fs::remove(folder_ / "model_index.json");
  expect_refused(ErrorKind::kNotFound, {"model_index.json"});
}

TEST_F(Registry, ASchedulerOfAnotherKindIsNoReasonToRefuseTheModel) {
  edit("scheduler/scheduler_config.json", [](nlohmann::json& json) { json["use_karras_sigmas"] = true; });
  EXPECT_THAT(open_model(folder_.path())->description().scheduler.refusal, HasSubstr("use_karras_sigmas"));
}

}  // namespace
}  // namespace calibatt
