#include "models/mochi/model.h"

#include <cmath>
#include <optional>

#include "attention/run_attention.h"
#include "backend/cpu/make_backend.h"
#include "base/random.h"
#include "models/mochi/memory.h"
#include "models/mochi/transformer.h"
#include "models/t5/encoder.h"
#include "models/test_model_folder.h"
#include "models/weight_overlay.h"
#include "text/tokenizer.h"

namespace calibatt {
namespace {

using testing::AllOf;
using testing::HasSubstr;

const std::string kSmall = std::string(CALIBATT_GOLDEN_DIR) + "/mochi_pipeline/model";

class MochiModel : public LinkedModelTest {
 protected:
  MochiModel() : LinkedModelTest(kSmall) {}

  std::unique_ptr<VideoModel> load(const ModelLoadOptions& options = {}) {
    return open_model(folder_.path())->load(*backend_, DType::kF32, options);
  }
  Tensor forward(VideoModel& model, const std::string& prompt, double sigma) {
    const auto conditioning = model.encode({prompt, "test"}, nullptr, {});
    DenseAttention attention(*backend_, 1, 3);
    attention.begin_forward(0, GuidanceBranch::kConditional);
    TransformerTimes times;
    return model.forward(latents_, {sigma, 1000 * sigma, 1, 0}, GuidanceBranch::kConditional, *conditioning, attention,
                         times, {});
  }

  std::unique_ptr<Backend> backend_ = make_backend("cpu");
  Tensor latents_ = TorchGenerator(1).randn({12, 2, 6, 4});
};

TEST_F(MochiModel, IsDescribedByItsSettings) {
  const std::unique_ptr<ModelFiles> files = open_model(folder_.path());
  const ModelDescription& model = files->description();
  EXPECT_EQ(model.kind, "MochiTransformer3DModel");
  EXPECT_EQ(model.num_layers, 3);
  EXPECT_EQ(model.latent_size({163, 480, 848}), (std::array<int, 3>{28, 60, 106}));
  EXPECT_EQ(model.geometry({163, 480, 848}).num_tokens(), 44520);
  EXPECT_EQ(model.geometry({163, 480, 848}).text_tokens, 0);
  EXPECT_EQ(model.scheduler.refusal, "");
  EXPECT_EQ(model.scheduler.spacing, SchedulerConfig::Spacing::kLinearQuadratic);
  EXPECT_EQ(model.defaults.video_frames, 163);
  set("scheduler/scheduler_config.json", "invert_sigmas", false);
  EXPECT_THAT(open_model(folder_.path())->description().scheduler.refusal, HasSubstr("invert_sigmas"));
}

TEST_F(MochiModel, ComponentsOfDifferentModelsAreRefusedBeforeAnythingIsLoaded) {
  const std::string transformer = "transformer/config.json";
  set(transformer, "in_channels", 16);
  expect_refused(ErrorKind::kMismatch, {"VAE", "12", "in_channels 16", "not of one model"});
  set(transformer, "in_channels", 12);
  set(transformer, "text_embed_dim", 64);
  expect_refused(ErrorKind::kMismatch, {"text encoder", "32", "text_embed_dim 64"});
  set(transformer, "text_embed_dim", 36);
  expect_refused(ErrorKind::kFormat, {"text_embed_dim", "multiple of 8"});
  set(transformer, "text_embed_dim", 32);
  set(transformer, "activation_fn", "gelu");
  expect_refused(ErrorKind::kFormat, {"activation_fn", "swiglu", "gelu"});
}

TEST_F(MochiModel, PartsFromElsewhereAreRefusedByTheirFlags) {
  try {
    open_model(folder_.path(),
               {.transformer = "a.safetensors", .text_encoder = "", .vae = "", .second_transformer = ""});
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage);
    EXPECT_THAT(error.what(), AllOf(HasSubstr("--transformer"), HasSubstr("Mochi")));
  }
}

TEST_F(MochiModel, ConfigurationAndWeightsMustBeOfOneModel) {
  const auto message = [&] {
    try {
      load();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kFormat);
      return std::string(error.what());
    }
    return std::string();
  };
  set("transformer/config.json", "num_layers", 2);
  EXPECT_THAT(message(), HasSubstr("norm1_context.linear_1"));  // only the last layer has that
  set("transformer/config.json", "num_layers", 4);
  EXPECT_THAT(message(), HasSubstr("transformer_blocks.2.norm1_context.linear.weight"));
  set("transformer/config.json", "num_layers", 3);
  set("transformer/config.json", "pooled_projection_dim", 56);
  EXPECT_THAT(message(), AllOf(HasSubstr("caption_proj"), HasSubstr("56"), HasSubstr("48")));
}

