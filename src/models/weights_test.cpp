#include "models/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "backend/cpu/make_backend.h"
#include "io/safetensors.h"
#include "io/test_folder.h"
#include "model_settings/component.h"
#include "models/model_folder.h"
#include "models/registry.h"
#include "models/t5/encoder.h"
#include "models/wan/transformer.h"
#include "models/wan/vae_config.h"

namespace calibatt {
namespace {

using testing::AllOf;
using testing::HasSubstr;

/// A model folder of one test.
class ModelFolder : public testing::Test {
 protected:
  std::string folder() const { return path_.string(); }
  void write_weights(const std::map<std::string, Tensor>& tensors) const {
    write_safetensors(folder() + "/diffusion_pytorch_model.safetensors", tensors);
  }
  void write_config(const std::string& text) const { std::ofstream(path_ / "config.json") << text; }

  /// The error that `action` throws: its kind is checked, its message returned.
  template <class Action>
  std::string message_of(ErrorKind kind, const Action& action) const {
    try {
      action();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind) << error.what();
      return error.what();
    }
    ADD_FAILURE() << "no error";
    return "";
  }

  const TestFolder temporary_;  // of this process alone: builds are tested side by side
  const std::filesystem::path path_ = temporary_.path();
};

Tensor filled(DType dtype, std::vector<int64_t> shape, float value) {
  Tensor tensor(DType::kF32, std::move(shape));
  std::fill_n(tensor.f32(), tensor.size(), value);
  return converted(tensor, dtype);
}

TEST_F(ModelFolder, NotFiniteIsFoundWhereverItIs) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      Tensor tensor = filled(DType::kF32, {3, 333}, 3.3e38f);  // the largest finite exponent is fine
      EXPECT_TRUE(all_finite(tensor));
      tensor = filled(DType::kF32, {3, 333}, 1e30f);
      tensor.f32()[tensor.size() - 1] = bad;
      EXPECT_FALSE(all_finite(converted(tensor, dtype)));
    }
  }
  Tensor half(DType::kF16, {5});
  std::fill_n(half.data<uint16_t>(), 5, uint16_t{0x7bff});  // the largest finite one
  EXPECT_TRUE(all_finite(half));
  half.data<uint16_t>()[2] = 0x7c00;
  EXPECT_FALSE(all_finite(half));
}

TEST_F(ModelFolder, ErrorsNameFileTensorExpectedAndFound) {
  write_weights({{"good", filled(DType::kBF16, {2, 3}, 1)},
                 {"bad", filled(DType::kF32, {4}, NAN)},
                 {"integers", Tensor::zeros(DType::kI32, {4})}});
  const Weights weights(Safetensors::open_folder(folder()));
  EXPECT_EQ(weights.get("good", {2, 3}).dtype(), DType::kBF16);
  EXPECT_THAT(message_of(ErrorKind::kFormat,
                         [&] {
                           weights.get("good", {3, 2});
                         }),
              AllOf(HasSubstr(folder()), HasSubstr("good"), HasSubstr("[2, 3]"), HasSubstr("[3, 2]")));
  EXPECT_THAT(message_of(ErrorKind::kFormat, [&] { weights.get("absent", {1}); }),
              AllOf(HasSubstr(folder()), HasSubstr("absent")));
  EXPECT_THAT(message_of(ErrorKind::kNumeric, [&] { weights.get_f32("bad", {4}); }),
              AllOf(HasSubstr(folder()), HasSubstr("bad"), HasSubstr("NaN")));
  EXPECT_THAT(message_of(ErrorKind::kFormat, [&] { weights.get("integers", {4}); }), HasSubstr("I32"));
}

