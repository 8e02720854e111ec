#include "models/wan/vae.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "damaged_model.h"
#include "decoder_golden.h"

namespace calibatt {
namespace {

struct GoldenVae : DecoderGolden<WanVae> {
  GoldenVae() : DecoderGolden("vae") {}
};

TEST_P(GoldenVae, DecodesAsDiffusersDoes) {
  expect_decoded_as_diffusers_does();
}

TEST_P(GoldenVae, EncodesAsDiffusersDoes) {
  const WanVae vae = WanVae::load(folder, *backend, DType::kF32);
  for (const std::string& name : cases()) {
    const Tensor expected = golden.get(name + ".encoded");
    const Tensor found = vae.encode(golden.get(name + ".video"));
    ASSERT_EQ(found.shape(), expected.shape()) << name;
    EXPECT_LT(relative_error(found, expected), 1e-4) << name;
  }
}

TEST_P(GoldenVae, IsTheSameWithBiasesAddedByNormsOrByConvolutions) {
  const WanVae at_once = WanVae::load(folder, *backend, DType::kF32, {.defers_bias = false});
  const WanVae deferred = WanVae::load(folder, *backend, DType::kF32, {.defers_bias = true});
  expect_same_decoded(deferred, at_once);
  for (const std::string& name : cases()) {
    const Tensor video = golden.get(name + ".video");
    EXPECT_LT(relative_error(deferred.encode(video), at_once.encode(video)), 1e-5) << name;
  }
}

TEST_P(GoldenVae, IsTheSameInLongerGroups) {
  expect_same_decoded(WanVae::load(folder, *backend, DType::kF32, {.defers_bias = {}, .latent_frames_at_once = 3}),
                      WanVae::load(folder, *backend, DType::kF32));
}

TEST_P(GoldenVae, InBfloat16StaysCloseToFloat32) {
  expect_bfloat16_close_to_float32();
  const WanVae vae = WanVae::load(folder, *backend, DType::kBF16);
  for (const std::string& name : cases()) {
    EXPECT_LT(relative_error(vae.encode(golden.get(name + ".video")), golden.get(name + ".encoded")), 0.03) << name;
  }
}

TEST_P(GoldenVae, DoesNotDependOnTheNumberOfThreads) {
  expect_same_on_any_number_of_threads();
}

TEST_P(GoldenVae, GivesFramesAsBytesAndReportsProgress) {
  expect_frames_as_bytes_and_progress();
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenVae,
                         testing::Combine(testing::Values("wan21", "tiny", "odd", "wan22", "wan22_odd"), kBackends),
                         model_and_backend);

struct DamagedVae : DamagedModel<WanVae> {
  DamagedVae() : DamagedModel("vae/odd") {}
};

TEST_F(DamagedVae, MissingTensorIsNamed) {
  edit_weights([](auto& tensors) { tensors.erase("decoder.mid_block.resnets.1.conv2.bias"); });
  expect_error(ErrorKind::kFormat, {"diffusion_pytorch_model.safetensors", "decoder.mid_block.resnets.1.conv2.bias"});
}

TEST_F(DamagedVae, MisshapedTensorIsNamedWithBothShapes) {
  edit_weights([](auto& tensors) { tensors["quant_conv.weight"] = Tensor::zeros(DType::kF32, {6, 5, 1, 1, 1}); });
  expect_error(ErrorKind::kFormat, {"quant_conv.weight", "[6, 5, 1, 1, 1]", "[6, 6, 1, 1, 1]"});
}

TEST_F(DamagedVae, NaNInWeightsIsNamed) {
  edit_weights(
      [](auto& tensors) { tensors["encoder.conv_in.bias"].template data<bfloat16>()[2] = bfloat16(std::nanf("")); });
  expect_error(ErrorKind::kNumeric, {"encoder.conv_in.bias"});
}

TEST_F(DamagedVae, ResidualVariantWhoseShortcutsDoNotFitIsRefused) {
  edit_config("\"is_residual\": false", "\"is_residual\": true");  // dim_mult 1, 3, 2
  expect_error(ErrorKind::kFormat, {"config.json", "dim_mult", "shortcut of the encoder's level 1", "48", "18"});
}

TEST_F(DamagedVae, ContradictingScaleFactorsAreRefused) {
  edit_config("\"scale_factor_spatial\": 4", "\"scale_factor_spatial\": 8");
  expect_error(ErrorKind::kFormat, {"config.json", "scale_factor_spatial", "4", "8"});
}

TEST_F(DamagedVae, ChannelsThatCannotBeHalvedAreRefused) {
  edit_config("\"decoder_base_dim\": 8", "\"decoder_base_dim\": 7");
  expect_error(ErrorKind::kFormat, {"config.json", "dim_mult", "21"});
}

TEST_F(DamagedVae, LatentStatisticsOfAnotherLengthAreRefused) {
  edit_config("\"z_dim\": 3", "\"z_dim\": 4");
  expect_error(ErrorKind::kFormat, {"config.json", "latents_mean", "4", "3"});
}

TEST_F(DamagedVae, InputsOfAnotherShapeAreRefused) {
  const WanVae vae = WanVae::load(folder, *backend, DType::kF32);
  EXPECT_THROW(vae.decode(Tensor::zeros(DType::kF32, {4, 1, 2, 2})), Error);
  EXPECT_THROW(vae.decode(Tensor::zeros(DType::kF32, {3, 2, 2})), Error);
  EXPECT_THROW(vae.encode(Tensor::zeros(DType::kF32, {2, 3, 8, 8})), Error);  // 1 + a multiple of 2 frames
  EXPECT_THROW(vae.encode(Tensor::zeros(DType::kF32, {3, 3, 10, 8})), Error);
  Tensor latents = Tensor::zeros(DType::kF32, {3, 1, 2, 2});
  latents.f32()[5] = std::nanf("");
  EXPECT_THROW(vae.decode(latents), Error);
}

}  // namespace
}  // namespace calibatt
