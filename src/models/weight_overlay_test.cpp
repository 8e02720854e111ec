#include "models/weight_overlay.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "attention/dense_call.h"
#include "backend/cpu/make_backend.h"
#include "base/error.h"
#include "base/random.h"
#include "io/fingerprint.h"
#include "io/safetensors.h"
#include "io/test_folder.h"
#include "models/original_layout.h"
#include "models/wan/transformer.h"

namespace calibatt {
namespace {

using testing::AllOf;
using testing::HasSubstr;

const std::string kTransformerFolder = CALIBATT_MODELS_DIR "/tiny-wan/transformer";
const std::string kQueryWeight = "blocks.1.attn1.to_q.weight", kOutputWeight = "blocks.2.attn1.to_out.0.weight";

template <class Action>
std::string overlay_refusal(const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kMismatch) << error.what();
    return error.what();
  }
  return "no error";
}

std::vector<float> values_of(const Tensor& tensor) {
  const Tensor wide = converted(tensor, DType::kF32);
  return {wide.f32(), wide.f32() + wide.size()};
}

/// tiny-wan's transformer with a delta on two matrices: laid over it, and saved with it.
class Overlay : public ::testing::Test {
 protected:
  Overlay() {
    const Component base = open_transformer(kTransformerFolder);
    auto overlay = std::make_shared<WeightOverlay>();
    std::map<std::string, Tensor> merged;
    for (const auto& [name, entry] : base.tensors.entries()) merged[name] = base.tensors.get(name);
    uint64_t seed = 1;
    for (const std::string& name : {kQueryWeight, kOutputWeight}) {
      const Tensor delta = TorchGenerator(seed++).randn(base.tensors.shape(name));
      overlay->add(name, delta);
      Tensor sum = converted(merged[name], DType::kF32).clone();
      for (int64_t i = 0; i < sum.size(); ++i) sum.f32()[i] += delta.f32()[i];
      merged[name] = converted(sum, merged[name].dtype());
    }
    options_.overlay = overlay;
    std::filesystem::copy(kTransformerFolder + "/config.json", folder_ / "config.json");
    write_safetensors(folder_ / "diffusion_pytorch_model.safetensors", merged);
  }
  TestFolder folder_;
  ModelLoadOptions options_;
};

TEST_F(Overlay, FingerprintsAreThoseOfTheMergedModel) {
  const Component base = open_transformer(kTransformerFolder), over = open_transformer(kTransformerFolder, options_),
                  merged = open_transformer(folder_.path());
  EXPECT_EQ(values_fingerprint("", over.tensors), values_fingerprint("", merged.tensors));
  EXPECT_EQ(stored_fingerprint(over.config, over.tensors), stored_fingerprint(merged.config, merged.tensors));
  EXPECT_NE(values_fingerprint("", over.tensors), values_fingerprint("", base.tensors));
  EXPECT_EQ(values_of(over.tensors.get(kOutputWeight)), values_of(merged.tensors.get(kOutputWeight)));
  EXPECT_EQ(values_of(open_transformer(kTransformerFolder).tensors.get(kOutputWeight)),
            values_of(base.tensors.get(kOutputWeight)));
}

TEST(WeightOverlay, ChangesAreMadeInTheirOrder) {
  const TestFolder folder;
  const auto filled = [](float value, DType dtype = DType::kF32) {
    Tensor tensor(DType::kF32, {2, 2});
    std::fill_n(tensor.f32(), 4, value);
    return converted(tensor, dtype);
  };
  write_safetensors(folder / "m.safetensors", {{"a", filled(1, DType::kBF16)}, {"b", filled(1)}});
  const Safetensors file = Safetensors::open(folder / "m.safetensors");
  WeightOverlay overlay;
  overlay.add("a", filled(100));
  overlay.replace("a", filled(4));
  overlay.add("a", filled(0.5, DType::kBF16));
  overlay.add("a", filled(0.0625f));
  const MappedTensors over = overlay.over(file);
  EXPECT_EQ(values_of(over.get("a")), std::vector<float>(4, 4.5625f));
  EXPECT_EQ(over.get("a").dtype(), DType::kBF16);
  EXPECT_EQ(values_of(over.get("b")), std::vector<float>(4, 1));
  EXPECT_EQ(values_of(over.renamed([](const std::string& name) { return "x" + name; }).get("xa")),
            std::vector<float>(4, 4.5625f));
}

TEST(WeightOverlay, OfAnotherModelIsRefused) {
  const Component base = open_transformer(kTransformerFolder);
  WeightOverlay other_name, other_shape;
  other_name.add("blocks.99.attn1.to_q.weight", Tensor::zeros(DType::kF32, {256, 256}));
  other_shape.add(kQueryWeight, Tensor::zeros(DType::kF32, {3, 5}));
  EXPECT_THAT(overlay_refusal([&] { other_name.over(base.tensors); }), HasSubstr("blocks.99.attn1.to_q.weight"));
  EXPECT_THAT(overlay_refusal([&] { other_shape.over(base.tensors); }),
              AllOf(HasSubstr("[256, 256]"), HasSubstr("[3, 5]")));
}

/// Dense; asks for W_o, as calibration does, and keeps it.
class Listener : public SelfAttention {
 public:
  explicit Listener(Backend& backend) : backend_(backend) {}
  bool wants_output_context() const override { return true; }
  void attend(int layer, const AttentionGeometry& geometry, ConstHeadsView q, ConstHeadsView k, ConstHeadsView v,
              HeadsView out, const OutputContext& context) override {
    backend_.attention(dense_call(geometry, q, k, v, out));
    if (layer == 2) output_weight = values_of(*context.output_weight);
  }
  std::vector<float> output_weight;

 private:
  Backend& backend_;
};

TEST_F(Overlay, LayersAndTheOutputWeightOfCalibrationSeeIt) {
  const auto backend = make_backend("cpu");
  const auto run = [&](const std::string& folder, const ModelLoadOptions& options) {
    WanTransformer model = WanTransformer::load(*backend, folder, DType::kF32, options);
    const WanPrompt prompt = model.prepare_prompt(TorchGenerator(5).randn({3, model.config().text_dim}), 512);
    Listener listener(*backend);
    const Tensor found = model.forward(TorchGenerator(6).randn({16, 1, 4, 4}), 500, prompt, listener);
    return std::pair(values_of(found), listener.output_weight);
  };
  const auto over = run(kTransformerFolder, options_), merged = run(folder_.path(), {}),
             base = run(kTransformerFolder, {});
  EXPECT_EQ(over.first, merged.first);
  EXPECT_NE(over.first, base.first);
  EXPECT_EQ(over.second, merged.second);
  EXPECT_NE(over.second, base.second);
}

}  // namespace
}  // namespace calibatt
