#include "models/original_layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "io/atomic_file.h"
#include "io/fingerprint.h"
#include "io/safetensors.h"
#include "io/test_folder.h"
#include "io/test_torch_file.h"
#include "model_settings/wan_config.h"
#include "models/original_names.h"
#include "models/t5/encoder.h"
#include "models/test_original_names.h"
#include "models/wan/vae_config.h"

namespace calibatt {
namespace {

using test::OriginalNames;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

template <class Action>
std::string message_of(const Action& action, ErrorKind kind = ErrorKind::kFormat) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind) << error.what();
    return error.what();
  }
  return "no error";
}

std::string with_number(std::string name, const std::string& number) {
  const size_t at = name.find(".N.");
  return at == std::string::npos ? name : name.replace(at, 3, "." + number + ".");
}

TEST(OriginalNames, BecomeOurs) {
  const std::string data = CALIBATT_GOLDEN_DIR;
  const OriginalNames transformer(data, "transformer"), text_encoder(data, "text_encoder"), tiny(data, "vae"),
      wan21(data, "vae_wan21"), wan22(data, "vae_wan22");
  for (const std::string number : {"0", "39"}) {
    for (const auto& [ours, theirs] : transformer.theirs_by_ours()) {
      EXPECT_EQ(diffusers_transformer_name(with_number(theirs, number)), with_number(ours, number));
    }
    for (const auto& [ours, theirs] : text_encoder.theirs_by_ours()) {
      EXPECT_EQ(transformers_umt5_name(with_number(theirs, number)), with_number(ours, number));
    }
  }
  for (const auto& [ours, theirs] : wan21.theirs_by_ours()) EXPECT_EQ(diffusers_vae_name(theirs, 2), ours);
  for (const auto& [ours, theirs] : wan22.theirs_by_ours()) EXPECT_EQ(diffusers_vae_name(theirs, 2), ours);
  for (const auto& [ours, theirs] : tiny.theirs_by_ours()) EXPECT_EQ(diffusers_vae_name(theirs, 1), ours);
}

TEST(OriginalNames, UnknownOnesStayButKeepTheirBlock) {
  EXPECT_EQ(diffusers_transformer_name("freqs"), "freqs");
  EXPECT_EQ(diffusers_transformer_name("blocks.3.cross_attn.k_other.weight"), "blocks.3.cross_attn.k_other.weight");
  EXPECT_EQ(diffusers_transformer_name("blocks.3.self_attn.query"), "blocks.3.self_attn.query");
  EXPECT_EQ(transformers_umt5_name("blocks.3.adapter.weight"), "encoder.block.3.adapter.weight");
  EXPECT_EQ(transformers_umt5_name("blocks.x"), "blocks.x");
  EXPECT_EQ(diffusers_vae_name("decoder.upsamples", 2), "decoder.upsamples");
  EXPECT_EQ(diffusers_vae_name("decoder.upsamples.99999999999.x", 2), "decoder.upsamples.99999999999.x");
  EXPECT_EQ(diffusers_vae_name("decoder.upsamples.1.upsamples.x", 2), "decoder.up_blocks.1.upsamples.x");
  EXPECT_EQ(diffusers_vae_name("decoder.upsamples.1.upsamples", 2), "decoder.up_blocks.0.resnets.1.upsamples");
  EXPECT_EQ(diffusers_vae_name("encoder.middle.0", 2), "encoder.mid_block.resnets.0");
}

constexpr const char* kOriginalConfig =
    R"({"_class_name": "WanModel", "_diffusers_version": "0.30.0", "dim": 5120, "eps": 1e-06, "ffn_dim": 13824,
        "freq_dim": 256, "in_dim": 16, "model_type": "t2v", "num_heads": 40, "num_layers": 40, "out_dim": 16,
        "text_len": 512)";
/// Of the same model in the diffusers layout: the keys of the public folders.
constexpr const char* kDiffusersConfig =
    R"({"_class_name": "WanTransformer3DModel", "_diffusers_version": "0.33.0.dev0", "added_kv_proj_dim": null,
        "attention_head_dim": 128, "cross_attn_norm": true, "eps": 1e-06, "ffn_dim": 13824, "freq_dim": 256,
        "image_dim": null, "in_channels": 16, "num_attention_heads": 40, "num_layers": 40, "out_channels": 16,
        "patch_size": [1, 2, 2], "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 1024, "text_dim": 4096})";