TEST_F(MochiModel, UnreadSettingsAreNamed) {
  set("transformer/config.json", "gates_per_head", true);
  std::vector<std::string> warnings;
  load({.warn = [&](const std::string& message) { warnings.push_back(message); }});
  EXPECT_THAT(warnings, testing::ElementsAre(AllOf(HasSubstr("transformer"), HasSubstr("gates_per_head"))));
}

// Time runs the other way than the scheduler's, and the transformer's answer is turned around.
TEST_F(MochiModel, AForwardIsTheNegativeOfTheTransformersAtItsOwnTime) {
  const auto model = load();
  const std::string prompt = "a red circle";
  const Tensor found = forward(*model, prompt, 0.9875);

  MochiTransformer transformer = MochiTransformer::load(*backend_, folder_ / "transformer", DType::kF32);
  const T5Encoder encoder = T5Encoder::open(*backend_, folder_ / "text_encoder", DType::kF32);
  const Tensor text = encoder.encode(Tokenizer::load(folder_ / "tokenizer").encode(prompt));
  DenseAttention attention(*backend_, 1, 3);
  const Tensor own =
      transformer.forward(latents_, (1.0f - 0.9875f) * 1000.0f, transformer.prepare_prompt(text), attention);
  for (int64_t i = 0; i < own.size(); ++i) ASSERT_EQ(found.f32()[i], -own.f32()[i]);
}

TEST_F(MochiModel, AnEmptyPromptIsNoTextWhereTheFolderSaysSo) {
  const auto seen = [&](const std::string& prompt) {
    class Count final : public SelfAttention {
     public:
      void attend(int, const AttentionGeometry& geometry, ConstHeadsView q, ConstHeadsView, ConstHeadsView,
                  HeadsView out, const OutputContext&) override {
        text_tokens = geometry.text_tokens;
        EXPECT_EQ(q.num_tokens, geometry.num_tokens());
        std::fill_n(static_cast<float*>(out.data), out.num_tokens * out.token_stride, 0.0f);
      }
      int text_tokens = -1;
    } count;
    const auto model = load();
    const auto conditioning = model->encode({prompt, "test"}, nullptr, {});
    TransformerTimes times;
    model->forward(latents_, {0.5, 500, 1, 0}, GuidanceBranch::kConditional, *conditioning, count, times, {});
    return count.text_tokens;
  };
  EXPECT_EQ(seen(""), 0);
  EXPECT_GE(seen(" "), 1);
  EXPECT_GE(seen("a red circle"), 3);
  EXPECT_EQ(seen(std::string(2000, 'q')), 256);
  set("model_index.json", "force_zeros_for_empty_prompt", false);
  EXPECT_EQ(seen(""), 1);  // the end of the sequence
}

TEST_F(MochiModel, AnOverlayIsSeenByLayersAndFingerprint) {
  const auto plain = load();
  auto overlay = std::make_shared<WeightOverlay>();
  Tensor delta(DType::kF32, {3, 2, 16});
  std::fill_n(delta.f32(), delta.size(), 0.25f);
  overlay->add("pos_frequencies", delta);
  const auto changed = load({.overlay = overlay});
  EXPECT_NE(plain->fingerprint(0, "", {}), changed->fingerprint(0, "", {}));
  EXPECT_NE(plain->fingerprint(0, "", {}), "");
  const Tensor a = forward(*plain, "a", 0.5), b = forward(*changed, "a", 0.5);
  double difference = 0;
  for (int64_t i = 0; i < a.size(); ++i) difference += std::abs(a.f32()[i] - b.f32()[i]);
  EXPECT_GT(difference, 0);
}

