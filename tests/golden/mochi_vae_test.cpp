#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "damaged_model.h"
#include "decoder_golden.h"
#include "models/mochi/vae.h"
#include "models/mochi/vae_memory.h"

namespace calibatt {
namespace {

struct MochiVaeGolden : DecoderGolden<MochiVae> {
  MochiVaeGolden() : DecoderGolden("mochi_vae") {}
};

TEST_P(MochiVaeGolden, DecodesAsDiffusersDoes) {
  expect_decoded_as_diffusers_does();
}

TEST_P(MochiVaeGolden, IsTheSameWithBiasesAddedByNormsOrByConvolutions) {
  expect_same_decoded(MochiVae::load(folder, *backend, DType::kF32, {.defers_bias = true}),
                      MochiVae::load(folder, *backend, DType::kF32, {.defers_bias = false}));
}

/// As many latent frames at once as the longest clip has, and a number that leaves a rest.
TEST_P(MochiVaeGolden, IsTheSameInLongerGroups) {
  const MochiVae one = MochiVae::load(folder, *backend, DType::kF32, {.latent_frames_at_once = 1});
  for (const int64_t frames : {3, 8}) {
    expect_same_decoded(MochiVae::load(folder, *backend, DType::kF32, {.latent_frames_at_once = frames}), one);
  }
}

TEST_P(MochiVaeGolden, InBfloat16StaysCloseToFloat32) {
  expect_bfloat16_close_to_float32();
}

TEST_P(MochiVaeGolden, DoesNotDependOnTheNumberOfThreads) {
  expect_same_on_any_number_of_threads();
}

TEST_P(MochiVaeGolden, GivesFramesAsBytesAndReportsProgress) {
  expect_frames_as_bytes_and_progress();
}

INSTANTIATE_TEST_SUITE_P(Models, MochiVaeGolden, testing::Combine(testing::Values("mochi1", "odd"), kBackends),
                         model_and_backend);

TEST(MochiVaeMemory, FullSizeFitsIntoTwentyGigabytes) {
  const MochiVaeConfig config;
  const VideoSize clip = {163, 480, 848}, longer = {325, 480, 848};
  const uint64_t bf16 = mochi_decoding_bytes(config, clip, DType::kBF16);
  EXPECT_GT(bf16, 4'500'000'000);  // docs/decisions/0003: 2.7 GB of histories, 2.1 GB at the widest
  EXPECT_LT(bf16, 5'000'000'000);
  EXPECT_EQ(mochi_decoding_bytes(config, clip, DType::kF32), 2 * bf16);
  EXPECT_EQ(mochi_decoding_bytes(config, longer, DType::kBF16), bf16);
}

struct DamagedMochiVae : DamagedModel<MochiVae> {
  DamagedMochiVae() : DamagedModel("mochi_vae/odd") {}
};

TEST_F(DamagedMochiVae, MissingTensorIsNamed) {
  edit_weights([](auto& tensors) { tensors.erase("decoder.up_blocks.0.resnets.0.conv2.conv.bias"); });
  expect_error(ErrorKind::kFormat,
               {"diffusion_pytorch_model.safetensors", "decoder.up_blocks.0.resnets.0.conv2.conv.bias"});
}

TEST_F(DamagedMochiVae, MisshapedTensorIsNamedWithBothShapes) {
  edit_weights([](auto& tensors) { tensors["decoder.proj_out.weight"] = Tensor::zeros(DType::kF32, {3, 31}); });
  expect_error(ErrorKind::kFormat, {"decoder.proj_out.weight", "[3, 31]", "[3, 32]"});
}

TEST_F(DamagedMochiVae, LayersThatTheConfigurationDoesNotDescribeAreNamed) {
  edit_weights([](auto& tensors) {
    tensors["encoder.proj_in.bias"] = Tensor::zeros(DType::kF32, {7});  // nobody asks for the encoder
    tensors["decoder.block_in.resnets.0.conv1.conv.bias"] = Tensor::zeros(DType::kF32, {64});
  });
  expect_error(ErrorKind::kFormat, {"decoder.block_in.resnets.0.conv1.conv.bias"});
}

TEST_F(DamagedMochiVae, EncoderMayBeThereOrNot) {
  edit_weights([](auto& tensors) { tensors["encoder.proj_in.bias"] = Tensor::zeros(DType::kF32, {7}); });
  EXPECT_EQ(MochiVae::load(folder, *backend, DType::kF32).config().frames_per_latent(), 6);
}

TEST_F(DamagedMochiVae, NaNInWeightsIsNamed) {
  edit_weights([](auto& tensors) {
    tensors["decoder.up_blocks.1.proj.bias"].template data<bfloat16>()[2] = bfloat16(std::nanf(""));
  });
  expect_error(ErrorKind::kNumeric, {"decoder.up_blocks.1.proj.bias"});
}

TEST_F(DamagedMochiVae, SettingsThatItCannotDoAreRefused) {
  edit_config("\"act_fn\": \"silu\"", "\"act_fn\": \"mish\"");
  expect_error(ErrorKind::kFormat, {"config.json", "act_fn", "mish", "silu"});
  edit_config("\"act_fn\": \"mish\"", "\"act_fn\": \"swish\"");
  edit_config("\"out_channels\": 3,", "\"out_channels\": 4,");
  expect_error(ErrorKind::kFormat, {"config.json", "out_channels", "4"});
  edit_config("\"out_channels\": 4,", "\"out_channels\": 3,");
  edit_config("\"latents_std\": null",
              "\"latents_std\": [1, 1]");  // without the mean it would not be used: neither null
  edit_config("\"latents_mean\": null", "\"latents_mean\": [0, 0, 0]");
  expect_error(ErrorKind::kFormat, {"config.json", "latents_std", "3", "2"});
  edit_config("AutoencoderKLMochi", "AutoencoderKLWan");
  expect_error(ErrorKind::kFormat, {"config.json", "_class_name", "AutoencoderKLWan"});
}

TEST_F(DamagedMochiVae, ChannelsThatNormsCannotGroupAreRefused) {
  edit_config("\"decoder_block_out_channels\": [\n    32", "\"decoder_block_out_channels\": [\n    40");
  expect_error(ErrorKind::kFormat, {"config.json", "decoder_block_out_channels", "32", "40"});
}

TEST_F(DamagedMochiVae, ListsOfAnotherLengthAreRefused) {
  edit_config("\"spatial_expansions\": [\n    2,", "\"spatial_expansions\": [\n");
  expect_error(ErrorKind::kFormat, {"config.json", "spatial_expansions", "2", "1"});
}

TEST_F(DamagedMochiVae, InputsOfAnotherShapeAreRefused) {
  const MochiVae vae = MochiVae::load(folder, *backend, DType::kF32);
  EXPECT_THROW(vae.decode(Tensor::zeros(DType::kF32, {4, 1, 2, 2})), Error);
  EXPECT_THROW(vae.decode(Tensor::zeros(DType::kF32, {3, 2, 2})), Error);
  Tensor latents = Tensor::zeros(DType::kF32, {3, 1, 2, 2});
  latents.f32()[5] = std::nanf("");
  EXPECT_THROW(vae.decode(latents), Error);
}

}  // namespace
}  // namespace calibatt
