#include "models/transformer_file.h"

#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

#include "base/error.h"
#include "calibatt/counted.h"
#include "io/input_file.h"
#include "models/original_layout.h"
#include "models/original_names.h"

namespace calibatt {
namespace {

using nlohmann::json;

constexpr int64_t kHeadDim = 128;  // of every Wan model that was published
constexpr const char* kPatches = "patch_embedding.weight";

/// What programs put before each name; the first that fits. ComfyUI's whole checkpoints hold other models beside it.
constexpr std::array<std::string_view, 7> kTransformerPrefixes{
    "", "model.diffusion_model.", "diffusion_model.", "module.", "_orig_mod.", "transformer.", "model."};

/// Blocks under another prefix would be left out, and the model would be a smaller one.
void require_one_prefix(const MappedTensors& tensors, std::string_view prefix) {
  for (const auto& [name, entry] : tensors.entries()) {
    for (const std::string_view other : kTransformerPrefixes) {
      if (other == prefix || !name.starts_with(std::string(other) + "blocks.")) continue;
      throw Error(ErrorKind::kFormat, tensors.describe(name) + ": has another prefix than " +
                                          quoted_name(std::string(prefix) + kPatches) +
                                          "; the file mixes two models or two layouts of one");
    }
  }
}

MappedTensors without_prefix(const MappedTensors& tensors) {
  for (const std::string_view prefix : kTransformerPrefixes) {
    if (!tensors.contains(std::string(prefix) + kPatches)) continue;
    require_one_prefix(tensors, prefix);
    return tensors.renamed([prefix](const std::string& name) {
      return name.starts_with(prefix) ? name.substr(prefix.size()) : std::string();
    });
  }
  require_part(tensors, "--transformer", kPatches);
  tensors.get(kPatches);  // throws
  return tensors;
}

const std::vector<int64_t>& shape_of_rank(const MappedTensors& tensors, const std::string& name, size_t rank) {
  const std::vector<int64_t>& shape = tensors.shape(name);
  bool sound = shape.size() == rank;
  for (const int64_t extent : shape) sound = sound && extent > 0;
  if (sound) return shape;
  throw Error(ErrorKind::kFormat, tensors.describe(name) + ": expected " + std::to_string(rank) +
                                      " dimensions that are not empty, found " + shape_text(shape) +
                                      "; is this the transformer of a Wan model?");
}

}  // namespace

void require_known_inputs(const MappedTensors& tensors) {
  for (const char* name : {"condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos",
                           "vace_patch_embedding.weight", "control_adapter.conv.weight", "ref_conv.weight"}) {
    if (!tensors.contains(name)) continue;
    throw Error(ErrorKind::kMismatch, tensors.describe(name) +
                                          ": is of a model that takes a last picture or controls, which is not "
                                          "supported; give a text-to-video or an image-to-video one");
  }
}

void add_picture_settings(const MappedTensors& tensors, json& config) {
  const std::string norm = "condition_embedder.image_embedder.norm1.weight", keys = "blocks.0.attn2.add_k_proj.weight";
  const bool sees_picture = tensors.contains(norm) || tensors.contains(keys);
  config["image_dim"] = sees_picture ? json(shape_of_rank(tensors, norm, 1)[0]) : json();
  config["added_kv_proj_dim"] = sees_picture ? json(shape_of_rank(tensors, keys, 2)[1]) : json();
}

namespace {

/// The settings of the folder beside which the file was given; none where it has no transformer or one of another
/// width.
std::optional<json> settings_beside(const std::string& folder, int64_t dim) {
  if (folder.empty() || !path_exists(folder + "/config.json")) return std::nullopt;
  const JsonConfig config = JsonConfig::load(folder + "/config.json");
  const json& found = config.json();
  if (is_original_config(config)) {
    if (found.value("dim", json()) != dim || !found.value("num_heads", json()).is_number_integer()) return std::nullopt;
    json settings = {{"num_attention_heads", found["num_heads"]},
                     {"cross_attn_norm", found.value("cross_attn_norm", json(true))},
                     {"qk_norm", found.value("qk_norm", json(true))}};
    if (found.contains("num_layers")) settings["num_layers"] = found["num_layers"];
    return settings;
  }
  const json heads = found.value("num_attention_heads", json()), head_dim = found.value("attention_head_dim", json());
  if (!heads.is_number_integer() || !head_dim.is_number_integer()) return std::nullopt;
  if (heads.get<int64_t>() * head_dim.get<int64_t>() != dim) return std::nullopt;
  return found;
}

/// A file that lacks layers or norms would be a smaller model, which makes other videos.
void require_all(const MappedTensors& tensors, const std::string& folder, const json& beside, const json& found) {
  const auto require = [&](const std::string& key, const json& expected, const json& has, const std::string& lacks) {
    if (!beside.contains(key) || expected == has) return;
    throw Error(ErrorKind::kMismatch, tensors.path() + ": " + lacks + ", but " + folder + "/config.json says \"" + key +
                                          "\": " + beside[key].dump() +
                                          "; is the file complete, and of the model in that folder?");
  };
  const auto says = [&](const char* key) {
    const json value = beside.value(key, json());
    return value.is_string() || value == true;
  };
  const auto norms = [](bool has, const char* which) { return std::string(has ? "has " : "has no ") + which; };
  const bool qk_norm = !found["qk_norm"].is_null(), cross_norm = found["cross_attn_norm"].get<bool>();
  require("num_layers", beside.value("num_layers", json()), found["num_layers"],
          "has " + counted(found["num_layers"].get<int>(), "blocks") + " without a gap");
  require("qk_norm", says("qk_norm"), qk_norm, norms(qk_norm, "norms of queries and keys (norm_q)"));
  require("cross_attn_norm", says("cross_attn_norm"), cross_norm, norms(cross_norm, "norms before cross-attention"));
}

JsonConfig config_of(const MappedTensors& tensors, const std::string& settings_folder) {
  const std::string time = "condition_embedder.time_embedder.linear_1.weight",
                    text = "condition_embedder.text_embedder.linear_1.weight",
                    hidden = "blocks.0.ffn.net.0.proj.weight", output = "proj_out.weight";
  const std::vector<int64_t>& patches = shape_of_rank(tensors, kPatches, 5);
  const int64_t dim = patches[0], patch_volume = patches[2] * patches[3] * patches[4];
  int num_layers = 0;
  while (tensors.contains("blocks." + std::to_string(num_layers) + ".ffn.net.2.weight")) ++num_layers;
  json config = {{"_class_name", "WanTransformer3DModel"}, {"eps", 1e-6}, {"rope_max_seq_len", 1024}};
  const std::optional<json> beside = settings_beside(settings_folder, dim);
  if (beside) config.update(*beside);
  const int64_t heads = config.value("num_attention_heads", dim / kHeadDim);
  if (heads < 1 || dim % heads != 0) {
    throw Error(ErrorKind::kFormat, tensors.describe(kPatches) + ": is " + std::to_string(dim) +
                                        " wide, which no number of heads of " + std::to_string(kHeadDim) +
                                        " channels is; give the model's own folder as --model, whose config.json says "
                                        "how many there are");
  }
  config.update(
      {{"num_attention_heads", heads},
       {"attention_head_dim", dim / heads},
       {"patch_size", {patches[2], patches[3], patches[4]}},
       {"in_channels", patches[1]},
       {"out_channels", shape_of_rank(tensors, output, 2)[0] / patch_volume},
       {"text_dim", shape_of_rank(tensors, text, 2)[1]},
       {"freq_dim", shape_of_rank(tensors, time, 2)[1]},
       {"ffn_dim", shape_of_rank(tensors, hidden, 2)[0]},
       {"num_layers", num_layers},
       {"cross_attn_norm", tensors.contains("blocks.0.norm2.weight")},
       {"qk_norm", tensors.contains("blocks.0.attn1.norm_q.weight") ? json("rms_norm_across_heads") : json()}});
  add_picture_settings(tensors, config);
  if (beside) require_all(tensors, settings_folder, *beside, config);
  return {config, tensors.path()};
}

}  // namespace

Component open_transformer_file(const std::string& path, const std::string& settings_folder) {
  MappedTensors tensors = without_prefix(open_tensor_file(path));
  require_known_inputs(tensors);
  if (tensors.contains("blocks.0.self_attn.q.weight")) tensors = tensors.renamed(diffusers_transformer_name);
  return {config_of(tensors, settings_folder), tensors};
}

}  // namespace calibatt
