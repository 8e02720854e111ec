// A dense forward of Wan 2.1 at the public models' sizes with random weights (time depends on shapes alone). Models of
// one and of a few layers of full width are written to a temporary folder and run; what a layer takes times the public
// model's number of layers, and what is left once, is the whole forward. Prints JSON.
// With --offload the blocks of the larger model stay in host memory, beside the resident ones in the same run: with
// enough layers (--layers 8) the seconds per layer tell what streaming costs.
//   calibatt_forward_bench [--backend cuda] [--runs 5] [--small] [--only "14B, 720p"] [--layers 3] [--offload]
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "attention/run_attention.h"
#include "backend/cuda/cuda_backend.h"
#include "base/error.h"
#include "base/thread_pool.h"
#include "io/safetensors.h"
#include "models/wan/transformer.h"

namespace calibatt {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

struct Model {
  const char* name;
  int heads, head_dim, ffn, layers;
  int frames, height, width;  // of the latents
};
constexpr Model kModels[] = {
    {"14B, 720p, 81 frames", 40, 128, 13824, 40, 21, 90, 160},
    {"14B, 480p, 81 frames", 40, 128, 13824, 40, 21, 60, 104},
    {"1.3B, 480p, 81 frames", 12, 128, 8960, 30, 21, 60, 104},
};
constexpr Model kSmall = {"small", 2, 64, 512, 6, 3, 8, 8};
constexpr int kTextDim = 4096, kTextTokens = 60, kLayers = 3;

/// Uniform, of this standard deviation.
Tensor noise(std::vector<int64_t> shape, double deviation, double mean = 0) {
  static uint64_t seed = 0;
  Tensor tensor(DType::kBF16, std::move(shape));
  const double scale = deviation * std::sqrt(12.0);
  parallel_for(tensor.size(), int64_t{1} << 20, [&, start = ++seed](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      uint64_t x = (static_cast<uint64_t>(i) + start * 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
      x = (x ^ (x >> 31)) * 0x94d049bb133111ebu;
      const double unit = static_cast<double>(x >> 40) / static_cast<double>(1 << 24) - 0.5;
      tensor.data<bfloat16>()[i] = bfloat16(static_cast<float>(mean + scale * unit));
    }
  });
  return tensor;
}

void write_model(const Model& model, int layers, const std::string& folder) {
  const int64_t dim = int64_t{model.heads} * model.head_dim;
  std::map<std::string, Tensor> tensors;
  const auto linear = [&](const std::string& name, int64_t out, int64_t in) {
    tensors[name + ".weight"] = noise({out, in}, 1 / std::sqrt(static_cast<double>(in)));
    tensors[name + ".bias"] = noise({out}, 0.02);
  };
  tensors["patch_embedding.weight"] = noise({dim, 16, 1, 2, 2}, 0.125);
  tensors["patch_embedding.bias"] = noise({dim}, 0.02);
  linear("condition_embedder.time_embedder.linear_1", dim, 256);
  linear("condition_embedder.time_embedder.linear_2", dim, dim);
  linear("condition_embedder.time_proj", 6 * dim, dim);
  linear("condition_embedder.text_embedder.linear_1", dim, kTextDim);
  linear("condition_embedder.text_embedder.linear_2", dim, dim);
  tensors["scale_shift_table"] = noise({1, 2, dim}, 0.02);
  linear("proj_out", 64, dim);
  for (int layer = 0; layer < layers; ++layer) {
    const std::string block = "blocks." + std::to_string(layer) + ".";
    tensors[block + "scale_shift_table"] = noise({1, 6, dim}, 0.02);
    for (const std::string attention : {"attn1.", "attn2."}) {
      for (const char* name : {"to_q", "to_k", "to_v", "to_out.0"}) linear(block + attention + name, dim, dim);
      for (const char* name : {"norm_q", "norm_k"}) {
        tensors[block + attention + name + ".weight"] = noise({dim}, 0.1, 1);
      }
    }
    tensors[block + "norm2.weight"] = noise({dim}, 0.1, 1);
    tensors[block + "norm2.bias"] = noise({dim}, 0.02);
    linear(block + "ffn.net.0.proj", model.ffn, dim);
    linear(block + "ffn.net.2", dim, model.ffn);
  }
  fs::create_directories(folder);
  write_safetensors(folder + "/diffusion_pytorch_model.safetensors", tensors);
  const json config = {{"num_attention_heads", model.heads},
                       {"attention_head_dim", model.head_dim},
                       {"ffn_dim", model.ffn},
                       {"num_layers", layers},
                       {"text_dim", kTextDim},
                       {"qk_norm", "rms_norm_across_heads"}};
  std::ofstream(folder + "/config.json") << config.dump(2);
}

struct Seconds {
  double all = 0, attention = 0;
  double load = 0, loaded_gigabytes = 0;
};

/// Medians over the runs, after one to warm up (and to choose algorithms).
Seconds time_forward(Backend& backend, const Model& model, int layers, int runs, const std::string& folder,
                     bool offload = false) {
  write_model(model, layers, folder);
  const auto gigabytes = static_cast<double>(fs::file_size(folder + "/diffusion_pytorch_model.safetensors")) * 1e-9;
  WallClockTimer load;
  load.start();
  WanTransformer transformer = WanTransformer::load(backend, folder, DType::kBF16, {.offload = offload});
  backend.synchronize();
  load.stop();
  backend.trim_memory();
  fs::remove_all(folder);
  const Tensor latents = converted(noise({16, model.frames, model.height, model.width}, 1), DType::kF32);
  const WanPrompt prompt = transformer.prepare_prompt(converted(noise({kTextTokens, kTextDim}, 1), DType::kF32));
  DenseAttention attention(backend, 1, layers);
  attention.begin_forward(0, GuidanceBranch::kConditional);
  std::vector<double> all, inside;
  for (int run = -1; run < runs; ++run) {
    TransformerTimes times;
    const Tensor result = transformer.forward(latents, 500, prompt, attention, &times);
    for (int64_t i = 0; i < result.size(); ++i) {
      if (!std::isfinite(result.f32()[i])) throw Error(ErrorKind::kNumeric, "the prediction is not finite");
    }
    if (run < 0) continue;
    all.push_back(times.total());
    inside.push_back(times.self_attention);
  }
  const auto median = [](std::vector<double>& values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
  };
  return {median(all), median(inside), load.seconds(), gigabytes};
}

json run_model(Backend& backend, const Model& model, int layers, int runs, const std::string& folder, bool offload) {
  const Seconds one = time_forward(backend, model, 1, runs, folder);
  backend.reset_peak_memory();
  const Seconds few = time_forward(backend, model, layers, runs, folder);
  const size_t peak = backend.peak_memory_bytes();
  const double layer = (few.all - one.all) / (layers - 1),
               layer_attention = (few.attention - one.attention) / (layers - 1);
  const double forward = one.all + (model.layers - 1) * layer;
  json result = {{"model", model.name},
                 {"tokens", model.frames * model.height * model.width / 4},
                 {"seconds_one_layer", one.all},
                 {"seconds_few_layers", few.all},
                 {"layers_few", layers},
                 {"load_seconds_few_layers", few.load},
                 {"load_gigabytes_per_second", few.loaded_gigabytes / few.load},
                 {"seconds_per_layer", layer},
                 {"seconds_per_layer_attention", layer_attention},
                 {"forward_seconds_extrapolated", forward},
                 {"forward_seconds_attention", one.attention + (model.layers - 1) * layer_attention},
                 {"peak_device_bytes_few_layers", peak}};
  if (offload) {
    backend.trim_memory();
    backend.reset_peak_memory();
    const Seconds streamed = time_forward(backend, model, layers, runs, folder, true);
    result["offload"] = {{"seconds_few_layers", streamed.all},
                         {"slowdown_few_layers", streamed.all / few.all},
                         {"load_seconds_few_layers", streamed.load},
                         {"load_gigabytes_per_second", streamed.loaded_gigabytes / streamed.load},
                         {"peak_device_bytes", backend.peak_memory_bytes()}};
  }
  return result;
}

}  // namespace
}  // namespace calibatt