TEST(MochiMemory, LayersIn8BitsTakeAByteForAnElementOfTheVideosStream) {
  const std::unique_ptr<ModelFiles> files = open_model(std::string(CALIBATT_MODELS_DIR) + "/tiny-mochi");
  constexpr uint64_t kLayers = 6, kSquare = 384 * 384, kFeedForward = 384 * 1024,
                     kBlock = 4 * kSquare + 3 * kFeedForward;
  const VideoSize size{97, 256, 256};
  const uint64_t bf16 = files->memory(size, DType::kBF16).weights;
  const MemoryEstimate eight_bits = files->memory(size, {DType::kBF16, true}),
                       both = files->memory(size, {DType::kBF16, true, true});
  EXPECT_EQ(eight_bits.weights, bf16 - kLayers * kBlock);
  EXPECT_EQ(both.weights, eight_bits.weights);
  EXPECT_EQ(both.activations, eight_bits.activations + 2 * 2 * kBlock) << "two blocks at a time, in bfloat16";
  EXPECT_EQ(files->kept_layer_bytes({}, DType::kBF16), 0u);
  EXPECT_EQ(files->kept_layer_bytes({"ff.net.0"}, DType::kBF16), kLayers * 2 * kFeedForward);
  EXPECT_EQ(files->kept_layer_bytes({"to_k"}, DType::kBF16), kLayers * 3 * kSquare)
      << "stacked with queries and values";
  EXPECT_EQ(files->kept_layer_bytes({"transformer_blocks.1"}, DType::kF32), 3 * kBlock);
  EXPECT_TRUE(files->keeps_all_layers({"transformer_blocks"}));
  EXPECT_FALSE(files->keeps_all_layers({"attn1", "ff.net.0"}));
  for (const char* none : {"attn1.to_add_out", "norm1.linear", "ff_context.net.2", "blocks.0"}) {
    try {
      files->kept_layer_bytes({none}, DType::kBF16);
      ADD_FAILURE() << none;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      EXPECT_THAT(error.what(), AllOf(HasSubstr(none), HasSubstr("transformer_blocks.0 to transformer_blocks.5")));
    }
  }
}

// The published model: 10 billion parameters, 163 frames of 848×480.
TEST(MochiMemory, OfTheFullSizeFitsOnOneCard) {
  const uint64_t bytes = mochi_activation_bytes(MochiTransformerConfig(), 44520, 256, DType::kBF16);
  EXPECT_GT(bytes, 3'200'000'000u);  // 2.2 GB of it are the feed-forward's, of all tokens at a time
  EXPECT_LT(bytes, 3'400'000'000u);  // a table of all heads' angles would take 1.1 GB more
  const uint64_t eight_bits = mochi_activation_bytes(MochiTransformerConfig(), 44520, 256, {DType::kBF16, true});
  EXPECT_EQ(eight_bits, bytes + uint64_t{44520} * 3072) << "norms in 8 bits";
  // A quarter of the tokens, and at most 7 of the 24 heads of all: q, k, v and the output.
  const uint64_t of_four =
      mochi_activation_bytes(MochiTransformerConfig(), 44520, 256, {DType::kBF16, false, false, 4});
  EXPECT_GT(of_four, bytes / 4 + uint64_t{4} * 44520 * 7 * 128 * 2);
  EXPECT_LT(of_four, bytes / 4 + uint64_t{4} * 44776 * 7 * 128 * 2 + 60'000'000) << "text and patches are not shared";
}

}  // namespace
}  // namespace calibatt
