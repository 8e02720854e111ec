#include "forward_models.h"

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "base/error.h"
#include "io/safetensors.h"
#include "random_tensor.h"

namespace calibatt::bench {
namespace {

using nlohmann::json;
constexpr ForwardModel::Family kWan = ForwardModel::Family::kWan, kMochi = ForwardModel::Family::kMochi;

// name, family, heads, head_dim, layers, ffn, text_width, text_dim, latents, density
const ForwardModel kModels[] = {
    {"14B-720p", kWan, 40, 128, 40, 13824, 0, 4096, 21, 90, 160, .375},
    {"14B-480p", kWan, 40, 128, 40, 13824, 0, 4096, 21, 60, 104, .32},
    {"1.3B-480p", kWan, 12, 128, 30, 8960, 0, 4096, 21, 60, 104, .35},
    {"small", kWan, 2, 64, 6, 512, 0, 64, 3, 16, 16, .5},
    {"mochi", kMochi, 24, 128, 48, 0, 1536, 4096, 28, 60, 106, .31},
    {"mochi-small", kMochi, 2, 64, 3, 0, 64, 64, 3, 16, 16, .5},
};

/// The tensors of a transformer as they are made, by name.
struct RandomTensors {
  std::map<std::string, Tensor> tensors;

  void add(const std::string& name, std::vector<int64_t> shape, double deviation, double mean = 0) {
    tensors[name] = random_tensor(std::move(shape), deviation, mean);
  }
  void matrix(const std::string& name, int64_t out, int64_t in) {
    add(name + ".weight", {out, in}, 1 / std::sqrt(static_cast<double>(in)));
  }
  void linear(const std::string& name, int64_t out, int64_t in) {
    matrix(name, out, in);
    add(name + ".bias", {out}, 0.02);
  }
};

json write_wan(const ForwardModel& model, RandomTensors& random) {
  const int64_t dim = int64_t{model.heads} * model.head_dim;
  random.add("patch_embedding.weight", {dim, 16, 1, 2, 2}, 0.125);
  random.add("patch_embedding.bias", {dim}, 0.02);
  random.linear("condition_embedder.time_embedder.linear_1", dim, 256);
  random.linear("condition_embedder.time_embedder.linear_2", dim, dim);
  random.linear("condition_embedder.time_proj", 6 * dim, dim);
  random.linear("condition_embedder.text_embedder.linear_1", dim, model.text_dim);
  random.linear("condition_embedder.text_embedder.linear_2", dim, dim);
  random.add("scale_shift_table", {1, 2, dim}, 0.02);
  random.linear("proj_out", 64, dim);
  for (int layer = 0; layer < model.layers; ++layer) {
    const std::string block = "blocks." + std::to_string(layer) + ".";
    random.add(block + "scale_shift_table", {1, 6, dim}, 0.02);
    for (const std::string attention : {"attn1.", "attn2."}) {
      for (const char* name : {"to_q", "to_k", "to_v", "to_out.0"}) random.linear(block + attention + name, dim, dim);
      for (const char* name : {"norm_q", "norm_k"}) random.add(block + attention + name + ".weight", {dim}, 0.1, 1);
    }
    random.add(block + "norm2.weight", {dim}, 0.1, 1);
    random.add(block + "norm2.bias", {dim}, 0.02);
    random.linear(block + "ffn.net.0.proj", model.ffn, dim);
    random.linear(block + "ffn.net.2", dim, model.ffn);
  }
  return {{"ffn_dim", model.ffn}, {"text_dim", model.text_dim}, {"qk_norm", "rms_norm_across_heads"}};
}

void write_mochi_block(const ForwardModel& model, const std::string& block, bool last, RandomTensors& random) {
  const int64_t dim = int64_t{model.heads} * model.head_dim, text = model.text_width;
  const auto feed_forward = [&](const std::string& name, int64_t width) {
    const int64_t hidden = 4 * width * 2 / 3;
    random.matrix(name + "net.0.proj", 2 * hidden, width);  // SwiGLU
    random.matrix(name + "net.2", width, hidden);
  };
  random.linear(block + "norm1.linear", 4 * dim, dim);
  for (const char* name : {"to_q", "to_k", "to_v"}) random.matrix(block + "attn1." + name, dim, dim);
  for (const char* name : {"add_q_proj", "add_k_proj", "add_v_proj"}) random.matrix(block + "attn1." + name, dim, text);
  for (const char* name : {"norm_q", "norm_k", "norm_added_q", "norm_added_k"}) {
    random.add(block + "attn1." + name + ".weight", {model.head_dim}, 0.1, 1);
  }
  random.linear(block + "attn1.to_out.0", dim, dim);
  feed_forward(block + "ff.", dim);
  if (last) {
    random.linear(block + "norm1_context.linear_1", text, dim);
    return;
  }
  random.linear(block + "norm1_context.linear", 4 * text, dim);
  random.linear(block + "attn1.to_add_out", text, dim);
  feed_forward(block + "ff_context.", text);
}

json write_mochi(const ForwardModel& model, RandomTensors& random) {
  const int64_t dim = int64_t{model.heads} * model.head_dim, text = model.text_dim;
  random.add("patch_embed.proj.weight", {dim, 12, 2, 2}, 0.144);
  random.add("patch_embed.proj.bias", {dim}, 0.02);
  random.linear("time_embed.timestep_embedder.linear_1", dim, 256);
  random.linear("time_embed.timestep_embedder.linear_2", dim, dim);
  random.linear("time_embed.pooler.to_kv", 2 * text, text);
  random.linear("time_embed.pooler.to_q", text, text);
  random.linear("time_embed.pooler.to_out", dim, text);
  random.linear("time_embed.caption_proj", model.text_width, text);
  random.add("pos_frequencies", {3, model.heads, model.head_dim / 2}, 0.1);
  random.linear("norm_out.linear", 2 * dim, dim);
  random.linear("proj_out", 48, dim);
  for (int layer = 0; layer < model.layers; ++layer) {
    write_mochi_block(model, "transformer_blocks." + std::to_string(layer) + ".", layer + 1 == model.layers, random);
  }
  return {{"pooled_projection_dim", model.text_width}, {"text_embed_dim", model.text_dim}};
}

}  // namespace

ForwardModel find_forward_model(const std::string& name) {
  for (const ForwardModel& model : kModels) {
    if (model.name == name) return model;
  }
  throw Error(ErrorKind::kUsage, "--model: is \"" + name + "\"; there are " + forward_model_names());
}

std::string forward_model_names() {
  std::string names;
  for (const ForwardModel& model : kModels) names += (names.empty() ? "" : ", ") + model.name;
  return names;
}

void write_transformer(const ForwardModel& model, const std::string& folder) {
  RandomTensors random;
  json config = model.family == kMochi ? write_mochi(model, random) : write_wan(model, random);
  config["num_attention_heads"] = model.heads;
  config["attention_head_dim"] = model.head_dim;
  config["num_layers"] = model.layers;
  std::filesystem::create_directories(folder);
  write_safetensors(folder + "/diffusion_pytorch_model.safetensors", random.tensors);
  std::ofstream(folder + "/config.json") << config.dump(2);
}

}  // namespace calibatt::bench