int main(int argc, char** argv) {
  using namespace calibatt;
  CLI::App app("A dense forward of Wan 2.1 with random weights.");
  std::string backend_name = "cuda";
  int runs = 5;
  bool small = false, offload = false;
  int layers = kLayers;
  std::string only;
  app.add_option("--backend", backend_name);
  app.add_option("--runs", runs)->check(CLI::PositiveNumber);
  app.add_flag("--small", small, "A model of a second, to try the benchmark itself");
  app.add_option("--only", only, "Only models whose name contains this");
  app.add_option("--layers", layers, "Layers of the larger model")->check(CLI::Range(2, 40))->capture_default_str();
  app.add_flag("--offload", offload, "Measure with offloaded blocks, too");
  CLI11_PARSE(app, argc, argv);
  try {
    cuda::add_cuda_backend();
    const auto backend = make_backend(backend_name);
    const std::string folder = fs::temp_directory_path() / ("calibatt_forward_bench_" + std::to_string(getpid()));
    json models = json::array();
    for (const Model& model :
         small ? std::vector<Model>{kSmall} : std::vector<Model>(std::begin(kModels), std::end(kModels))) {
      if (std::string(model.name).find(only) == std::string::npos) continue;
      models.push_back(run_model(*backend, model, layers, runs, folder, offload));
    }
    const json report = {{"backend", backend->name()},
                         {"device", backend->device_name()},
                         {"attention_kernel", backend->attention_kernel(DType::kBF16, 128)},
                         {"runs", runs},
                         {"models", models}};
    std::printf("%s\n", report.dump(2).c_str());
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "calibatt_forward_bench: %s\n", error.what());
    return 1;
  }
}
