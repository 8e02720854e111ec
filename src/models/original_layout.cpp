#include "models/original_layout.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/error.h"
#include "calibatt/counted.h"
#include "io/input_file.h"
#include "models/original_names.h"
#include "models/transformer_file.h"
#include "models/weight_overlay.h"

namespace calibatt {
namespace {

using nlohmann::json;

/// What Wan-AI's code knows of an autoencoder and its file does not have.
struct LatentStatistics {
  std::vector<double> mean, deviation;
};
// wan/modules/vae.py (vae2_1.py) and vae2_2.py.
const LatentStatistics kWan21 = {{-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715,
                                  0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921},
                                 {2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526,
                                  2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160}};
const LatentStatistics kWan22 = {
    {-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174,  0.1838,  0.1557,  -0.1382, 0.0542,  0.2813,  0.0891,
     0.1570,  -0.0098, 0.0375,  -0.1825, -0.2246, -0.1207, -0.0698, 0.5109,  0.2665,  -0.2108, -0.2158, 0.2502,
     -0.2055, -0.0322, 0.1109,  0.1567,  -0.0729, 0.0899,  -0.2799, -0.1230, -0.0313, -0.1649, 0.0117,  0.0723,
     -0.2839, -0.2083, -0.0520, 0.3748,  0.0152,  0.1957,  0.1433,  -0.2944, 0.3573,  -0.0548, -0.1681, -0.0667},
    {0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
     0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
     0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
     0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744}};
constexpr int kMaxDistance = 128;
constexpr double kTextEpsilon = 1e-6;

/// One size of a tensor that gives a setting away.
int64_t extent(const MappedTensors& tensors, const std::string& name, size_t rank, size_t axis) {
  const std::vector<int64_t>& shape = tensors.shape(name);
  if (shape.size() != rank || shape[axis] < 1) {
    throw Error(ErrorKind::kFormat, tensors.describe(name) + ": expected " + std::to_string(rank) +
                                        " dimensions that are not empty; is this the file of a Wan model?");
  }
  return shape[axis];
}

int64_t divided(int64_t value, int64_t by, const MappedTensors& tensors, const std::string& name) {
  if (value % by == 0) return value / by;
  throw Error(ErrorKind::kFormat, tensors.describe(name) + ": its " + std::to_string(value) +
                                      " channels are no multiple of " + std::to_string(by) +
                                      "; is this the file of a Wan model?");
}

/// WanModel's settings as diffusers' WanTransformer3DModel has them: key for key what Wan-AI's own conversion to
/// diffusers holds, so that both give one fingerprint.
JsonConfig diffusers_transformer_config(const JsonConfig& original) {
  constexpr int64_t kMaxWidth = 1 << 20;
  const std::string type = original.string("model_type", "t2v");
  if (type != "t2v" && type != "i2v" && !is_ti2v_config(original)) {
    original.fail("model_type", "expected \"t2v\", \"i2v\" or \"ti2v\", found \"" + type + "\"");
  }
  const int dim = original.integer_in("dim", 6, kMaxWidth), heads = original.integer_in("num_heads", 1, 1024);
  if (dim % (2 * heads) != 0) {
    original.fail("dim", "expected an even number of channels for each of the " + std::to_string(heads) +
                             " heads, found " + std::to_string(dim));
  }
  for (const int64_t size : original.integers("window_size", {-1, -1})) {
    if (size != -1) original.fail("window_size", "expected [-1, -1] (attention to everything)");
  }
  json config = {{"_class_name", "WanTransformer3DModel"},
                 {"added_kv_proj_dim", nullptr},
                 {"attention_head_dim", dim / heads},
                 {"cross_attn_norm", original.boolean("cross_attn_norm", true)},
                 {"eps", original.number("eps", 1e-6)},
                 {"ffn_dim", original.integer("ffn_dim")},
                 {"freq_dim", original.integer("freq_dim", 256)},
                 {"image_dim", nullptr},
                 {"in_channels", original.integer("in_dim", 16)},
                 {"num_attention_heads", heads},
                 {"num_layers", original.integer("num_layers")},
                 {"out_channels", original.integer("out_dim", 16)},
                 {"patch_size", original.integers("patch_size", {1, 2, 2})},
                 {"qk_norm", nullptr},
                 {"rope_max_seq_len", 1024},
                 {"text_dim", original.integer("text_dim", 4096)}};
  if (original.boolean("qk_norm", true)) config["qk_norm"] = "rms_norm_across_heads";
  return {config, original.where()};
}

/// `tensors` under transformers' names.
JsonConfig umt5_config(const MappedTensors& tensors) {
  const std::string attention = "encoder.block.0.layer.0.SelfAttention.";
  const std::string bias = attention + "relative_attention_bias.weight", query = attention + "q.weight";
  const std::string wide = "encoder.block.0.layer.1.DenseReluDense.wi_1.weight";
  int num_layers = 0;
  while (tensors.contains("encoder.block." + std::to_string(num_layers) + ".layer.0.layer_norm.weight")) ++num_layers;
  const int64_t heads = extent(tensors, bias, 2, 1);
  const json config = {{"model_type", "umt5"},
                       {"feed_forward_proj", "gated-gelu"},
                       {"vocab_size", extent(tensors, "shared.weight", 2, 0)},
                       {"d_model", extent(tensors, "shared.weight", 2, 1)},
                       {"d_kv", divided(extent(tensors, query, 2, 0), heads, tensors, query)},
                       {"d_ff", extent(tensors, wide, 2, 0)},
                       {"num_layers", num_layers},
                       {"num_heads", heads},
                       {"relative_attention_num_buckets", extent(tensors, bias, 2, 0)},
                       {"relative_attention_max_distance", kMaxDistance},
                       {"layer_norm_epsilon", kTextEpsilon}};
  return {config, tensors.path()};
}

/// A file that lacks layers would be a smaller model. `folder`: of the model's own text encoder; may lack a
/// config.json.
void require_all_layers(const JsonConfig& found, const std::string& folder) {
  if (folder.empty() || !path_exists(folder + "/config.json")) return;
  const json own = JsonConfig::load(folder + "/config.json").json();
  const json layers = own.value("num_layers", json());
  if (own.value("d_model", json()) != found.json()["d_model"] || layers.is_null()) return;
  if (layers == found.json()["num_layers"]) return;
  throw Error(ErrorKind::kMismatch,
              found.where() + ": has " + counted(found.json()["num_layers"].get<int>(), "layers") +
                  " without a gap, but " + folder + "/config.json says \"num_layers\": " + layers.dump() +
                  "; is the file complete, and of the model in that folder?");
}

/// For diffusers' names without a config.json: Wan 2.1's, whose other settings are the keys' defaults.
JsonConfig wan21_vae_config(const MappedTensors& tensors) {
  const std::string first = "decoder.conv_in.weight";
  const auto channels = static_cast<int64_t>(kWan21.mean.size());
  const std::vector<int64_t> expected{384, channels, 3, 3, 3};
  if (tensors.shape(first) != expected) {
    throw Error(ErrorKind::kFormat, tensors.describe(first) + ": is " + shape_text(tensors.shape(first)) + " and not " +
                                        shape_text(expected) +
                                        " as in Wan 2.1's autoencoder, and the model's folder has no config.json for "
                                        "it; give a folder in diffusers' layout as --model, or a folder with this "
                                        "file and its config.json as --vae");
  }
  return {json{{"_class_name", "AutoencoderKLWan"},
               {"z_dim", channels},
               {"latents_mean", kWan21.mean},
               {"latents_std", kWan21.deviation}},
          tensors.path()};
}

/// The encoder's layers by the beginning of their names, under Wan-AI's names: of each level the residual blocks, then
/// what halves its size. They stand in one row, or, of Wan 2.2, in a row for each level.
std::vector<std::string> encoder_layers(const MappedTensors& tensors) {
  std::vector<std::string> layers;
  const auto add_row = [&](const std::string& row) {
    const size_t before = layers.size();
    for (int index = 0;; ++index) {
      const std::string layer = row + "downsamples." + std::to_string(index) + ".";
      if (!tensors.contains(layer + "residual.2.weight") && !tensors.contains(layer + "resample.1.weight")) break;
      layers.push_back(layer);
    }
    return layers.size() > before;
  };
  if (add_row("encoder.")) return layers;
  for (int level = 0; add_row("encoder.downsamples." + std::to_string(level) + "."); ++level) continue;
  return layers;
}

const LatentStatistics& known_statistics(const MappedTensors& tensors, const std::string& latent, int64_t channels) {
  for (const LatentStatistics* known : {&kWan21, &kWan22}) {
    if (channels == static_cast<int64_t>(known->mean.size())) return *known;
  }
  throw Error(ErrorKind::kFormat, tensors.describe(latent) + ": has " + std::to_string(channels) +
                                      " latent channels. Their mean and deviation are not in this layout and known "
                                      "for the 16 of Wan 2.1 and the 48 of Wan 2.2 TI2V-5B alone; give the model in "
                                      "diffusers' layout, whose vae/config.json has them");
}

/// `tensors` under Wan-AI's names.
JsonConfig vae_config(const MappedTensors& tensors) {
  constexpr size_t kConvolution = 5;  // [out, in, frames, rows, columns]
  const std::string first = "encoder.conv1.weight", last = "decoder.head.2.weight", latent = "conv2.weight";
  const int64_t base = extent(tensors, first, kConvolution, 0), pixels = extent(tensors, first, kConvolution, 1);
  std::vector<int64_t> factors{0};
  std::vector<bool> halves_frames;
  int num_res_blocks = 0;
  const std::vector<std::string> layers = encoder_layers(tensors);
  for (const std::string& layer : layers) {
    const std::string residual = layer + "residual.2.weight";
    if (tensors.contains(residual)) {
      factors.back() = divided(extent(tensors, residual, kConvolution, 0), base, tensors, residual);
      if (factors.size() == 1) ++num_res_blocks;
    } else {
      halves_frames.push_back(tensors.contains(layer + "time_conv.weight"));
      factors.push_back(0);
    }
  }
  if (num_res_blocks == 0 || factors.back() == 0) {
    throw Error(ErrorKind::kFormat, tensors.path() +
                                        ": its encoder.downsamples are not those of Wan's autoencoders; give "
                                        "Wan2.1_VAE.pth or Wan2.2_VAE.pth");
  }
  const int64_t channels = extent(tensors, latent, kConvolution, 0);
  const LatentStatistics& statistics = known_statistics(tensors, latent, channels);
  const auto patch = std::llround(std::sqrt(static_cast<double>(pixels) / 3));
  const int64_t decoder_base = divided(extent(tensors, last, kConvolution, 1), factors.front(), tensors, last);
  const auto halvings = std::count(halves_frames.begin(), halves_frames.end(), true);
  const json config = {{"_class_name", "AutoencoderKLWan"},
                       {"base_dim", base},
                       {"decoder_base_dim", decoder_base},
                       {"z_dim", channels},
                       {"dim_mult", factors},
                       {"num_res_blocks", num_res_blocks},
                       {"is_residual", layers.front() == "encoder.downsamples.0.downsamples.0."},
                       {"temperal_downsample", halves_frames},
                       {"in_channels", pixels},
                       {"out_channels", extent(tensors, last, kConvolution, 0)},
                       {"patch_size", patch},
                       {"scale_factor_spatial", patch << (factors.size() - 1)},
                       {"scale_factor_temporal", int64_t{1} << halvings},
                       {"latents_mean", statistics.mean},
                       {"latents_std", statistics.deviation}};
  return {config, tensors.path()};
}

}  // namespace

bool is_original_config(const JsonConfig& config) {
  return config.string("_class_name", "") == "WanModel" || (config.has("dim") && !config.has("num_attention_heads"));
}

bool is_ti2v_config(const JsonConfig& config) {
  return is_original_config(config) && config.string("model_type", "") == "ti2v";
}

Component open_transformer(const std::string& path, const ModelLoadOptions& options) {
  Component found =
      is_folder(path) ? open_component_folder(path, options) : open_transformer_file(path, options.settings);
  require_known_inputs(found.tensors);
  if (found.tensors.contains("blocks.0.self_attn.q.weight")) {
    found.tensors = found.tensors.renamed(diffusers_transformer_name);
  }
  if (is_original_config(found.config)) {
    const JsonConfig original = found.config;
    json config = diffusers_transformer_config(original).json();
    add_picture_settings(found.tensors, config);
    found.config = {config, original.where()};
    warn_of_unread_settings(original, {"text_len"}, options);
  }
  if (options.overlay) found.tensors = options.overlay->over(found.tensors);
  return found;
}

Component open_text_encoder(const std::string& path, const ModelLoadOptions& options) {
  if (is_folder(path)) return open_component_folder(path, options);
  // ComfyUI's file has the tokenizer in it, as a tensor of bytes; the folder's own is used.
  MappedTensors tensors = open_tensor_file(path).renamed(
      [](const std::string& name) { return name == "spiece_model" ? std::string() : transformers_umt5_name(name); });
  if (!tensors.contains("shared.weight")) require_part(tensors, "--text-encoder", "shared.weight");
  JsonConfig config = umt5_config(tensors);
  require_all_layers(config, options.settings);
  return {std::move(config), tensors};
}

Component open_vae(const std::string& path, const ModelLoadOptions& options) {
  if (is_folder(path)) return open_component_folder(path, options);
  const MappedTensors tensors = open_tensor_file(path);
  if (tensors.contains("decoder.conv_in.weight")) {
    return {options.settings.empty() ? wan21_vae_config(tensors) : JsonConfig::load(options.settings + "/config.json"),
            tensors};
  }
  if (!tensors.contains("encoder.conv1.weight")) require_part(tensors, "--vae", "encoder.conv1.weight");
  const JsonConfig config = vae_config(tensors);
  const auto num_res_blocks = static_cast<int>(config.integer("num_res_blocks"));
  return {config, tensors.renamed([&](const std::string& name) { return diffusers_vae_name(name, num_res_blocks); })};
}

}  // namespace calibatt