class OriginalTransformer : public testing::Test {
 protected:
  Component open(const std::string& config, const std::map<std::string, Tensor>& tensors) const {
    write_text_file(folder_ / "config.json", config);
    write_safetensors(folder_ / "diffusion_pytorch_model.safetensors", tensors);
    return open_transformer(folder_.path());
  }
  static Tensor counted(float begin) {
    Tensor tensor(DType::kF32, {3});
    for (int i = 0; i < 3; ++i) tensor.f32()[i] = begin + static_cast<float>(i);
    return tensor;
  }
  TestFolder folder_;
};

TEST_F(OriginalTransformer, ConfigurationIsRead) {
  const std::map<std::string, Tensor> none = {{"x", counted(0)}};
  const auto config = WanTransformerConfig::from(open(std::string(kOriginalConfig) + "}", none).config);
  EXPECT_EQ(config.num_attention_heads, 40);
  EXPECT_EQ(config.attention_head_dim, 128);
  EXPECT_EQ(config.ffn_dim, 13824);
  EXPECT_EQ(config.text_dim, 4096);
  EXPECT_TRUE(config.qk_norm && config.cross_attn_norm);
  EXPECT_FALSE(
      WanTransformerConfig::from(open(std::string(kOriginalConfig) + R"(, "qk_norm": false})", none).config).qk_norm);
  EXPECT_THAT(message_of([&] { open(R"({"_class_name": "WanModel", "model_type": "vace", "dim": 64})", none); }),
              AllOf(HasSubstr("config.json"), HasSubstr("vace")));
  EXPECT_THAT(message_of([&] { open(R"({"_class_name": "WanModel", "dim": 65, "num_heads": 2})", none); }),
              AllOf(HasSubstr("\"dim\""), HasSubstr("65")));
  EXPECT_THAT(message_of([&] { open(std::string(kOriginalConfig) + R"(, "window_size": [4, 4]})", none); }),
              HasSubstr("window_size"));
}

TEST_F(OriginalTransformer, FingerprintIsThatOfTheDiffusersFolder) {
  const auto fingerprint = [](const Component& component) {
    const std::string settings = WanTransformerConfig::from(component.config).fingerprint_settings();
    return values_fingerprint(settings, component.tensors) + " " +
           stored_fingerprint(component.config, component.tensors);
  };
  const Tensor q = counted(1), modulation = counted(5), head = counted(9);
  const std::string ours = fingerprint(
      open(kDiffusersConfig,
           {{"blocks.0.attn1.to_q.weight", q}, {"blocks.0.scale_shift_table", modulation}, {"proj_out.weight", head}}));
  const std::map<std::string, Tensor> theirs = {
      {"blocks.0.self_attn.q.weight", q}, {"blocks.0.modulation", modulation}, {"head.head.weight", head}};
  const std::string config = std::string(kOriginalConfig) + "}";
  EXPECT_EQ(fingerprint(open(config, theirs)), ours);
  auto changed = theirs;
  changed["head.head.weight"] = counted(10);
  EXPECT_NE(fingerprint(open(config, changed)), ours);
  EXPECT_NE(fingerprint(open(std::string(kOriginalConfig) + R"(, "cross_attn_norm": false})", theirs)), ours);
}

// Plans that were made with a diffusers folder stay valid.
TEST_F(OriginalTransformer, FingerprintsOfDiffusersFoldersAreAsEver) {
  const std::string folder = CALIBATT_GOLDEN_DIR "/transformer/plain";
  const Component component = open_transformer(folder);
  EXPECT_EQ(stored_fingerprint(component.config, component.tensors),
            stored_fingerprint(JsonConfig::load(folder + "/config.json"), Safetensors::open_folder(folder)));
  EXPECT_EQ(stored_fingerprint(component.config, component.tensors), "5c7238eec20bafb116948325c56f3a0a");
}