TEST_F(ModelFolder, StackedJoinsRows) {
  write_weights({{"a", filled(DType::kBF16, {1, 2}, 1)}, {"b", filled(DType::kF32, {1, 2}, 2)}});
  const Tensor joined =
      stack_rows(Weights(Safetensors::open_folder(folder())).stored_all({"b", "a"}, {1, 2}), DType::kF32);
  EXPECT_EQ(joined.shape(), (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(std::vector<float>(joined.f32(), joined.f32() + 4), (std::vector<float>{2, 2, 1, 1}));
}

TEST_F(ModelFolder, NotFiniteIsFoundWhileALayerIsMade) {
  write_weights({{"good", filled(DType::kBF16, {2, 4}, 1)}, {"bad", filled(DType::kBF16, {2, 4}, INFINITY)}});
  const Weights weights(Safetensors::open_folder(folder()));
  const auto backend = make_backend("cpu");
  EXPECT_THAT(message_of(ErrorKind::kNumeric,
                         [&] {
                           backend->load_linear({weights.stored_all({"good", "bad"}, {2, 4}), {}, DType::kF32, {}});
                         }),
              AllOf(HasSubstr(folder()), HasSubstr("\"bad\""), HasSubstr("NaN")));
  EXPECT_EQ(backend->load_linear({weights.stored_all({"good", "good"}, {2, 4}), {}, DType::kF32, {}})->out_features(),
            4);
}

TEST_F(ModelFolder, TensorsThatNobodyTookAreListedAndThoseOfLayersRefused) {
  write_weights({{"head.a", filled(DType::kF32, {1}, 1)},
                 {"buffer", filled(DType::kF32, {1}, 1)},
                 {"blocks.0.q", filled(DType::kF32, {1}, 1)}});
  const Weights weights(Safetensors::open_folder(folder()));
  EXPECT_THAT(message_of(ErrorKind::kFormat, [&] { weights.check_unused("blocks."); }),
              AllOf(HasSubstr(folder()), HasSubstr("blocks.0.q")));
  weights.get("blocks.0.q", {1});
  EXPECT_THAT(weights.check_unused("blocks."),
              AllOf(HasSubstr(folder()), HasSubstr("2 tensors"), HasSubstr("\"buffer\""), HasSubstr("head.a")));
  weights.require("head.a", {1});
  weights.mark_known("buffer");
  EXPECT_EQ(weights.check_unused("blocks."), "");
}

TEST_F(ModelFolder, ErrorsOfShardsNameTheShard) {
  write_safetensors(folder() + "/one.safetensors", {{"a", filled(DType::kF32, {2}, 1)}});
  write_safetensors(folder() + "/two.safetensors", {{"b", filled(DType::kF32, {2}, 1)}});
  std::ofstream(path_ / "model.safetensors.index.json")
      << R"({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})";
  const Weights weights(Safetensors::open_folder(folder()));
  EXPECT_THAT(message_of(ErrorKind::kFormat, [&] { weights.get("b", {3}); }),
              AllOf(HasSubstr("two.safetensors"), HasSubstr("[2]"), HasSubstr("[3]")));
}

constexpr const char* kTransformer =
    R"("num_attention_heads": 2, "attention_head_dim": 8, "ffn_dim": 16, "num_layers": 1,
    "text_dim": 8, "freq_dim": 8)";

TEST_F(ModelFolder, TransformerConfigurationsItCannotRunAreRefused) {
  const auto load = [&] { WanTransformerConfig::from(JsonConfig::load(folder() + "/config.json")); };
  const auto message = [&](const std::string& extra) {
    write_config(std::string("{") + kTransformer + extra + "}");
    return message_of(ErrorKind::kFormat, load);
  };
  EXPECT_THAT(message(R"(, "image_dim": 1280)"), AllOf(HasSubstr("config.json"), HasSubstr("added_kv_proj_dim")));
  EXPECT_THAT(message(R"(, "added_kv_proj_dim": 64)"), HasSubstr("image_dim"));
  EXPECT_THAT(message(R"(, "image_dim": 1280, "added_kv_proj_dim": 63)"), HasSubstr("expected the model's width"));
  EXPECT_THAT(message(R"(, "pos_embed_seq_len": 514)"), HasSubstr("a last picture"));
  EXPECT_THAT(message(R"(, "qk_norm": "layer_norm")"), AllOf(HasSubstr("qk_norm"), HasSubstr("layer_norm")));
  EXPECT_THAT(message(R"(, "patch_size": [1, 2])"), HasSubstr("patch_size"));
  EXPECT_THAT(message(R"(, "patch_size": [1, 0, 2])"), HasSubstr("patch_size"));
  EXPECT_THAT(message(R"(, "_class_name": "FluxTransformer2DModel")"), HasSubstr("FluxTransformer2DModel"));
  // Would be NaN in the first forward, or no normalisation at all.
  for (const std::string eps : {"-1e-6", "0", "1e-30", "0.5", "1e300"}) {
    EXPECT_THAT(message(R"(, "eps": )" + eps), HasSubstr("key \"eps\": expected a number from 1e-12 to 0.1")) << eps;
  }
  write_config(std::string("{") + kTransformer + R"(, "qk_norm": null})");
  EXPECT_FALSE(WanTransformerConfig::from(JsonConfig::load(folder() + "/config.json")).qk_norm);
  write_config(R"({"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1})");
  EXPECT_THAT(message_of(ErrorKind::kFormat, load), HasSubstr("ffn_dim"));
}

TEST_F(ModelFolder, TransformerNamesTheMissingTensor) {
  write_config(std::string("{") + kTransformer + "}");
  write_weights({{"patch_embedding.weight", filled(DType::kF32, {16, 16, 1, 2, 2}, 0)}});
  const auto backend = make_backend("cpu");
  EXPECT_THAT(message_of(ErrorKind::kFormat, [&] { WanTransformer::load(*backend, folder(), DType::kF32); }),
              HasSubstr("patch_embedding.bias"));
}

