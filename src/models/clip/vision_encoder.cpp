#include "models/clip/vision_encoder.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>
#include <numeric>
#include <utility>
#include <vector>

#include "backend/cpu/make_backend.h"
#include "base/thread_pool.h"
#include "model_settings/component.h"
#include "models/linear_loading.h"
#include "models/scale_picture.h"
#include "nn/heads.h"
#include "nn/tensor_rows.h"

namespace calibatt {
namespace {

constexpr int kImageColors = 3;
const std::string kEmbeddings = "embeddings.", kPrefix = "vision_model.";

/// Of transformers' config.json: of training, of other parts of CLIP, or of how it was saved.
const std::vector<std::string_view> kHarmless = {
    "architectures",     "attention_dropout", "dropout",        "dtype",       "initializer_factor",
    "initializer_range", "model_type",        "projection_dim", "torch_dtype", "transformers_version"};

std::string layer_prefix(int layer) {
  return "encoder.layers." + std::to_string(layer) + ".";
}

std::array<float, 3> colors_of(const JsonConfig& json, const char* key, std::array<float, 3> unless_said) {
  if (!json.has(key)) return unless_said;
  const std::vector<double> values = json.numbers(key);
  if (values.size() != kImageColors) json.fail(key, "expected 3 numbers, found " + std::to_string(values.size()));
  for (size_t color = 0; color < kImageColors; ++color) unless_said[color] = static_cast<float>(values[color]);
  return unless_said;
}

}  // namespace

uint64_t ClipVisionConfig::encoding_bytes() const {
  const auto width = static_cast<uint64_t>(hidden_size), hidden = static_cast<uint64_t>(intermediate_size),
             rows = static_cast<uint64_t>(patches()) + 1;
  constexpr uint64_t kCopies = 3, kRowsOfWidth = 6;  // residual, normed, attended; q, k, v
  return sizeof(float) *
         (kCopies * std::max(3 * width * width, width * hidden) + rows * (kRowsOfWidth * width + hidden));
}

ClipVisionConfig ClipVisionConfig::from(const JsonConfig& json) {
  constexpr int kMost = 1 << 16;
  if (const std::string type = json.string("model_type", "clip_vision_model"); type != "clip_vision_model") {
    json.fail("model_type", "expected \"clip_vision_model\", found \"" + type + "\"");
  }
  if (const std::string act = json.string("hidden_act", "quick_gelu"); act != "gelu") {
    json.fail("hidden_act", "expected \"gelu\", found \"" + act + "\"");
  }
  if (json.integer_in("num_channels", 1, kMost, kImageColors) != kImageColors) json.fail("num_channels", "expected 3");
  ClipVisionConfig config;
  config.hidden_size = json.integer_in("hidden_size", 1, kMost);
  config.intermediate_size = json.integer_in("intermediate_size", 1, kMost);
  config.num_layers = json.integer_in("num_hidden_layers", 2, 1024);
  config.num_heads = json.integer_in("num_attention_heads", 1, 1024);
  config.image_size = json.integer_in("image_size", 1, 4096, 224);
  config.patch_size = json.integer_in("patch_size", 1, 4096, 32);
  config.layer_norm_eps = json.epsilon("layer_norm_eps", 1e-5);
  if (config.hidden_size % config.num_heads != 0) {
    json.fail("hidden_size", "expected a multiple of the " + std::to_string(config.num_heads) + " heads");
  }
  if (config.image_size % config.patch_size != 0) {
    json.fail("image_size", "expected a multiple of patch_size, " + std::to_string(config.patch_size));
  }
  return config;
}

ClipPreprocessing ClipPreprocessing::from(const JsonConfig& json, const ClipVisionConfig& encoder) {
  for (const char* key : {"do_center_crop", "do_normalize", "do_rescale", "do_resize"}) {
    if (!json.boolean(key, true)) json.fail(key, "only true is supported");
  }
  constexpr int kCubic = 3;  // of Pillow's filters
  if (json.integer_in("resample", 0, 10, kCubic) != kCubic) json.fail("resample", "expected 3 (bicubic)");
  const auto size_of = [&](const char* key, const char* side) {
    const nlohmann::json& size = json.json().contains(key) ? json.json()[key] : nlohmann::json(encoder.image_size);
    json.has(key);
    const nlohmann::json& found = size.is_object() ? size.value(side, nlohmann::json()) : size;
    if (found != encoder.image_size) {
      json.fail(key,
                "expected the encoder's image_size, " + std::to_string(encoder.image_size) + ", found " + size.dump());
    }
  };
  size_of("size", "shortest_edge");
  size_of("crop_size", "height");
  ClipPreprocessing result;
  result.mean = colors_of(json, "image_mean", {0.48145466f, 0.4578275f, 0.40821073f});
  result.deviation = colors_of(json, "image_std", {0.26862954f, 0.26130258f, 0.27577711f});
  return result;
}

ClipVisionEncoder ClipVisionEncoder::open(const std::string& encoder, const std::string& processor,
                                          const ModelLoadOptions& options) {
  Component files = open_component_folder(encoder, options);
  const ClipVisionConfig config = ClipVisionConfig::from(files.config);
  warn_of_unread_settings(files.config, kHarmless, options);
  // Published files have a prefix that transformers of today leaves out.
  ClipVisionEncoder result(Weights(files.tensors.renamed(
      [](const std::string& name) { return name.starts_with(kPrefix) ? name.substr(kPrefix.size()) : name; })));
  result.host_ = make_backend("cpu");
  result.config_ = config;
  result.preprocessing_ = ClipPreprocessing::from(JsonConfig::load(processor + "/preprocessor_config.json"), config);
  const int64_t width = config.hidden_size, hidden = config.intermediate_size, patch = config.patch_size;
  const Weights& weights = result.weights_;
  weights.require(kEmbeddings + "class_embedding", {width});
  weights.require(kEmbeddings + "patch_embedding.weight", {width, kImageColors, patch, patch});
  weights.require(kEmbeddings + "position_embedding.weight", {config.patches() + 1, width});
  for (int layer = 0; layer + 1 < config.num_layers; ++layer) {
    for (const char* name : {"q", "k", "v", "out"}) {
      weights.require(layer_prefix(layer) + "self_attn." + name + "_proj.weight", {width, width});
    }
    weights.require(layer_prefix(layer) + "mlp.fc1.weight", {hidden, width});
    weights.require(layer_prefix(layer) + "mlp.fc2.weight", {width, hidden});
  }
  return result;
}

Tensor ClipVisionEncoder::prepared(const Picture& picture) const {
  const int side = config_.image_size, shorter = std::min(picture.height, picture.width);
  const auto scaled_side = [&](int length) { return static_cast<int>(int64_t{length} * side / shorter); };
  const Picture scaled =
      scaled_picture(picture, scaled_side(picture.height), scaled_side(picture.width), PictureFilter::kCubic);
  const int top = (scaled.height - side) / 2, left = (scaled.width - side) / 2;
  Tensor pixels(DType::kF32, {kImageColors, side, side});
  float* to = pixels.f32();
  for (size_t color = 0; color < kImageColors; ++color) {
    for (int row = 0; row < side; ++row) {
      for (int column = 0; column < side; ++column) {
        const auto pixel =
            static_cast<size_t>(top + row) * static_cast<size_t>(scaled.width) + static_cast<size_t>(left + column);
        const float level = static_cast<float>(scaled.rgb[kImageColors * pixel + color]) / 255;
        *to++ = (level - preprocessing_.mean[color]) / preprocessing_.deviation[color];
      }
    }
  }
  return pixels;
}

Tensor ClipVisionEncoder::encode(const Picture& picture, const WorkProgress& progress) const {
  return encode_prepared(prepared(picture), progress);
}

Tensor ClipVisionEncoder::encode_prepared(const Tensor& pixels, const WorkProgress& progress) const {
  Tensor residual = embed(pixels);
  const int last = config_.num_layers - 1;
  for (int layer = 0; layer < last; ++layer) {
    if (progress) progress(layer, last, 0);
    run_layer(layer, residual);
  }
  return residual;
}

/// Class embedding, then one row a patch, each with its position's; normalised.
Tensor ClipVisionEncoder::embed(const Tensor& pixels) const {
  const int64_t width = config_.hidden_size, patch = config_.patch_size, side = config_.image_size / patch;
  CALIBATT_ASSERT(pixels.size() == int64_t{kImageColors} * config_.image_size * config_.image_size);
  std::vector<int32_t> raster(static_cast<size_t>(side * side));
  std::iota(raster.begin(), raster.end(), 0);
  Tensor patches(DType::kF32, {side * side, kImageColors * patch * patch});
  const PatchLayout layout{{1, config_.patch_size, config_.patch_size}, raster};
  host_->patchify(pixels.reshaped({kImageColors, 1, config_.image_size, config_.image_size}), layout, patches);
  const auto projection =
      host_->make_linear(weights_.get(kEmbeddings + "patch_embedding.weight", {width, kImageColors, patch, patch})
                             .reshaped({width, patches.dim(1)}),
                         Tensor(), DType::kF32);
  Tensor rows(DType::kF32, {side * side + 1, width});
  Tensor of_patches = tensor_rows(rows, 1, side * side);
  host_->linear(*projection, patches, of_patches);
  const Tensor first = weights_.get_f32(kEmbeddings + "class_embedding", {width});
  std::copy_n(first.f32(), width, rows.f32());
  host_->add(rows, weights_.get_f32(kEmbeddings + "position_embedding.weight", rows.shape()), rows);
  normalise("pre_layrnorm", rows, rows);  // as CLIP's code spells it
  return rows;
}

void ClipVisionEncoder::normalise(const std::string& name, const Tensor& x, Tensor& out) const {
  const int64_t width = config_.hidden_size;
  const Tensor scale = weights_.get_f32(name + ".weight", {width}), shift = weights_.get_f32(name + ".bias", {width});
  host_->layer_norm(x, &scale, &shift, false, config_.layer_norm_eps, out);
}

/// residual += W_o · attention(x), x = norm(residual); residual += W_2 · gelu(W_1 x), x = norm(residual)
void ClipVisionEncoder::run_layer(int layer, Tensor& residual) const {
  const int64_t width = config_.hidden_size, tokens = residual.dim(0);
  const int head_dim = config_.hidden_size / config_.num_heads;
  const std::string prefix = layer_prefix(layer), attention = prefix + "self_attn.";
  Tensor normed(DType::kF32, residual.shape()), attended(DType::kF32, residual.shape()),
      qkv(DType::kF32, {tokens, 3 * width}), hidden(DType::kF32, {tokens, config_.intermediate_size});

  normalise(prefix + "layer_norm1", residual, normed);
  host_->linear(*load_fused(*host_, weights_, {attention + "q_proj", attention + "k_proj", attention + "v_proj"}, width,
                            width, DType::kF32),
                normed, qkv);
  AttentionCall call;
  call.q = heads_view(std::as_const(qkv), 0, head_dim);
  call.k = heads_view(std::as_const(qkv), width, head_dim);
  call.v = heads_view(std::as_const(qkv), 2 * width, head_dim);
  call.out = heads_view(attended, 0, head_dim);
  call.num_heads = config_.num_heads;
  call.head_dim = head_dim;
  call.scale = 1 / std::sqrt(static_cast<float>(head_dim));
  host_->attention(call);
  const auto linear = [&](const std::string& name, int64_t out, int64_t in) {
    return load_linear(*host_, weights_, name, out, in, DType::kF32);
  };
  host_->linear(*linear(attention + "out_proj", width, width), attended, residual, {.accumulate = true});

  normalise(prefix + "layer_norm2", residual, normed);
  host_->linear(*linear(prefix + "mlp.fc1", hidden.dim(1), width), normed, hidden);
  gelu(hidden);
  host_->linear(*linear(prefix + "mlp.fc2", width, hidden.dim(1)), hidden, residual, {.accumulate = true});
}

void gelu(Tensor& values) {
  constexpr int64_t kGrain = 16384;
  float* x = values.f32();
  parallel_for(values.size(), kGrain, [x](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      x[i] = 0.5f * x[i] * (1 + std::erf(x[i] * static_cast<float>(std::numbers::sqrt2 / 2)));
    }
  });
}

}  // namespace calibatt