class OriginalFiles : public testing::Test {
 protected:
  std::string write(const std::map<std::string, Tensor>& tensors) const {
    test::write_bytes(folder_ / "x.pth", test::torch_file_of(tensors));
    return folder_ / "x.pth";
  }
  TestFolder folder_;
};

TEST_F(OriginalFiles, TextEncodersSettingsComeFromShapes) {
  const std::string data = CALIBATT_GOLDEN_DIR;
  for (const std::string model : {"square", "wide"}) {
    const Component ours = open_text_encoder(data + "/t5/" + model);
    const auto tensors = OriginalNames(data, "text_encoder").original_of(ours.tensors);
    const Component theirs = open_text_encoder(write(tensors));
    const auto expected = T5Config::from(ours.config), found = T5Config::from(theirs.config);
    EXPECT_EQ(found.vocab_size, expected.vocab_size);
    EXPECT_EQ(found.d_model, expected.d_model);
    EXPECT_EQ(found.d_kv, expected.d_kv);
    EXPECT_EQ(found.d_ff, expected.d_ff);
    EXPECT_EQ(found.num_layers, expected.num_layers);
    EXPECT_EQ(found.num_heads, expected.num_heads);
    EXPECT_EQ(found.relative_attention_num_buckets, expected.relative_attention_num_buckets);
    EXPECT_EQ(found.relative_attention_max_distance, 128);
    EXPECT_EQ(found.layer_norm_epsilon, expected.layer_norm_epsilon);
    EXPECT_EQ(theirs.tensors.entries().size(), tensors.size());
  }
}

TEST_F(OriginalFiles, TextEncoderFilesOfSomethingElseAreRefused) {
  const std::string foreign = write({{"lm_head.weight", Tensor::zeros(DType::kF32, {2, 2})}});
  EXPECT_THAT(message_of([&] { open_text_encoder(foreign); }), AllOf(HasSubstr("x.pth"), HasSubstr("is missing")));
  EXPECT_THAT(message_of([&] { open_vae(foreign); }), AllOf(HasSubstr("x.pth"), HasSubstr("is missing")));
}

TEST_F(OriginalFiles, AutoencodersSettingsComeFromShapes) {
  const std::string tiny = CALIBATT_MODELS_DIR "/tiny-wan/vae";
  const Component ours = open_vae(tiny);
  const auto tensors = OriginalNames(CALIBATT_GOLDEN_DIR, "vae").original_of(ours.tensors);
  const Component theirs = open_vae(write(tensors));
  const auto expected = WanVaeConfig::from(ours.config), found = WanVaeConfig::from(theirs.config);
  EXPECT_EQ(found.base_dim, expected.base_dim);
  EXPECT_EQ(found.decoder_base_dim, expected.decoder_base_dim);
  EXPECT_EQ(found.z_dim, expected.z_dim);
  EXPECT_EQ(found.dim_mult, expected.dim_mult);
  EXPECT_EQ(found.num_res_blocks, expected.num_res_blocks);
  EXPECT_EQ(found.temporal_downsample, expected.temporal_downsample);
  EXPECT_EQ(found.patch_size, expected.patch_size);
  EXPECT_EQ(found.out_channels, expected.out_channels);
  EXPECT_EQ(found.scale_factor_spatial, expected.scale_factor_spatial);
  EXPECT_EQ(found.latents_mean.front(), -0.7571f);  // Wan 2.1's, not tiny-wan's
  EXPECT_EQ(found.latents_std.back(), 1.9160f);
  ASSERT_EQ(theirs.tensors.entries().size(), tensors.size());
  for (const auto& [name, entry] : ours.tensors.entries()) EXPECT_TRUE(theirs.tensors.contains(name)) << name;
}