TEST_F(ModelFolder, TextEncoderConfigurationsItCannotRunAreRefused) {
  const auto message = [&](const std::string& extra) {
    write_config(R"({"vocab_size": 9, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2)" + extra +
                 "}");
    return message_of(ErrorKind::kFormat, [&] { T5Config::from(JsonConfig::load(folder() + "/config.json")); });
  };
  EXPECT_THAT(message(R"(, "model_type": "mt5")"), HasSubstr("mt5"));
  EXPECT_THAT(message(R"(, "feed_forward_proj": "relu")"), AllOf(HasSubstr("feed_forward_proj"), HasSubstr("relu")));
  EXPECT_THAT(message(R"(, "num_buckets": 1, "relative_attention_num_buckets": 1)"),
              HasSubstr("relative_attention_num_buckets"));
  EXPECT_THAT(message(R"(, "layer_norm_epsilon": -1e-6)"), HasSubstr("layer_norm_epsilon"));
}

TEST_F(ModelFolder, AutoencoderStatisticsThatCannotBeAreRefused) {
  const auto message = [&](const std::string& mean, const std::string& deviation) {
    write_config(R"({"z_dim": 2, "latents_mean": [0, )" + mean + R"(], "latents_std": [1, )" + deviation + "]}");
    return message_of(ErrorKind::kFormat, [&] { WanVaeConfig::from(JsonConfig::load(folder() + "/config.json")); });
  };
  for (const std::string number : {"0", "-1", "1e-30", "1e300"}) {
    EXPECT_THAT(message("0", number), AllOf(HasSubstr("latents_std"), HasSubstr("positive numbers"))) << number;
  }
  EXPECT_THAT(message("-1e39", "1"), HasSubstr("latents_mean"));
}

TEST_F(ModelFolder, ConstantMatricesAreNamedOnceAndVectorsAreNot) {
  Tensor sound = filled(DType::kF32, {2, 4}, 1);
  sound.f32()[7] = 2;
  write_weights({{"zero.weight", filled(DType::kBF16, {2, 4}, 0)},
                 {"ones.weight", filled(DType::kF32, {2, 4}, 1)},
                 {"sound.weight", sound},
                 {"norm.weight", filled(DType::kF32, {4}, 1)},
                 {"gamma.weight", filled(DType::kF32, {4, 1, 1}, 1)},
                 {"x.bias", filled(DType::kF32, {4}, 0)},
                 {"scale_shift_table", filled(DType::kF32, {6, 4}, 0)}});
  const Weights weights(Safetensors::open_folder(folder()));
  const auto backend = make_backend("cpu");
  for (int load = 0; load < 2; ++load) {
    backend->load_linear({weights.stored_all({"sound.weight", "zero.weight"}, {2, 4}), {}, DType::kF32, {}});
    weights.get_f32("ones.weight", {2, 4});
    weights.get("norm.weight", {4});
    weights.get_f32("gamma.weight", {4, 1, 1});
    weights.get("x.bias", {4});
    weights.get_f32("scale_shift_table", {6, 4});
    const std::string warning = weights.constant_matrices();
    if (load == 0) {
      EXPECT_THAT(warning, AllOf(HasSubstr(folder()), HasSubstr("2 matrices are"), HasSubstr("\"zero.weight\""),
                                 HasSubstr("\"ones.weight\"")));
    } else {
      EXPECT_EQ(warning, "");
    }
  }
}

TEST_F(ModelFolder, AFileOfNothingButConstantMatricesIsRefused) {
  write_weights({{"a.weight", filled(DType::kBF16, {2, 4}, 0)},
                 {"b.weight", filled(DType::kF32, {2, 4}, 0)},
                 {"norm.weight", filled(DType::kF32, {4}, 1)}});
  const Weights weights(Safetensors::open_folder(folder()));
  weights.get("a.weight", {2, 4});
  weights.get("b.weight", {2, 4});
  weights.get("norm.weight", {4});
  EXPECT_THAT(message_of(ErrorKind::kFormat, [&] { weights.constant_matrices(); }), HasSubstr("holds no weights"));
}