// Wan 2.2's in miniature, with the public one's latents (tools/golden/ti2v.py).
TEST_F(OriginalFiles, ResidualAutoencodersSettingsComeFromShapesToo) {
  const std::string data = CALIBATT_GOLDEN_DIR;
  const Component ours = open_vae(data + "/ti2v/vae");
  const auto tensors = OriginalNames(data, "vae_wan22").original_of(ours.tensors);
  const Component theirs = open_vae(write(tensors));
  const auto expected = WanVaeConfig::from(ours.config), found = WanVaeConfig::from(theirs.config);
  EXPECT_TRUE(found.is_residual);
  EXPECT_EQ(found.base_dim, expected.base_dim);
  EXPECT_EQ(found.decoder_base_dim, expected.decoder_base_dim);
  EXPECT_EQ(found.z_dim, 48);
  EXPECT_EQ(found.dim_mult, expected.dim_mult);
  EXPECT_EQ(found.num_res_blocks, expected.num_res_blocks);
  EXPECT_EQ(found.temporal_downsample, expected.temporal_downsample);
  EXPECT_EQ(found.patch_size, expected.patch_size);
  EXPECT_EQ(found.out_channels, expected.out_channels);
  EXPECT_EQ(found.latents_mean, expected.latents_mean);
  EXPECT_EQ(found.latents_std, expected.latents_std);
  ASSERT_EQ(theirs.tensors.entries().size(), tensors.size());
  for (const auto& [name, entry] : ours.tensors.entries()) EXPECT_TRUE(theirs.tensors.contains(name)) << name;
}

TEST_F(OriginalFiles, AutoencodersUnderDiffusersNamesNeedNoSettingsWhereTheyAreWan21s) {
  write_safetensors(folder_ / "vae.safetensors",
                    {{"decoder.conv_in.weight", Tensor::zeros(DType::kF32, {384, 16, 3, 3, 3})}});
  const auto config = WanVaeConfig::from(open_vae(folder_ / "vae.safetensors").config);
  EXPECT_EQ(config.base_dim, 96);
  EXPECT_THAT(config.dim_mult, ElementsAre(1, 2, 4, 4));
  EXPECT_EQ(config.latents_std.back(), 1.9160f);
  EXPECT_THAT(message_of([] { open_vae(CALIBATT_MODELS_DIR "/tiny-wan/vae/diffusion_pytorch_model.safetensors"); }),
              AllOf(HasSubstr("decoder.conv_in.weight"), HasSubstr("384, 16"), HasSubstr("config.json")));
}

TEST_F(OriginalFiles, ATextEncoderWithFewerLayersThanTheFoldersIsRefused) {
  const std::string folder = CALIBATT_GOLDEN_DIR "/t5/square";
  auto tensors = OriginalNames(CALIBATT_GOLDEN_DIR, "text_encoder").original_of(open_text_encoder(folder).tensors);
  open_text_encoder(write(tensors), {.settings = folder});
  std::erase_if(tensors, [](const auto& item) { return item.first.starts_with("blocks.1."); });
  EXPECT_THAT(message_of([&] { open_text_encoder(write(tensors), {.settings = folder}); }, ErrorKind::kMismatch),
              AllOf(HasSubstr("x.pth: has 1 layer "), HasSubstr("num_layers"), HasSubstr("t5/square/config.json")));
}

TEST_F(OriginalFiles, AnotherPartOfTheModelIsNamedWithItsFlag) {
  const std::string tiny = CALIBATT_MODELS_DIR "/tiny-wan/", file = "/diffusion_pytorch_model.safetensors";
  const std::string transformer = tiny + "transformer" + file, vae = tiny + "vae" + file,
                    text_encoder = tiny + "text_encoder/model.safetensors";
  EXPECT_THAT(message_of([&] { open_transformer(vae); }), AllOf(HasSubstr(vae), HasSubstr("give it with --vae")));
  EXPECT_THAT(message_of([&] { open_transformer(text_encoder); }), HasSubstr("give it with --text-encoder"));
  EXPECT_THAT(message_of([&] { open_vae(transformer); }), HasSubstr("give it with --transformer"));
  EXPECT_THAT(message_of([&] { open_vae(text_encoder); }), HasSubstr("give it with --text-encoder"));
  EXPECT_THAT(message_of([&] { open_text_encoder(transformer); }), HasSubstr("give it with --transformer"));
  EXPECT_THAT(message_of([&] { open_text_encoder(vae); }), HasSubstr("give it with --vae"));
  for (const char* component : {"text_encoder", "vae"}) {
    const Component ours =
        component == std::string("vae") ? open_vae(tiny + "vae") : open_text_encoder(tiny + "text_encoder");
    const std::string theirs = write(OriginalNames(CALIBATT_GOLDEN_DIR, component).original_of(ours.tensors));
    EXPECT_THAT(message_of([&] { open_transformer(theirs); }), HasSubstr("of a model: give it with --"));
  }
}

class TransformerFiles : public testing::Test {
 protected:
  std::string refusal(const std::map<std::string, Tensor>& tensors, ErrorKind kind = ErrorKind::kMismatch) const {
    write_safetensors(folder_ / "t.safetensors", tensors);
    return message_of([&] { open_transformer(folder_ / "t.safetensors", {.settings = kModel}); }, kind);
  }
  std::map<std::string, Tensor> without(const std::string& part) const {
    std::map<std::string, Tensor> tensors = all_;
    std::erase_if(tensors, [&](const auto& item) { return item.first.find(part) != std::string::npos; });
    return tensors;
  }
  static std::map<std::string, Tensor> tensors_of(const MappedTensors& file) {
    std::map<std::string, Tensor> tensors;
    for (const auto& [name, entry] : file.entries()) tensors[name] = file.get(name);
    return tensors;
  }
  const std::string kModel = CALIBATT_GOLDEN_DIR "/lora";
  const std::map<std::string, Tensor> all_ = tensors_of(open_transformer(kModel).tensors);
  TestFolder folder_;
};

TEST_F(TransformerFiles, ThatLackWhatTheFoldersModelHasAreRefused) {
  EXPECT_EQ(refusal(all_), "no error");
  EXPECT_THAT(refusal(without("blocks.1.")),
              AllOf(HasSubstr("t.safetensors: has 1 block "), HasSubstr("lora/config.json says \"num_layers\": 2")));
  EXPECT_THAT(refusal(without("attn1.norm_")), AllOf(HasSubstr("norm_q"), HasSubstr("rms_norm_across_heads")));
  EXPECT_THAT(refusal(without(".norm2.")), HasSubstr("cross_attn_norm"));
}

TEST_F(TransformerFiles, ThatMixPrefixesAreRefused) {
  for (const std::string prefix : {"model.diffusion_model.", "module."}) {
    std::map<std::string, Tensor> last, first, all;
    for (const auto& [name, tensor] : all_) {
      last[(name.starts_with("blocks.1.") ? prefix : "") + name] = tensor;
      first[(name.starts_with("blocks.1.") ? "" : prefix) + name] = tensor;
      all[prefix + name] = tensor;
    }
    EXPECT_THAT(refusal(last, ErrorKind::kFormat), AllOf(HasSubstr(prefix + "blocks.1."), HasSubstr("another prefix")));
    EXPECT_THAT(refusal(first, ErrorKind::kFormat), HasSubstr("\"blocks.1."));
    EXPECT_EQ(refusal(all), "no error");
  }
}

// The public autoencoder's structure at another width; its latents are of 4 channels instead of 16.
TEST_F(OriginalFiles, AutoencodersWhoseLatentsAreNotKnownAreRefused) {
  const std::string data = CALIBATT_GOLDEN_DIR;
  auto tensors = OriginalNames(data, "vae_wan21").original_of(open_vae(data + "/vae/wan21").tensors);
  EXPECT_THAT(message_of([&] { open_vae(write(tensors)); }),
              AllOf(HasSubstr("conv2.weight"), HasSubstr("4 latent channels"), HasSubstr("diffusers")));
  tensors["conv2.weight"] = Tensor::zeros(DType::kF32, {16, 16, 1, 1, 1});
  const auto config = WanVaeConfig::from(open_vae(write(tensors)).config);
  EXPECT_EQ(config.base_dim, 4);
  EXPECT_THAT(config.dim_mult, ElementsAre(1, 2, 4, 4));
  EXPECT_EQ(config.num_res_blocks, 2);
  EXPECT_THAT(config.temporal_downsample, ElementsAre(false, true, true));
  EXPECT_EQ(config.patch_size, 1);
  tensors["encoder.downsamples.0.residual.2.weight"] = Tensor::zeros(DType::kF32, {5, 4, 3, 3, 3});
  EXPECT_THAT(message_of([&] { open_vae(write(tensors)); }), HasSubstr("no multiple of 4"));
}

}  // namespace
}  // namespace calibatt