TEST_F(ModelFolder, DamagedWeightsAreWarnedOfWhileAModelIsLoaded) {
  const std::string tiny = CALIBATT_MODELS_DIR "/tiny-wan/";
  const auto backend = make_backend("cpu");
  const auto warnings_of = [&](const std::string& part, const std::string& damaged, const auto& load) {
    std::map<std::string, Tensor> tensors;
    const Safetensors file = Safetensors::open_folder(tiny + part);
    for (const auto& [name, entry] : file.entries()) tensors[name] = file.get(name);
    for (auto& [name, tensor] : tensors) {
      if (name == damaged) tensor = Tensor::zeros(tensor.dtype(), tensor.shape());
    }
    write_weights(tensors);
    std::filesystem::copy(tiny + part + "/config.json", path_ / "config.json",
                          std::filesystem::copy_options::overwrite_existing);
    std::string warnings;
    load(ModelLoadOptions{.warn = [&](const std::string& message) { warnings += message + "\n"; }});
    return warnings;
  };
  const auto transformer = [&](const ModelLoadOptions& options) {
    WanTransformer::load(*backend, folder(), DType::kBF16, options);
  };
  const auto text_encoder = [&](const ModelLoadOptions& options) {
    T5Encoder::open(*backend, folder(), DType::kBF16, options).encode(std::vector<int32_t>{5, 9, 1});
  };
  EXPECT_EQ(warnings_of("transformer", "", transformer), "");
  EXPECT_EQ(warnings_of("text_encoder", "", text_encoder), "");
  EXPECT_THAT(warnings_of("transformer", "condition_embedder.text_embedder.linear_1.weight", transformer),
              AllOf(HasSubstr("1 matrix is"), HasSubstr("text_embedder.linear_1.weight")));
  EXPECT_THAT(warnings_of("text_encoder", "encoder.block.1.layer.1.DenseReluDense.wo.weight", text_encoder),
              HasSubstr("block.1.layer.1.DenseReluDense.wo.weight"));
  EXPECT_THAT(warnings_of("text_encoder", "shared.weight", text_encoder), HasSubstr("embedding table"));
}

TEST_F(ModelFolder, SettingsThatNobodyReadAreNamedAndQuantizationIsRefused) {
  const auto warnings_of = [&](const std::string& extra) {
    write_config(std::string("{") + kTransformer + extra + "}");
    std::string warnings;
    const Component found{JsonConfig::load(folder() + "/config.json"), open_component_folder(folder()).tensors};
    WanTransformerConfig::from(found.config);
    warn_of_unread_settings(found.config, {"harmless"},
                            {.warn = [&](const std::string& message) { warnings += message; }});
    return warnings;
  };
  write_weights({{"a", filled(DType::kF32, {1}, 1)}});
  EXPECT_EQ(warnings_of(R"(, "_diffusers_version": "9", "unknown": null, "list": [], "harmless": 3)"), "");
  EXPECT_THAT(warnings_of(R"(, "rope_theta": 5000, "window": [3])"),
              AllOf(HasSubstr("config.json"), HasSubstr("\"rope_theta\", \"window\"")));
  write_config(std::string("{") + kTransformer + R"(, "quantization_config": {"quant_method": "bitsandbytes"}})");
  EXPECT_THAT(message_of(ErrorKind::kFormat, [&] { open_component_folder(folder()); }),
              AllOf(HasSubstr("config.json"), HasSubstr("quantization_config")));
}

TEST_F(ModelFolder, DefaultsAndSettingsOfTheWholeModelAreBlamedOnTheirFiles) {
  const auto defaults = [&](const std::string& text) {
    std::ofstream(path_ / "generation_config.json") << text;
    return message_of(ErrorKind::kFormat, [&] { describe_folder(folder(), {}); });
  };
  for (const char* value : {"0", "-16", "1000000000", "\"many\""}) {
    EXPECT_THAT(defaults(std::string(R"({"fps": )") + value + "}"),
                AllOf(HasSubstr("generation_config.json"), HasSubstr("\"fps\""), HasSubstr(value)));
  }
  EXPECT_THAT(defaults(R"({"guidance_scale": -3})"), HasSubstr("\"guidance_scale\""));
  std::ofstream(path_ / "model_index.json") << R"({"boundary_ratio": 0.875})";
  EXPECT_THAT(message_of(ErrorKind::kMismatch, [&] { open_diffusers_folder(folder()); }),
              AllOf(HasSubstr("model_index.json"), HasSubstr("boundary_ratio")));
}

TEST_F(ModelFolder, LinksInACircleAreAnErrorOfOneLine) {
  std::filesystem::create_symlink("model_index.json", path_ / "model_index.json");
  std::filesystem::create_symlink("loop", path_ / "loop");
  EXPECT_THAT(message_of(ErrorKind::kUnreadable, [&] { open_model(folder()); }),
              HasSubstr("model_index.json: cannot be read"));
  EXPECT_THAT(message_of(ErrorKind::kUnreadable, [&] { open_model(folder() + "/loop"); }),
              HasSubstr("/loop: cannot be read"));
}

}  // namespace
}  // namespace calibatt
